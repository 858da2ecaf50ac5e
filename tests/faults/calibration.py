"""Faults in calibration: scores, inputs of layers, padding, token lists, perplexity."""

from tests.faults.planting import Fault

CALIBRATION = "nmsolve/torch/calibration"
TESTS = "tests/pruning"

FAULTS = (
    Fault(
        name="forwards find weights from before they were pruned in autocast's cache",
        file=f"{CALIBRATION}/suspended.py",
        old="        torch.clear_autocast_cache()  # it holds",
        new="        # it holds",
        tests=(f"{TESTS}/test_hazards.py::test_autocast_around_it_does_not_hide_what_was_pruned",),
    ),
    Fault(
        name="contexts around layers are not seen",
        file=f"{CALIBRATION}/suspended.py",
        old="if self.at is not None and _surroundings() != before:",
        new="if False:",
        tests=(f"{TESTS}/test_suspended.py::test_contexts_around_layers",),
    ),
    Fault(
        name="a forward that goes on after its end stops again",
        file=f"{CALIBRATION}/suspended.py",
        old="    if here is not None and here.ended:\n        raise GreenletExit",
        new="    if False:\n        raise GreenletExit",
        tests=(f"{TESTS}/test_forwards_that_end.py::test_models_that_catch_their_end",),
    ),
    Fault(
        name="an interrupt that only ends a forward is none",
        file=f"{CALIBRATION}/suspended.py",
        old="if isinstance(end, GreenletExit):",
        new="if False:",
        tests=(f"{TESTS}/test_forwards_that_end.py::test_interrupts_wherever_a_forward_is",),
    ),
    Fault(
        name="activations move to files though arrays share their memory",
        file=f"{CALIBRATION}/parked.py",
        old="sole = storage.resizable() and ",
        new="sole = not _is_parked(storage) and ",
        tests=(f"{TESTS}/test_parked.py::test_what_others_may_hold_stays_in_memory",),
    ),
    Fault(
        name="activations move to files though other tensors share their memory",
        file=f"{CALIBRATION}/parked.py",
        old="return holders == len(tensors) + 1",
        new="return True",
        tests=(f"{TESTS}/test_parked.py::test_what_others_may_hold_stays_in_memory",),
    ),
    Fault(
        name="activations that were read from files stay in memory",
        file=f"{CALIBRATION}/parked.py",
        old="elif _is_parked(storage) and self._advise is not None:",
        new="elif False:",
        tests=(f"{TESTS}/test_parked.py::test_views_and_changes_in_place_go_together",),
    ),
    Fault(
        name="what a model keeps of its activations stays in files",
        file=f"{CALIBRATION}/parked.py",
        old="                    _put(tensors, storage.clone())",
        new="                    pass",
        tests=(f"{TESTS}/test_parked.py::test_views_and_changes_in_place_go_together",),
    ),
    Fault(
        name="products with differences of inputs fill half of a sum",
        file=f"{CALIBRATION}/second_moments.py",
        old="            factors.append((z, x, False))",
        new="            factors.append((z, x, True))",
        tests=(f"{TESTS}/test_second_moments.py::test_sums_are_near_products_in_float64",),
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
        name="what is gathered by outputs forgets where the moments are taken about",
        file=f"{CALIBRATION}/second_moments.py",
        old="gap = (self.gap + (2 * self.apart + count * left) * left).to(kind)",
        new="gap = self.gap.to(kind)",
        tests=(
            f"{TESTS}/test_second_moments.py::"
            "test_moments_about_the_means_lose_nothing_to_large_means",
        ),
    ),
    Fault(
        name="sums by one layer's outputs are taken for another's",
        file="nmsolve/torch/pruning/side_by_side.py",
        old="        if self.shared.fitted.by_outputs:\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_second_moments.py::test_sums_by_outputs_are_one_layers_alone",),
    ),
    Fault(
        name="moments of the inputs are those of the last samples",
        file=f"{CALIBRATION}/second_moments.py",
        old="                sums += product\n",
        new="                sums.copy_(product)\n",
        tests=(f"{TESTS}/test_second_moments.py",),
    ),
    Fault(
        name="padding counts in the inputs of layers",
        file=f"{CALIBRATION}/activations.py",
        old="                matrix = matrix if rows is None else matrix[rows]\n",
        new="",
        tests=(f"{TESTS}/test_padding.py::test_padding_is_kept_out_of_gram_matrices",),
    ),
    Fault(
        name="tokens that an expert gets are taken for all tokens in order",
        file=f"{CALIBRATION}/padding.py",
        old="flat = inputs.dim() == 2 and path not in self._unknown",
        new="flat = inputs.dim() == 2",
        tests=(f"{TESTS}/test_padding.py::test_tokens_that_experts_get_all_count",),
    ),
    Fault(
        name="as many tokens as texts are taken to lie texts first",
        file=f"{CALIBRATION}/padding.py",
        old="return mask.shape[0] != mask.shape[1] or torch.equal(mask, mask.T)",
        new="return True",
        tests=(f"{TESTS}/test_padding.py::test_as_many_tokens_as_texts_tell_no_layout",),
    ),
    Fault(
        name="a decoder's padding is taken for its encoder's",
        file=f"{CALIBRATION}/padding.py",
        old="if all(torch.equal(other, mask) for other, _ in fits[1:]):",
        new="if True:",
        tests=(
            f"{TESTS}/test_padding.py::test_sequences_of_one_length_are_not_taken_for_each_other",
        ),
    ),
    Fault(
        name="labels beside ids become a row of positions",
        file=f"{CALIBRATION}/token_lists.py",
        old="if [len(row) for row in rows] != lengths or isinstance(value[0], list) != nested:",
        new="if False:",
        tests=(f"{TESTS}/test_token_lists.py::test_lists_that_fit_no_tensor_are_refused",),
    ),
    Fault(
        name="perplexity scores tokens of overlapping windows twice",
        file="nmsolve/torch/language.py",
        old="start = max(scored, first + 1)",
        new="start = first + 1",
        tests=(f"{TESTS}/test_perplexity.py::test_it_is_that_of_the_plain_loop",),
    ),
    Fault(
        name="perplexity takes log-probabilities in bfloat16",
        file="nmsolve/torch/language.py",
        old="        wide = some.to(kind)\n",
        new="        wide = some\n",
        tests=(
            f"{TESTS}/test_perplexity.py::test_log_probabilities_of_low_precision_are_in_float32",
        ),
    ),
    Fault(
        name="models that see what they predict have a perplexity",
        file="nmsolve/torch/causal.py",
        old="    if difference > rounding * ",
        new="    if difference > 1e9 * ",
        tests=(f"{TESTS}/test_perplexity.py::test_models_that_see_what_they_predict_are_refused",),
    ),
    Fault(
        name="perplexity leaves a model without its cache",
        file="nmsolve/torch/causal.py",
        old="            config.use_cache = True\n",
        new="            pass\n",
        tests=(f"{TESTS}/test_perplexity.py::test_it_leaves_no_trace_and_no_cache_is_kept",),
    ),
)
