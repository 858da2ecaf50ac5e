"""Faults in `accelerate_`, packing and the layers that multiply by sparse weights."""

from tests.faults.planting import Fault

DISPATCH = "nmsolve/torch/dispatch"
TESTS = "tests/dispatch"

FAULTS = (
    Fault(
        name="a layer is exchanged for a slower one",
        file=f"{DISPATCH}/decisions.py",
        old="if sparse <= (1 - MARGIN) * dense:",
        new="if sparse >= (1 - MARGIN) * dense:",
        tests=(f"{TESTS}/test_measuring.py::test_choice",),
    ),
    Fault(
        name="a NaN among a backend's results is right",
        file=f"{DISPATCH}/measuring.py",
        old="        if not error <= allowed:  # so that a NaN is wrong\n",
        new="        if error > allowed:\n",
        tests=(f"{TESTS}/test_measuring.py::test_wrong_results_are_found",),
    ),
    Fault(
        name="dropped weights get gradients",
        file=f"{DISPATCH}/masked_product.py",
        old="return gradient if straight_through else torch.where(mask, gradient, 0)",
        new="return gradient",
        tests=(f"{TESTS}/test_masked_linear.py::test_gradients_are_those_of_dense_autograd",),
    ),
    Fault(
        name="the input's gradient ignores the mask",
        file=f"{DISPATCH}/masked_product.py",
        old="dy, masked(weight, mask).t().contiguous(), None",
        new="dy, weight.t().contiguous(), None",
        tests=(f"{TESTS}/test_masked_linear.py::test_gradients_are_those_of_dense_autograd",),
    ),
    Fault(
        name="a NaN that the mask drops spoils the product",
        file=f"{DISPATCH}/masked_product.py",
        old="return torch.where(mask, weight, 0).contiguous()",
        new="return (weight * mask).contiguous()",
        tests=(f"{TESTS}/test_masked_linear.py::test_what_is_dropped_may_be_anything",),
    ),
    Fault(
        name="products under autocast stay in float32",
        file=f"{DISPATCH}/masked_product.py",
        old="    return tensor.to(torch.get_autocast_dtype(kind))\n",
        new="    return tensor\n",
        tests=(f"{TESTS}/test_masked_linear.py::test_autocast",),
    ),
    Fault(
        name="a weight that is not 2:4 is packed",
        file=f"{DISPATCH}/packing.py",
        old="    report = is_2to4(weight)\n    if not report:\n",
        new="    report = is_2to4(weight)\n    if False:\n",
        tests=(f"{TESTS}/test_packed_linear.py::test_packed_layer_is_the_masked_linear",),
    ),
    Fault(
        name="a packed layer is not checked",
        file=f"{DISPATCH}/packing.py",
        old="    if not torch.equal(unpack(packed), weight.detach()):\n",
        new="    if False:\n",
        tests=(f"{TESTS}/test_packing.py::test_a_round_trip_that_fails_is_found",),
    ),
    Fault(
        name="2:4 is checked along rows alone",
        file=f"{DISPATCH}/packing.py",
        old="*([(0, kept.view(rows // 4, 4, cols))] if transposable else []),",
        new="",
        tests=(f"{TESTS}/test_packing.py::test_the_check_agrees_with_the_core",),
    ),
    Fault(
        name="a SparseLinear saves the dense weight",
        file=f"{DISPATCH}/sparse_linear.py",
        old='destination[prefix + "weight"] = masked(weight, placed_like(self.mask, weight))',
        new='destination[prefix + "weight"] = weight',
        tests=(f"{TESTS}/test_sparse_linear.py::test_state_dict_is_that_of_a_linear",),
    ),
    Fault(
        name="loading keeps a mask that the new weight does not fit",
        file=f"{DISPATCH}/sparse_linear.py",
        old="if not (nonzeros & ~own).any() and is_2to4(own, transposable=True):",
        new="if is_2to4(own, transposable=True):",
        tests=(
            f"{TESTS}/test_sparse_linear.py::"
            "test_loading_takes_the_mask_of_a_weight_that_its_own_does_not_cover",
        ),
    ),
    Fault(
        name="cuSPARSELt is called available where it is too old",
        file=f"{DISPATCH}/availability.py",
        old="    if machine.cusparselt < oldest:\n",
        new="    if False:\n",
        tests=(f"{TESTS}/test_backends.py::test_the_oldest_cusparselt_for_an_architecture",),
    ),
)
