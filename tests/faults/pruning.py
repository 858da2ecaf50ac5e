"""Faults in one-shot pruning, scores and calibration."""

from tests.faults.planting import Fault

PRUNING = "nmsolve/torch/pruning"
CALIBRATION = "nmsolve/torch/calibration"
TESTS = "tests/pruning"

FAULTS = (
    Fault(
        name="least squares moves pruned weights",
        file=f"{PRUNING}/least_squares.py",
        old="image = (direction @ matrix).mul_(kept)",
        new="image = direction @ matrix",
        tests=(f"{TESTS}/test_least_squares.py::test_without_damping_it_is_plain_least_squares",),
    ),
    Fault(
        name="damping pulls towards zero instead of the masked weights",
        file=f"{PRUNING}/least_squares.py",
        old="torch.where(mask, cross + delta * start, 0)",
        new="torch.where(mask, cross, 0)",
        tests=(
            f"{TESTS}/test_least_squares.py::"
            "test_least_squares_matches_the_dense_oracle_and_never_loses_to_masking",
        ),
    ),
    Fault(
        name="rows that came out worse than by masking are kept",
        file=f"{PRUNING}/layerwise.py",
        old="    new = torch.where(worse.unsqueeze(-1), plain, new)\n",
        new="",
        tests=(
            f"{TESTS}/test_least_squares.py::test_rows_that_an_update_makes_worse_are_masked_alone",
        ),
    ),
    Fault(
        name="Ctrl-C leaves a model half pruned",
        file=f"{PRUNING}/layerwise.py",
        old="    except BaseException:\n",
        new="    except Exception:\n",
        tests=(f"{TESTS}/test_errors.py::test_whatever_interrupts_leaves_the_model_as_it_was",),
    ),
    Fault(
        name="batch norms keep the statistics of the dense model",
        file=f"{PRUNING}/layerwise.py",
        old="        put(statistics)\n    return Reconstruction",
        new="    return Reconstruction",
        tests=(
            f"{TESTS}/test_adaprune.py::test_batch_norms_get_the_statistics_of_the_pruned_model",
        ),
    ),
    Fault(
        name="statistics of batch norms forget earlier batches",
        file=f"{PRUNING}/batch_norm.py",
        old="            norm.momentum = None  # a plain mean\n",
        new="",
        tests=(
            f"{TESTS}/test_adaprune.py::test_batch_norms_get_the_statistics_of_the_pruned_model",
        ),
    ),
    Fault(
        name="a sequential layer is fitted to what it gives for pruned inputs",
        file=f"{PRUNING}/collect.py",
        old="y = of_dense if _belongs(of_dense, y) else y",
        new="pass",
        tests=(
            f"{TESTS}/test_adaprune.py::"
            "test_the_problem_of_a_sequential_layer_has_pruned_inputs_and_dense_outputs",
        ),
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
        name="SparseGPT chooses by magnitude alone",
        file=f"{PRUNING}/obs.py",
        old="(weight[:, columns] / inverse.diagonal()[columns]).square()",
        new="weight[:, columns].square()",
        tests=(f"{TESTS}/test_sparsegpt.py::test_row_wise_masks_are_those_of_obs",),
    ),
    Fault(
        name="SparseGPT moves no weight beyond a block of columns",
        file=f"{PRUNING}/obs.py",
        old="        weight[:, end:] -= errors @ inverse[begin:end, end:]\n",
        new="",
        tests=(f"{TESTS}/test_sparsegpt.py::test_row_wise_masks_are_those_of_obs",),
    ),
    Fault(
        name="activation scores forget the square root",
        file="nmsolve/torch/scores.py",
        old="norms = squares[entry.owner].sqrt().unsqueeze(1)",
        new="norms = squares[entry.owner].unsqueeze(1)",
        tests=(
            f"{TESTS}/test_scores.py::test_activation_scores_of_a_linear_layer_equal_the_loops",
        ),
    ),
    Fault(
        name="a shared weight is scored by one layer's inputs",
        file="nmsolve/torch/scores.py",
        old="            if entry.owner not in squares:\n",
        new="            if entry.owner not in squares or entry.path != entry.owner:\n",
        tests=(f"{TESTS}/test_scores.py::test_shared_weights_are_scored_by_all_their_inputs",),
    ),
    Fault(
        name="what a subclass computes is taken for its base class's product",
        file=f"{CALIBRATION}/activations.py",
        old="        if not same:\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_hazards.py::test_layers_that_compute_something_else_are_told",),
    ),
    Fault(
        name="moments of the inputs are those of the last sample",
        file=f"{CALIBRATION}/moments.py",
        old="        self.gram[part].addmm_(inputs.T, inputs)\n",
        new="        self.gram[part].copy_(inputs.T @ inputs)\n",
        tests=(
            f"{TESTS}/test_least_squares.py::"
            "test_least_squares_matches_the_dense_oracle_and_never_loses_to_masking",
        ),
    ),
)
