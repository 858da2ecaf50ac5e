"""Faults in the command line and in the files that it writes."""

from tests.faults.planting import Fault

CLI = "nmsolve/cli"
TESTS = "tests/cli"

FAULTS = (
    Fault(
        name="a violation exits with 0",
        file=f"{CLI}/masks.py",
        old="    return 0 if found else 1\n",
        new="    return 0\n",
        tests=(f"{TESTS}/test_checkpoints.py::test_verify",),
    ),
    Fault(
        name="a violation in an array exits with 0",
        file=f"{CLI}/arrays.py",
        old="    if not report:\n        return 1\n",
        new="    if not report:\n        return 0\n",
        tests=(f"{TESTS}/test_commands.py::test_verify_reports_and_exits_with_1_for_a_violation",),
    ),
    Fault(
        name="bad input exits with 1, which is a verdict",
        file=f"{CLI}/__init__.py",
        old="            else error\n        )\n        return 2, False\n",
        new="            else error\n        )\n        return 1, False\n",
        tests=(f"{TESTS}/test_commands.py::test_bad_input_is_one_line_and_exit_code_2",),
    ),
    Fault(
        name="an error of nmsolve's own exits with 1, which is a verdict",
        file=f"{CLI}/__init__.py",
        old="                code = 3\n",
        new="                code = 1\n",
        tests=(f"{TESTS}/test_streams.py::test_an_error_inside_is_no_verdict",),
    ),
    Fault(
        name="a closed stdout ends in a traceback",
        file=f"{CLI}/streams.py",
        old="    def write(self, text: str, /) -> int:\n        if self.failure is None:\n"
        "            try:\n                return self.stream.write(text)\n"
        "            except OSError as error:\n                self._give_up(error)\n",
        new="    def write(self, text: str, /) -> int:\n        self.stream.write(text)\n"
        "        self.stream.flush()\n",
        tests=(f"{TESTS}/test_streams.py::test_a_run_ends_well_whatever_its_streams_do",),
    ),
    Fault(
        name="a result that is nowhere is a success",
        file=f"{CLI}/__init__.py",
        old='        show_error(f"stdout cannot be written: {lost}")\n        return 2\n',
        new='        show_error(f"stdout cannot be written: {lost}")\n        return 0\n',
        tests=(f"{TESTS}/test_streams.py::test_a_result_that_is_nowhere_is_a_failure",),
    ),
    Fault(
        name="Ctrl-C exits with 1",
        file="nmsolve/starting.py",
        old="INTERRUPTED = 130\n",
        new="INTERRUPTED = 1\n",
        tests=(f"{TESTS}/test_checkpoints.py::test_ctrl_c_leaves_a_state_and_says_how_to_go_on",),
    ),
    Fault(
        name="Ctrl-C does not say how to go on",
        file=f"{CLI}/runs.py",
        old='return shlex.join(["nmsolve", *arguments, "--resume"])',
        new='return shlex.join(["nmsolve", *arguments])',
        tests=(f"{TESTS}/test_checkpoints.py::test_ctrl_c_leaves_a_state_and_says_how_to_go_on",),
    ),
    Fault(
        name="a file is replaced without --force",
        file="nmsolve/output.py",
        old="        if ours is None or not ours(_beginning(self._place)):\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_outputs.py::test_a_mask_replaces_nothing",),
    ),
    Fault(
        name="an input is replaced by --force",
        file="nmsolve/output.py",
        old="            self._check_inputs(before, inputs)\n",
        new="",
        tests=(f"{TESTS}/test_outputs.py::test_an_input_is_never_replaced",),
    ),
    Fault(
        name="what appeared meanwhile is replaced",
        file="nmsolve/output.py",
        old="            os.link(made, self._place)\n",
        new="            os.replace(made, self._place)\n            return\n",
        tests=(f"{TESTS}/test_outputs.py::test_what_appears_or_changes_meanwhile_stays",),
    ),
    Fault(
        name="--pattern GLOB=PATTERN behind one for all tensors is never asked",
        file=f"{CLI}/options.py",
        old='        found["*"] = found.pop("*")',
        new="        pass",
        tests=(
            f"{TESTS}/test_checkpoints.py::test_the_pattern_may_be_given_as_for_the_other_commands",
        ),
    ),
    Fault(
        name="names drive the terminal",
        file=f"{CLI}/printing.py",
        old='c if c.isprintable() or c == "\\n" else',
        new="c if c else",
        tests=("tests/checkpoint/test_hostile_folders.py::test_file_names_that_drive_a_terminal",),
    ),
    Fault(
        name="the command line loads packages that only checkpoints need",
        file=f"{CLI}/checkpoints.py",
        old="from nmsolve.output import is_stdout\n",
        new="import rich\n\nfrom nmsolve.output import is_stdout\n",
        tests=(f"{TESTS}/test_checkpoints.py::test_the_command_line_is_lean",),
    ),
)
