"""Faults in new weights and masks, by calibration and in one shot."""

from tests.faults.planting import Fault

PRUNING = "nmsolve/torch/pruning"
TESTS = "tests/pruning"
ORACLE = (
    f"{TESTS}/test_least_squares.py::"
    "test_least_squares_matches_the_dense_oracle_and_never_loses_to_masking"
)
PROBLEM = (
    f"{TESTS}/test_problems.py::"
    "test_the_problem_of_a_sequential_layer_has_pruned_inputs_and_dense_outputs"
)

FAULTS = (
    Fault(
        name="the last inverse is taken for any",
        file="nmsolve/torch/pruning/objective.py",
        old="        if self._last is not None and self._last[0] == rho:\n",
        new="        if self._last is not None:\n",
        tests=(f"{TESTS}/test_sparsegpt.py::test_inverses_are_those_of_their_rho",),
    ),
    Fault(
        name="least squares moves pruned weights",
        file=f"{PRUNING}/least_squares.py",
        old="residual = left.mul_(kept)",
        new="residual = left",
        tests=(f"{TESTS}/test_least_squares.py::test_without_damping_it_is_plain_least_squares",),
    ),
    Fault(
        name="damping pulls towards zero instead of the masked weights",
        file=f"{PRUNING}/least_squares.py",
        old="left = ((change * hessian.scale) @ hessian.matrix).neg_()",
        new="left = -((change * hessian.scale) @ hessian.matrix)\n"
        "        left -= hessian.delta * first / hessian.scale",
        tests=(PROBLEM,),
    ),
    Fault(
        name="damping stays as it is, however much is overfitted",
        file=f"{PRUNING}/held_out.py",
        old="error <= _OVERFITTED * shares.fitted",
        new="error <= 1e9 * shares.fitted",
        tests=(ORACLE,),
    ),
    Fault(
        name="rank is looked for in sums of float32",
        file=f"{PRUNING}/adaprune.py",
        old="        moments = torch.float64  # float32",
        new="        pass  # float32",
        tests=(f"{TESTS}/test_errors.py::test_inputs_of_too_low_a_rank_need_damping",),
    ),
    Fault(
        name="rows that came out worse than by masking are kept",
        file=f"{PRUNING}/layer_step.py",
        old="return torch.where(worse.unsqueeze(-1), plain, new) if bool(worse.any()) else new",
        new="return new",
        tests=(
            f"{TESTS}/test_least_squares.py::test_rounding_never_makes_a_layer_worse_than_masking",
            f"{TESTS}/test_least_squares.py::test_a_row_that_an_update_makes_worse_is_masked_alone",
        ),
    ),
    Fault(
        name="what is worse than masking on held-out inputs is taken",
        file=f"{PRUNING}/layer_step.py",
        old="        best = min([*ways, masking], key=lambda way: way.judged)\n",
        new="        best = ways[0]\n",
        tests=(
            f"{TESTS}/test_least_squares.py::"
            "test_a_layer_that_is_worse_on_held_out_inputs_is_masked_alone",
        ),
    ),
    Fault(
        name="weights are fitted to held-out rows too",
        file=f"{PRUNING}/gathered.py",
        old="(self.fitted, slice(first)), (",
        new="(self.fitted, slice(None)), (",
        tests=(PROBLEM,),
    ),
    Fault(
        name="a bias is fitted without centring",
        file=f"{PRUNING}/layer_step.py",
        old="centred=bias is not None,",
        new="centred=False,",
        tests=(PROBLEM,),
    ),
    Fault(
        name="a bias is fitted to weights that are overwritten",
        file=f"{PRUNING}/layer_step.py",
        old="        here = None if bias is None else",
        new="        piece.of(layer.own).copy_(piece.layout.weight(new))\n"
        "        here = None if bias is None else",
        tests=(PROBLEM,),
    ),
    Fault(
        name="a bias is judged before it is rounded",
        file=f"{PRUNING}/layer_step.py",
        old="problem.errors(weight, bias=changed)",
        new="problem.errors(weight)",
        tests=(f"{TESTS}/test_held_out.py::test_errors_are_those_of_the_layer_itself",),
    ),
    Fault(
        name="squares beyond float32 are computed with in float32",
        file=f"{PRUNING}/layer_step.py",
        old="torch.float32 if narrow and not",
        new="torch.float32 if not",
        tests=(f"{TESTS}/test_second_moments.py::test_inputs_of_any_scale_prune_alike",),
    ),
    Fault(
        name="a bias that two layers add is fitted",
        file=f"{PRUNING}/pruned_layer.py",
        old="    alone = uses[id(bias)] == 1\n",
        new="    alone = True\n",
        tests=(f"{TESTS}/test_suspended.py::test_biases_that_layers_share_are_left_alone",),
    ),
    Fault(
        name="the dense model of whole passes has the new biases",
        file=f"{PRUNING}/pruned_layer.py",
        old="            bias.copy_(dense)\n",
        new="            pass\n",
        tests=(f"{TESTS}/test_side_by_side.py::test_the_result_is_that_of_whole_passes",),
    ),
    Fault(
        name="Adam fits weights to what the bias takes up",
        file=f"{PRUNING}/adam.py",
        old="if problem.about is not None:",
        new="if False:",
        tests=(f"{TESTS}/test_least_squares.py::test_adam_is_torchs_adam_on_the_kept_weights",),
    ),
    Fault(
        name="a sequential layer is fitted to what it gives for pruned inputs",
        file=f"{PRUNING}/gathered.py",
        old="                wanted = dense[at][1]\n",
        new="                pass\n",
        tests=(PROBLEM,),
    ),
    Fault(
        name="energies are of weights that are overwritten",
        file=f"{PRUNING}/layer_step.py",
        old="energy = problem.energy  # of",
        new="piece.of(layer.own).copy_(piece.layout.weight(best.weight))\n"
        "        energy = problem.energy  # of",
        tests=(PROBLEM,),
    ),
    Fault(
        name="the rows of a layer are pruned all at once",
        file=f"{PRUNING}/row_pieces.py",
        old="_AT_ONCE = 2**22",
        new="_AT_ONCE = 2**40",
        tests=(f"{TESTS}/test_peak_memory.py::test_no_memory_grows_with_the_rows_of_a_layer",),
    ),
    Fault(
        name="the last piece of rows is shorter than a block",
        file=f"{PRUNING}/row_pieces.py",
        old="            starts.pop()",
        new="            pass",
        tests=(f"{TESTS}/test_row_pieces.py::test_pieces_are_all_rows_once_with_whole_blocks",),
    ),
    Fault(
        name="scores are not cut with the rows",
        file=f"{PRUNING}/adaprune.py",
        old="problem.piece.of(scores_for(problem.entry, scores))",
        new="scores_for(problem.entry, scores)[: problem.weight.shape[1]]",
        tests=(f"{TESTS}/test_row_pieces.py::test_scores_are_cut_like_the_weight",),
    ),
    Fault(
        name="rows that are put aside lose their steps",
        file=f"{PRUNING}/least_squares.py",
        old="            if rows is not None:\n"
        "                total[0, rows], residual[0, rows] = step[0], left[0]\n"
        "            rows =",
        new="            rows =",
        tests=(ORACLE, PROBLEM),
    ),
    Fault(
        name="ADMM's dual goes the wrong way",
        file=f"{PRUNING}/admm.py",
        old="dual += rho * (free - kept)",
        new="dual -= rho * (free - kept)",
        tests=(f"{TESTS}/test_sparsegpt.py::test_admm_comes_near_the_best_of_all_masks",),
    ),
    Fault(
        name="ADMM projects onto the largest weights with their signs",
        file=f"{PRUNING}/admm.py",
        old="new = problem.best_mask(wanted.square())",
        new="new = problem.best_mask(wanted)",
        tests=(
            f"{TESTS}/test_sparsegpt.py::"
            "test_admm_prunes_by_magnitude_where_inputs_are_uncorrelated",
        ),
    ),
    Fault(
        name="ADMM leaves out how inputs are correlated",
        file=f"{PRUNING}/admm.py",
        old="free = (side + rho * kept - dual) @ hessian.inverse(rho)",
        new="free = (side + rho * kept - dual) / (1 + rho)",
        tests=(f"{TESTS}/test_sparsegpt.py::test_admm_comes_near_the_best_of_all_masks",),
    ),
    Fault(
        name="ADMM aims at the dense weights, whatever the pruned inputs",
        file=f"{PRUNING}/problem.py",
        old="return side if pull is None else side.addcdiv_(pull, hessian.scale)",
        new="return side",
        tests=(f"{TESTS}/test_sparsegpt.py::test_admm_comes_near_the_best_of_all_masks", PROBLEM),
    ),
    Fault(
        name="a mask of second order is taken though it is worse than the plain one",
        file=f"{PRUNING}/sparsegpt.py",
        old="    if problem.judged(found.weight) <= problem.judged(masked):\n",
        new="    if True:\n",
        tests=(
            f"{TESTS}/test_sparsegpt.py::"
            "test_a_mask_of_second_order_that_is_worse_on_held_out_inputs_is_not_taken",
        ),
    ),
    Fault(
        name="masks in one shot are put on while others are still solved",
        file=f"{PRUNING}/one_shot.py",
        old="    return mask.logical_not_()\n",
        new="    weight.masked_fill_(~mask, 0)\n    return mask.logical_not_()\n",
        tests=(
            f"{TESTS}/test_one_shot.py::"
            "test_whenever_it_is_interrupted_all_layers_are_masked_or_none",
            f"{TESTS}/test_one_shot.py::test_errors_in_a_later_layer_leave_all_as_it_was",
        ),
    ),
    Fault(
        name="Ctrl-C leaves masks in one shot half written",
        file=f"{PRUNING}/one_shot.py",
        old="        write()\n        raise\n",
        new="        raise\n",
        tests=(
            f"{TESTS}/test_one_shot.py::"
            "test_whenever_it_is_interrupted_all_layers_are_masked_or_none",
        ),
    ),
    Fault(
        name="masks in one shot go by magnitudes though the plan has scores",
        file=f"{PRUNING}/one_shot.py",
        old="given = None if scores is None else scores_for",
        new="given = None if True else scores_for",
        tests=(f"{TESTS}/test_one_shot.py::test_padding_and_scores",),
    ),
    Fault(
        name="a weight that was tied to an embedding since it was planned is pruned",
        file=f"{PRUNING}/pruned_layer.py",
        old="    check_ties(model, plan)\n",
        new="",
        tests=(f"{TESTS}/test_one_shot.py::test_weights_that_were_tied_since_they_were_planned",),
    ),
)
