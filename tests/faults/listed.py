"""All faults, in the order of the folders of tests that catch them."""

from tests.faults import (
    allocation,
    checkpoint,
    cli,
    core,
    dispatch,
    project,
    pruning,
    tensors,
    training,
)

FAULTS = (
    *core.FAULTS,
    *tensors.FAULTS,
    *training.FAULTS,
    *pruning.FAULTS,
    *allocation.FAULTS,
    *dispatch.FAULTS,
    *checkpoint.FAULTS,
    *cli.FAULTS,
    *project.FAULTS,
)
