"""How groups lie in weights: matrices, parts and groups of every kind of weight, as NumPy has it
and as torch has it, and which patterns their shapes hold.
"""

import numpy as np
import pytest
import torch

from nmsolve import InputError, Pattern
from nmsolve.geometry import (
    PADDINGS,
    Geometry,
    as_groups,
    as_matrices,
    check_padding,
    from_groups,
    from_matrices,
    other_axis,
    remainders,
)

#: Shape, axis of the groups, and parts: (out, in), (in, out), convolutions, packed projections,
#: filter groups, a stack of matrices.
WEIGHTS = [
    ((6, 8), 1, 1),
    ((8, 6), 0, 1),
    ((6, 8, 3), 1, 1),
    ((6, 8, 3, 2), 1, 1),
    ((4, 8, 2, 3, 2), 1, 1),
    ((6, 8), 1, 3),
    ((6, 4, 3, 3), 1, 2),
    ((5, 6, 8), 2, 5),
]


def counted(shape):
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(("shape", "axis", "parts"), WEIGHTS)
def test_matrices_are_views_with_groups_along_their_columns(shape, axis, parts):
    array, tensor = counted(shape), torch.arange(np.prod(shape)).reshape(shape)
    other = other_axis(axis)
    found = as_matrices(array, axis)
    assert found.shape[-2:] == (shape[other], shape[axis])
    assert np.shares_memory(found, array)
    assert (found == np.moveaxis(array, (other, axis), (-2, -1))).all()
    matrices = as_matrices(tensor, axis)
    assert matrices.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert (matrices.numpy() == found).all()
    assert (from_matrices(found, axis) == array).all()
    assert torch.equal(from_matrices(matrices, axis), tensor)


@pytest.mark.parametrize(("shape", "axis", "parts"), WEIGHTS)
def test_parts_are_matrices_beside_their_inputs(shape, axis, parts):
    array = counted(shape)
    geometry = Geometry(shape, axis, parts)
    found = geometry.matrices(array)
    assert found.shape == (parts, geometry.part_rows, array.size // parts // geometry.part_rows)
    assert (geometry.matrices(torch.from_numpy(array)).numpy() == found).all()
    assert (geometry.weight(found) == array).all()
    assert torch.equal(geometry.weight(torch.from_numpy(found)), torch.from_numpy(array))
    rows = found.reshape(-1, found.shape[-1])  # every output, with all that it multiplies
    outputs = np.moveaxis(array, axis, -1).reshape(len(rows), -1)
    assert (rows == outputs).all()


def test_columns_are_a_run_of_inputs_for_each_kernel_position():
    array = counted((2, 3, 5))
    found = Geometry((2, 3, 5), 1).matrices(array)
    assert found[0, 1, :3].tolist() == array[1, :, 0].tolist()
    assert found[0, 1, 3:6].tolist() == array[1, :, 1].tolist()


def test_linear_weights_are_laid_out_without_a_copy():
    tensor = torch.zeros(6, 8)
    for axis in (0, 1):
        found = Geometry((6, 8), axis).matrices(tensor)
        assert found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(("shape", "axis", "parts"), WEIGHTS)
@pytest.mark.parametrize("m", [2, 4])
def test_groups(shape, axis, parts, m):
    tensor = torch.from_numpy(counted(shape))
    groups = as_groups(tensor, axis, m)
    assert groups.shape[-1] == m
    step = tensor.stride(axis)
    assert bool((groups.diff(dim=-1) == step).all())
    assert torch.equal(from_groups(groups, axis), tensor)
    assert (as_groups(tensor.numpy(), axis, m) == groups.numpy()).all()
    first = as_groups(tensor[: shape[0] // 2 or 1], 1, m) if axis == 1 else None
    assert first is None or torch.equal(first, groups[: shape[0] // 2 or 1])


def test_what_is_left_over():
    assert remainders(6, 10, Pattern(2, 4)) == (0, 2)
    assert remainders(6, 10, Pattern(2, 4, transposable=True)) == (2, 2)


UNFIT = [
    (Geometry((6, 10), 1), "2:4", "error", "its axis 1 does not consist of groups of 4"),
    (Geometry((6, 8), 1), "2:4", "error", None),
    (Geometry((6, 8), 1), "2:4T", "skip", "its axis 0 does not consist of blocks of 4"),
    (Geometry((10, 6), 0), "2:4", "skip", "its axis 0 does not consist of groups of 4"),
    (Geometry((8, 6), 0), "2:4T", "skip", "its axis 1 does not consist of blocks of 4"),
    (Geometry((6, 10), 1), "2:4T", "pad", None),
    (Geometry((6, 3), 1), "2:4", "dense", "smaller than one group of 4"),
    (Geometry((3, 6), 1), "2:4T", "dense", "smaller than one block of 4"),
    (Geometry((3, 6), 1), "2:4", "dense", None),
    (Geometry((0, 8), 1), "2:4", "pad", "it has no element"),
    (Geometry((8, 1, 3), 1, 8, True), "2:4", "pad", "depthwise: every filter sees one input"),
    (Geometry((8, 1, 3), 1, 8, True), "1:1", "skip", None),
    (Geometry((9, 8), 1, 3), "2:3T", "skip", "its axis 1 does not consist of blocks of 3"),
    (Geometry((9, 6), 1, 3), "2:3T", "skip", None),  # blocks may lie across packed projections
    (
        Geometry((12, 8, 3), 1, 2, True),
        "2:4T",
        "pad",
        "6 output channels within each of its 2 filter groups do not consist of blocks of 4",
    ),
]


@pytest.mark.parametrize(("geometry", "text", "padding", "reason"), UNFIT)
def test_shapes_that_do_not_hold_a_pattern(geometry, text, padding, reason):
    found = geometry.unfit(Pattern.parse(text), padding)
    assert found == reason or (reason and found.startswith(reason))


def test_a_layer_speaks_of_channels():
    found = Geometry((6, 10), 1).unfit(Pattern.parse("2:4T"), "skip", channels=True)
    assert found == "10 input channels do not consist of groups of 4"
    found = Geometry((6, 8), 1).unfit(Pattern.parse("2:4T"), "skip", channels=True)
    assert found == "6 output channels do not consist of blocks of 4"


def test_groups_of_a_run():
    pattern, geometry = Pattern(2, 4), Geometry((3, 10), 1)
    assert geometry.run_groups(pattern, "pad") == [(0, 4, 2), (4, 4, 2), (8, 2, 2)]
    assert Geometry((3, 9), 1).run_groups(pattern, "pad")[-1] == (8, 1, 1)
    assert Geometry((3, 11), 1).run_groups(pattern, "dense")[-1] == (8, 3, 3)


def test_paddings():
    for padding in PADDINGS:
        check_padding(padding)
    for wrong in ("skip", None, 3):
        with pytest.raises(InputError, match="padding must be one of 'error', 'pad', 'dense', got"):
            check_padding(wrong)
