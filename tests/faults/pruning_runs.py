"""Faults on the way of the calibration through a model."""

from tests.faults.planting import Fault
from tests.faults.pruning import PROBLEM, PRUNING, TESTS

FAULTS = (
    Fault(
        name="nothing is held out of what comes to rare layers",
        file=f"{PRUNING}/side_by_side.py",
        old="items=len(uses),",
        new="items=len(self.leading),",
        tests=(f"{TESTS}/test_problems.py::test_a_tenth_is_held_out_of_what_comes_to_a_layer",),
    ),
    Fault(
        name="whole passes gather under the model's autocast",
        file=f"{PRUNING}/collect.py",
        old="        with torch.autocast(use.inputs[0].device.type, enabled=False):",
        new="        with nullcontext():",
        tests=(f"{TESTS}/test_suspended.py::test_autocast_around_narrow_layers_in_whole_passes",),
    ),
    Fault(
        name="what catches up runs without the caller's autocast",
        file=f"{PRUNING}/side_by_side.py",
        old="                walk.catch_up(layer)\n                with layer.at_work():\n",
        new="                with layer.at_work():\n                    walk.catch_up(layer)\n",
        tests=(
            f"{TESTS}/test_suspended.py::"
            "test_dense_forwards_that_catch_up_do_so_under_the_callers_autocast",
        ),
    ),
    Fault(
        name="calls with empty inputs take turns at being held out",
        file=f"{PRUNING}/collect.py",
        old="        if not all(x.numel() for x in use.inputs):",
        new="        if False:",
        tests=(
            f"{TESTS}/test_flows.py::test_a_tenth_of_the_items_that_give_a_layer_rows_is_held_out",
        ),
    ),
    Fault(
        name="of an expert that loses items in whole passes nothing is held out",
        file=f"{PRUNING}/collect.py",
        old="    if fewer:\n",
        new="    if False:\n",
        tests=(
            f"{TESTS}/test_flows.py::"
            "test_an_expert_that_loses_an_item_once_others_are_pruned_keeps_its_tenth",
        ),
    ),
    Fault(
        name="held-out inputs are taken about the means of others",
        file=f"{PRUNING}/layer_inputs.py",
        old="means = None if self.about is None else self.held_out_sums.means",
        new="means = self.about",
        tests=(f"{TESTS}/test_held_out.py::test_errors_are_those_of_the_layer_itself",),
    ),
    Fault(
        name="memory that ran out beside other forwards takes another way",
        file="nmsolve/torch/calibration/inputs.py",
        old="raise explain(error, what, device_of(model), LESS_MEMORY) or InputError(",
        new="raise InputError(",
        tests=(f"{TESTS}/test_out_of_memory.py::test_out_of_memory_in_block_17_of_30",),
    ),
    Fault(
        name="a bias that is not added is fitted",
        file=f"{PRUNING}/stages.py",
        old="if not use.biased:",
        new="if False:",
        tests=(f"{TESTS}/test_problems.py::test_a_bias_that_is_not_added_is_not_fitted",),
    ),
    Fault(
        name="Ctrl-C leaves a model half pruned",
        file=f"{PRUNING}/layerwise.py",
        old="    except BaseException:\n",
        new="    except Exception:\n",
        tests=(
            f"{TESTS}/test_errors.py::test_whatever_interrupts_leaves_the_model_as_it_was",
            f"{TESTS}/test_errors.py::test_interrupts_between_layers_leave_the_model_as_it_was",
        ),
    ),
    Fault(
        name="dense weights come back in another order than they were kept",
        file=f"{PRUNING}/dense_copies.py",
        old="self._file.seek(place)",
        new="self._file.seek(0)",
        tests=(
            f"{TESTS}/test_errors.py::test_interrupts_between_layers_leave_the_model_as_it_was",
        ),
    ),
    Fault(
        name="a warning that is an error leaves a model pruned",
        file=f"{PRUNING}/layerwise.py",
        old="            notes = notes_on(step.layers, how.padding, heads)\n",
        new="    notes = notes_on(step.layers, how.padding, heads)\n",
        tests=(
            f"{TESTS}/test_unreached.py::test_warnings_that_are_errors_leave_the_model_as_it_was",
        ),
    ),
    Fault(
        name="layers that are not reached are an error, whatever is asked for",
        file=f"{PRUNING}/layerwise.py",
        old='(missing and options.unreached == "error")',
        new="missing",
        tests=(f"{TESTS}/test_unreached.py::test_they_are_masked_by_magnitude_and_that_is_said",),
    ),
    Fault(
        name="batch norms keep the statistics of the dense model",
        file=f"{PRUNING}/layerwise.py",
        old="            put(statistics)\n            # Warnings",
        new="            # Warnings",
        tests=(
            f"{TESTS}/test_adaprune.py::test_batch_norms_get_the_statistics_of_the_pruned_model",
        ),
    ),
    Fault(
        name="statistics of batch norms forget earlier batches",
        file=f"{PRUNING}/batch_norm.py",
        old="                norm.momentum = None  # a plain mean\n",
        new="",
        tests=(
            f"{TESTS}/test_adaprune.py::test_batch_norms_get_the_statistics_of_the_pruned_model",
        ),
    ),
    Fault(
        name="batch norms in front of what is pruned get new statistics",
        file=f"{PRUNING}/batch_norm.py",
        old="norm.training = behind and bool(x.numel())",
        new="norm.training = bool(x.numel())",
        tests=(f"{TESTS}/test_flows.py::test_batch_norms_that_only_some_items_come_to",),
    ),
    Fault(
        name="a pruned input is paired with the dense one of another item",
        file=f"{PRUNING}/side_by_side.py",
        old="at, other = self._stop(leading, layer), self._stop(dense, layer)",
        new="at, other = self._stop(leading, layer), self._stop(self.dense[-1], layer)",
        tests=(PROBLEM,),
    ),
    Fault(
        name="a tensor that has changed shares the sums from before",
        file=f"{PRUNING}/side_by_side.py",
        old="version == other >= 0 and taken == before",
        new="taken == before",
        tests=(f"{TESTS}/test_problems.py::test_a_tensor_that_a_layer_changes_is_another_input",),
    ),
    Fault(
        name="convolutions that meet other pixels share their sums",
        file=f"{PRUNING}/side_by_side.py",
        old="version == other >= 0 and taken == before",
        new="version == other >= 0",
        tests=(
            f"{TESTS}/test_side_by_side.py::"
            "test_convolutions_that_take_the_same_tensor_differently",
        ),
    ),
    Fault(
        name="a dense forward that is overtaken goes on with pruned weights",
        file=f"{PRUNING}/side_by_side.py",
        old="self.dense = [None if other is forward else other for other in self.dense]\n"
        "                raise _Overtaken\n",
        new="return\n",
        tests=(
            f"{TESTS}/test_problems.py::test_a_dense_forward_that_is_overtaken_tells_nothing_more",
        ),
    ),
    Fault(
        name="a context that a model has entered stays entered",
        file=f"{PRUNING}/side_by_side.py",
        old="                self.begun[-1].end()\n",
        new="",
        tests=(f"{TESTS}/test_suspended.py::test_contexts_around_layers",),
    ),
    Fault(
        name="all items draw the same random numbers",
        file=f"{PRUNING}/side_by_side.py",
        old="self.seed + index",
        new="self.seed",
        tests=(f"{TESTS}/test_suspended.py::test_numbers_that_are_drawn_in_eval_mode",),
    ),
    Fault(
        name="what a model keeps of an item is another item's",
        file=f"{PRUNING}/side_by_side.py",
        old="            kept = self.traces.first()\n",
        new="            kept = None\n",
        tests=(f"{TESTS}/test_kept_by_models.py::test_what_is_kept_of_some_items_alone",),
    ),
    Fault(
        name="only the dense model's first item is compared with how it went alone",
        file=f"{PRUNING}/side_by_side.py",
        old='targets = self.how.targets == "dense" or index == 0',
        new='targets = self.how.targets == "dense"',
        tests=(f"{TESTS}/test_kept_by_models.py::test_models_that_keep_something_of_an_item",),
    ),
    Fault(
        name="a model that swallows an error hides that its forwards met",
        file=f"{PRUNING}/side_by_side.py",
        old="        if self.inseparable is not None:\n            raise self.inseparable\n",
        new="",
        tests=(
            f"{TESTS}/test_suspended.py::test_exceptions_that_a_model_swallows_stay_what_they_are",
        ),
    ),
    Fault(
        name="items that come to a layer late are missed where no other layer is left",
        file=f"{PRUNING}/side_by_side.py",
        old="not (last and self.visits[forward] == self.done)",
        new="not last",
        tests=(f"{TESTS}/test_side_by_side.py::test_items_that_go_other_ways",),
    ),
    Fault(
        name="an expert is pruned before all items have come to it",
        file=f"{PRUNING}/order.py",
        old="            if before:\n                return max(before)",
        new="            if False:\n                return max(before)",
        tests=(f"{TESTS}/test_side_by_side.py::test_experts_are_pruned_one_after_the_other",),
    ),
    Fault(
        name="a dense forward waits at an expert that nobody else comes to",
        file=f"{PRUNING}/side_by_side.py",
        old="                walk.catch_up(layer)\n",
        new="",
        tests=(f"{TESTS}/test_side_by_side.py::test_the_result_is_that_of_whole_passes",),
    ),
    Fault(
        name="dense attention multiplies by projections that are pruned",
        file=f"{PRUNING}/side_by_side.py",
        old="        if dense and use.call is call:\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_side_by_side.py::test_blocks_run_twice_an_item_whatever_the_depth",),
    ),
    Fault(
        name="what a full disk did not take is written again",
        file=f"{PRUNING}/dense_copies.py",
        old="dir=self._folder, buffering=0)",
        new="dir=self._folder)",
        tests=(
            f"{TESTS}/test_dense_copies.py::test_copies_that_were_kept_before_the_disk_was_full",
        ),
    ),
)
