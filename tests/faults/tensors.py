"""Faults in `nmsolve.torch.solve`: tensors, and the engines of devices."""

from tests.faults.planting import Fault

DEVICE = "nmsolve/torch/device"
TESTS = "tests/tensors"

FAULTS = (
    Fault(
        name="an engine mixes up batch and block row",
        file=f"{DEVICE}/torch_engine.py",
        old="return blocks.permute(2, 4, 0, 1, 3).reshape(m * m, -1)",
        new="return blocks.permute(2, 4, 1, 0, 3).reshape(m * m, -1)",
        tests=(f"{TESTS}/test_devices.py::test_pieces_make_no_difference",),
    ),
    Fault(
        name="an engine takes at most n for exactly n",
        file=f"{DEVICE}/torch_engine.py",
        old="        kept &= S > 0\n",
        new="        pass\n",
        tests=(f"{TESTS}/test_devices.py::test_groups_are_optimal_and_the_core_keeps_the_same",),
    ),
    Fault(
        name="an engine keeps the highest index of equal scores",
        file=f"{DEVICE}/torch_engine.py",
        old="order = torch.sort(S, dim=3, descending=True, stable=True)",
        new="order = torch.sort(S.flip(3), dim=3, descending=True, stable=True)\n"
        "    order = torch.return_types.sort((order.values, m - 1 - order.indices))",
        tests=(f"{TESTS}/test_devices.py::test_groups_are_optimal_and_the_core_keeps_the_same",),
    ),
    Fault(
        name="an engine calls scores optimal that scaling lost",
        file=f"{DEVICE}/torch_engine.py",
        old="closed = good & lossless & _within(",
        new="closed = good & _within(",
        tests=(
            f"{TESTS}/test_devices.py::"
            "test_scores_too_far_apart_to_be_scaled_are_not_called_optimal",
        ),
    ),
    Fault(
        name="blocks that a device leaves open are not counted",
        file=f"{DEVICE}/driver.py",
        old="int(outcome.unproven), outcome.stats)",
        new="0, outcome.stats)",
        tests=(f"{TESTS}/test_devices.py::test_what_the_host_leaves_open_is_not_called_optimal",),
    ),
    Fault(
        name="a device does not see a NaN beyond the first piece",
        file=f"{DEVICE}/driver.py",
        old="        found.totals.add(None if solved is None else solved.result)\n",
        new="        if solved is not None:\n            found.totals.add(solved.result)\n",
        tests=(f"{TESTS}/test_devices.py::test_what_is_not_finite_is_named",),
    ),
    Fault(
        name="float64 is solved in float32 on devices",
        file="nmsolve/torch/tensors.py",
        old="return torch.float32 if narrow and not signed_blocks else torch.float64",
        new="return torch.float32",
        tests=(f"{TESTS}/test_devices.py::test_dtypes",),
    ),
    Fault(
        name="a convolution's groups lie along its outputs",
        file="nmsolve/torch/tensors.py",
        old="return geometry.as_matrices(tensor, 1) if is_convolution(tensor) else tensor",
        new="return geometry.as_matrices(tensor, 1).mT if is_convolution(tensor) else tensor",
        tests=(f"{TESTS}/test_solve.py::test_convolution_weights_are_matrices_a_kernel_position",),
    ),
    Fault(
        name="float8's -0 counts as a kept weight",
        file="nmsolve/torch/tensors.py",
        old='(code if name.endswith("fnuz") else code & 0x7F) != 0',
        new="code != 0",
        tests=(f"{TESTS}/test_float8.py::test_verify_counts_what_is_not_zero",),
    ),
)
