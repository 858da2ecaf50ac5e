"""Faults in models that are offloaded."""

from tests.faults.planting import Fault

OFFLOAD = "nmsolve/torch/offload"
TESTS = "tests/offload"
INSIDE, FILES = f"{TESTS}/test_changes_inside.py", f"{TESTS}/test_files.py"
NOTHING = f"{TESTS}/test_all_or_nothing.py"

FAULTS = (
    Fault(
        name="offloaded weights are given back while somebody holds a view of them",
        file=f"{OFFLOAD}/lent_parameter.py",
        old="            if here.users or _is_shared(here.values):\n                continue",
        new="            if here.users:\n                continue",
        tests=(f"{INSIDE}::test_views_that_are_held_are_written_to_later",),
    ),
    Fault(
        name="offloaded weights that changed through other memory are not written",
        file=f"{OFFLOAD}/lent_parameter.py",
        old="if not changed and here.exposed:",
        new="if False and here.exposed:",
        tests=(f"{INSIDE}::test_every_way_to_change_a_weight",),
    ),
    Fault(
        name="what takes an offloaded weight's place is lost",
        file=f"{OFFLOAD}/context.py",
        old="    if other:\n",
        new="    if False:\n",
        tests=(f"{INSIDE}::test_what_would_be_lost_is_refused",),
    ),
    Fault(
        name="values that are read in inference mode cannot be changed outside of it",
        file=f"{OFFLOAD}/lent_parameter.py",
        old="with torch.inference_mode(False), torch.no_grad():  # to",
        new="with torch.no_grad():  # to",
        tests=(f"{INSIDE}::test_every_way_to_change_a_weight",),
    ),
    Fault(
        name="a large weight goes before the next small one comes",
        file=f"{OFFLOAD}/lent_parameter.py",
        old="for here in self._here.values() if here.size <= self._room)",
        new="for here in self._here.values())",
        tests=(f"{INSIDE}::test_the_room",),
    ),
    Fault(
        name="codes of quantized weights are read as weights",
        file=f"{OFFLOAD}/held.py",
        old="return stored == wanted or (",
        new="return True or (",
        tests=(f"{FILES}::test_dtypes_that_torch_or_plain_weights_do_not_have",),
    ),
    Fault(
        name="a file of weights that was replaced is read on",
        file=f"{OFFLOAD}/shards.py",
        old="if stamp_of(now) != self.stamp:",
        new="if False:",
        tests=(f"{FILES}::test_files_that_change_meanwhile",),
    ),
    Fault(
        name="two runs write one copy",
        file=f"{OFFLOAD}/homes.py",
        old="fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        new="fcntl.LOCK_NB",
        tests=(f"{FILES}::test_two_runs_to_one_place",),
    ),
    Fault(
        name="what appeared at the copy's place is overwritten",
        file=f"{OFFLOAD}/homes.py",
        old="if _is_taken(self._out):",
        new="if False:",
        tests=(f"{FILES}::test_a_place_that_is_taken_meanwhile",),
    ),
    Fault(
        name="a failure brings the source back instead of an earlier result",
        file=f"{OFFLOAD}/homes.py",
        old="return not self._changed.intersection(names)",
        new="return True",
        tests=(f"{NOTHING}::test_errors_that_the_user_catches",),
    ),
    Fault(
        name="a failure in a block leaves a half changed copy",
        file=f"{OFFLOAD}/context.py",
        old="        home.discard()\n",
        new="        home.publish()\n",
        tests=(f"{NOTHING}::test_errors_that_leave_the_block",),
    ),
    Fault(
        name="statistics of batch norms stay in memory",
        file=f"{OFFLOAD}/context.py",
        old="        home.write(one.names, now)\n",
        new="        pass\n",
        tests=(f"{TESTS}/test_as_in_memory.py::test_statistics_of_batch_norms_are_written",),
    ),
    Fault(
        name="offloaded weights are not seen as such around a layer, and forwards stop there",
        file="nmsolve/torch/calibration/suspended.py",
        old="        torch._C._is_torch_function_enabled(),\n",
        new="",
        tests=(f"{INSIDE}::test_layers_in_a_context_that_hides_offloaded_weights",),
    ),
    Fault(
        name="all masks are in memory before the first offloaded weight is masked",
        file="nmsolve/torch/pruning/one_shot.py",
        old="        if any(is_lent(layer.parameter) for layer in layers):",
        new="        if False:",
        tests=(f"{TESTS}/test_memory.py::test_no_memory_grows_with_the_number_of_blocks",),
    ),
)
