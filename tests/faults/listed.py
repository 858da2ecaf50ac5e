"""All faults, by the folder of tests that catches them."""

from tests.faults import (
    allocation,
    calibration,
    checkpoint,
    cli,
    core,
    dispatch,
    offload,
    project,
    pruning,
    pruning_runs,
    tensors,
    training,
)

BY_FOLDER = {
    "core": core.FAULTS,
    "tensors": tensors.FAULTS,
    "training": training.FAULTS,
    "pruning": pruning.FAULTS + pruning_runs.FAULTS + calibration.FAULTS,
    "offload": offload.FAULTS,
    "allocation": allocation.FAULTS,
    "dispatch": dispatch.FAULTS,
    "checkpoint": checkpoint.FAULTS,
    "cli": cli.FAULTS,
    "project": project.FAULTS,
}
FAULTS = tuple(fault for faults in BY_FOLDER.values() for fault in faults)


def as_markdown() -> str:
    """Return the list that `tests/README.md` holds: the names, a line each."""
    return "\n".join(
        f"\n**{folder}**\n\n" + "\n".join(f"* {fault.name}" for fault in faults)
        for folder, faults in BY_FOLDER.items()
    )
