"""Faults in losses, budgets, `allocate` and `domino_search`."""

from tests.faults.planting import Fault

ALLOCATION = "nmsolve/torch/allocation"
TESTS = "tests/allocation"

FAULTS = (
    Fault(
        name="an allocation exceeds its budget by one",
        file=f"{ALLOCATION}/knapsack.py",
        old="math.floor(Fraction(limit) / shared)",
        new="math.floor(Fraction(limit) / shared) + 1",
        tests=(f"{TESTS}/test_knapsack.py::test_every_choice_there_is",),
    ),
    Fault(
        name="a budget in decimals misses what adds up to it",
        file=f"{ALLOCATION}/knapsack.py",
        old="math.floor(Fraction(limit) * Fraction(2) ** exponent) + len(costs)",
        new="math.floor(Fraction(limit) * Fraction(2) ** exponent) - len(costs)",
        tests=(f"{TESTS}/test_knapsack.py::test_every_choice_there_is_with_costs_in_decimals",),
    ),
    Fault(
        name="pairs that are dropped leave no mark on the bound",
        file=f"{ALLOCATION}/knapsack_core.py",
        old="                dropped = min(dropped, float(floor[origin[~held]].min()))\n",
        new="",
        tests=(f"{TESTS}/test_knapsack.py::test_dropped_pairs_leave_a_bound_that_is_true",),
    ),
    Fault(
        name="the time limit leaves a bound as if all had been searched",
        file=f"{ALLOCATION}/knapsack_core.py",
        old=(
            "                dropped = min(dropped, float(floor[origin].min(initial=math.inf)))\n"
        ),
        new="",
        tests=(f"{TESTS}/test_knapsack.py::test_no_time_means_the_best_so_far_and_its_bound",),
    ),
    Fault(
        name="multiply-adds are counted for one position",
        file=f"{ALLOCATION}/costs.py",
        old="return [whole(layer.positions * number) for number in kept]",
        new="return [whole(number) for number in kept]",
        tests=(f"{TESTS}/test_allocate.py::test_every_plan_there_is",),
    ),
    Fault(
        name="a shared weight is counted in the budget once for each layer",
        file=f"{ALLOCATION}/domino_run.py",
        old=(
            "            layer.kept_weights if by_params else layer.multiply_adds "
            "for layer in self.layers\n"
        ),
        new=(
            "            (layer.kept_weights if by_params else layer.multiply_adds)"
            " * len(layer.entries)\n            for layer in self.layers\n"
        ),
        tests=(
            f"{TESTS}/test_domino_models.py::test_attention_grouped_convolutions_and_tied_weights",
        ),
    ),
    Fault(
        name="DominoSearch goes on when the budget is met",
        file=f"{ALLOCATION}/domino_run.py",
        old="                if self.cost <= self.budget.limit:\n                    return True\n",
        new="",
        tests=(f"{TESTS}/test_domino.py::test_agreement",),
    ),
    Fault(
        name="ERK forgets the kernel",
        file=f"{ALLOCATION}/erk.py",
        old="raw = [sum(shape) / size for",
        new="raw = [sum(shape[:2]) / size for",
        tests=(f"{TESTS}/test_erk.py::test_by_hand",),
    ),
    Fault(
        name="ERK does not share out again what dense layers take",
        file=f"{ALLOCATION}/erk.py",
        old="        left -= sum(sizes[i] for i in full)\n",
        new="",
        tests=(f"{TESTS}/test_erk.py::test_small_layers_are_dense",),
    ),
    Fault(
        name="losses are of signed weights",
        file=f"{ALLOCATION}/mask_losses.py",
        old="worth = weight.double().abs() if scores is None",
        new="worth = weight.double() if scores is None",
        tests=(f"{TESTS}/test_losses.py::test_scores_lost_are_those_of_exact_masks",),
    ),
    Fault(
        name="losses are of greedy masks",
        file=f"{ALLOCATION}/mask_losses.py",
        old='solve_mask(fits[candidate], weight, given, "exact")',
        new='solve_mask(fits[candidate], weight, given, "greedy")',
        tests=(f"{TESTS}/test_losses.py::test_scores_lost_are_those_of_exact_masks",),
    ),
)
