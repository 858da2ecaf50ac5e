"""Faults in `nmsolve prune`: names, files on disk, runs that are gone on with, the page."""

from tests.faults.planting import Fault

CHECKPOINT = "nmsolve/checkpoint"
TESTS = "tests/checkpoint"

FAULTS = (
    Fault(
        name="a tensor is pruned though nothing is known of its name",
        file=f"{CHECKPOINT}/names.py",
        old="        if own not in known and above not in known:\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_names.py::test_what_is_not_known_stays_dense",),
    ),
    Fault(
        name="a head that may stand for its embedding is pruned",
        file=f"{CHECKPOINT}/names.py",
        old="if word in _HEADS and fits is None and not self._has_table(shape):",
        new="if False:",
        tests=(f"{TESTS}/test_names.py::test_a_head_without_an_embedding_may_be_one",),
    ),
    Fault(
        name="a head that is tied to its embedding is pruned",
        file=f"{CHECKPOINT}/ties.py",
        old="        if same:\n            found[name]",
        new="        if False:\n            found[name]",
        tests=(f"{TESTS}/test_names.py::test_a_tied_head_that_is_stored_twice",),
    ),
    Fault(
        name="a quantized weight is pruned as if its codes were numbers",
        file=f"{CHECKPOINT}/names.py",
        old="        if any(mark.format(name, stem=stem) in self._shapes for mark in _BESIDE):\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_names.py::test_a_weight_with_its_quantized_form_beside_it",),
    ),
    Fault(
        name="Conv1D in a checkpoint is taken for (out, in)",
        file=f"{CHECKPOINT}/names.py",
        old="        return 1 if self._conv1d_axes == {0} else 0\n",
        new="        return 1\n",
        tests=(f"{TESTS}/test_names.py::test_biases_decide",),
    ),
    Fault(
        name="scales that differ within a group do not keep a weight dense",
        file=f"{CHECKPOINT}/scales.py",
        old="if any(widths[a] % pattern.m and widths[a] < tensor.shape[a] for a in axes):",
        new="if False:",
        tests=(f"{TESTS}/test_float8.py::test_scales_let_through_what_they_do_not_change",),
    ),
    Fault(
        name="a mask's file does not say along which axis",
        file=f"{CHECKPOINT}/masks.py",
        old='            "axis": plan.axis,\n',
        new="",
        tests=(f"{TESTS}/test_format.py::test_masks_byte_for_byte",),
    ),
    Fault(
        name="masks of another checkpoint are accepted",
        file=f"{CHECKPOINT}/masks.py",
        old="        if entry.shape != tensor.shape or not isinstance(tensor, StoredNumbers):\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_hostile_masks.py::test_masks_of_other_tensors",),
    ),
    Fault(
        name="dropped weights are multiplied by zero, which leaves -0",
        file=f"{CHECKPOINT}/solving.py",
        old="    np.multiply(bits, mask.view(np.uint8), out=bits)\n",
        new="    np.multiply(array, mask, out=array, casting='unsafe')\n",
        tests=(f"{TESTS}/test_prune.py::test_zeros_are_positive_and_kept_weights_keep_their_bits",),
    ),
    Fault(
        name="|W| is summed with signs",
        file=f"{CHECKPOINT}/solving.py",
        old="return float(np.add.reduce(np.abs(wide), dtype=np.float64))",
        new="return float(np.add.reduce(wide, dtype=np.float64))",
        tests=(f"{TESTS}/test_prune.py::test_the_report_says_what_solve_says",),
    ),
    Fault(
        name="a tensor is journalled before its bytes are on the disk",
        file=f"{CHECKPOINT}/writer.py",
        old=(
            "            for descriptor in self._open.values():\n"
            "                os.fdatasync(descriptor)\n"
            "            lines"
        ),
        new="            lines",
        tests=(f"{TESTS}/test_kills.py::test_only_what_is_on_the_disk_is_named",),
    ),
    Fault(
        name="files are renamed before they are on the disk",
        file=f"{CHECKPOINT}/publishing.py",
        old="            sync_file(made)\n",
        new="            pass\n",
        tests=(f"{TESTS}/test_kills.py::test_only_what_is_on_the_disk_is_named",),
    ),
    Fault(
        name="what was published is noted by nothing, so that a kill loses it",
        file=f"{CHECKPOINT}/journal.py",
        old="        write_whole(self.path / PUBLISH, json.dumps(self._relative(moves)))\n"
        "        self.go_on_publishing(moves)\n",
        new="        for made, place in moves:\n"
        "            place.parent.mkdir(parents=True, exist_ok=True)\n"
        "            os.rename(made, place)\n"
        "        shutil.rmtree(self.path)\n"
        "        self.release()\n",
        tests=(f"{TESTS}/test_kills.py::test_a_kill_at_every_call_to_the_system",),
    ),
    Fault(
        name="a run goes on with another pattern",
        file=f"{CHECKPOINT}/resuming.py",
        old="        if differences:\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_kills.py::test_only_the_same_run_goes_on",),
    ),
    Fault(
        name="a finished run with other options is taken for this one",
        file=f"{CHECKPOINT}/finished.py",
        old="        if report.settings.get(key) != now.settings.get(key):\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_finished.py::test_other_options",),
    ),
    Fault(
        name="what a finished run wrote is not looked at again",
        file=f"{CHECKPOINT}/finished.py",
        old="    _check_values(job, {tensor.name: tensor for tensor in report.tensors})\n",
        new="",
        tests=(f"{TESTS}/test_finished.py::test_what_was_written_is_damaged",),
    ),
    Fault(
        name="two runs write one checkpoint",
        file=f"{CHECKPOINT}/journal.py",
        old="            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        new="            pass\n",
        tests=(f"{TESTS}/test_kills.py::test_two_runs_do_not_write_one_checkpoint",),
    ),
    Fault(
        name="what appeared at the destination is overwritten",
        file=f"{CHECKPOINT}/journal.py",
        old="            if os.path.lexists(place):\n",
        new="            if False:\n",
        tests=(
            f"{TESTS}/test_hostile_places.py::test_what_appears_at_the_destination_meanwhile_stays",
        ),
    ),
    Fault(
        name="verify of a checkpoint does not see weights that a mask drops",
        file=f"{CHECKPOINT}/verification.py",
        old="return (self.report is None or self.report.ok) and not self.strays",
        new="return self.report is None or self.report.ok",
        tests=(f"{TESTS}/test_format.py::test_verify_finds_every_violation",),
    ),
    Fault(
        name="a tensor whose mask is gone is no violation",
        file=f"{CHECKPOINT}/verification.py",
        old="    if gone:\n",
        new="    if False:\n",
        tests=(
            f"{TESTS}/test_other_runs.py::test_a_shard_whose_masks_are_gone_is_no_shard_that_holds",
        ),
    ),
    Fault(
        name="a report certifies the mask of another run",
        file=f"{CHECKPOINT}/reporting.py",
        old="        another = entry.mask_digest not in (None, mask_digest)\n",
        new="        another = False\n",
        tests=(f"{TESTS}/test_other_runs.py::test_the_complement_of_a_mask_is_not_certified",),
    ),
    Fault(
        name="names go into the page as markup",
        file=f"{CHECKPOINT}/page/markup.py",
        old='Html(escape(_FORBIDDEN.sub("\\ufffd", text)))',
        new='Html(_FORBIDDEN.sub("\\ufffd", text))',
        tests=(f"{TESTS}/test_page.py::test_hostile_text_stays_text",),
    ),
    Fault(
        name="ranks leave out tensors between them",
        file=f"{CHECKPOINT}/share.py",
        old="if int(middle * size) == rank]",
        new="if round(middle * size) == rank]",
        tests=(f"{TESTS}/test_ranks.py::test_ranks_write_what_one_process_writes",),
    ),
    Fault(
        name="shards that are missing are passed over",
        file=f"{CHECKPOINT}/choosing.py",
        old="            if shard not in names:\n",
        new="            if False:\n",
        tests=(f"{TESTS}/test_hostile_folders.py::test_shards_that_are_missing_or_damaged",),
    ),
)
