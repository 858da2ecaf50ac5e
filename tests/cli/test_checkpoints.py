"""The command line of checkpoints: what it prints, writes and returns, on a terminal and
elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nmsolve import InputError, checkpoint
from nmsolve.cli import main
from tests.checkpoint.checkpoint_files import contents, weights, write_folder

COMMANDS = ("completion", "demo", "diversity", "methods", "prune", "report", "solve", "verify")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    write_folder(tmp_path / "dense")
    return tmp_path / "dense"


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nmsolve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )  # type: ignore[call-overload, no-any-return]


def test_prune_prints_a_table_and_plain_lines(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "prune",
                str(dense),
                str(tmp_path / "out"),
                "--pattern",
                "2:4T",
                "--exclude",
                "lm_head",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert re.search(
        r"^model\.layers\.0\.mlp\.up_proj\.weight +BF16 +64×32 +2:4T +\d\d\.\d\d % +\S+ +optimal$",
        printed.out,
        re.MULTILINE,
    )
    assert "excluded" in printed.out
    assert "18 of 23 tensors pruned" in printed.out
    assert f"written to {tmp_path / 'out'} in " in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 18
    assert all(re.fullmatch(r"\d+/23  \S+  2:4T  \S+ Mw/s  \S+ s left", line) for line in lines)
    assert "\x1b" not in printed.err + printed.out


def test_prune_says_what_masks_by_magnitude_do_to_language_models(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its last lines, on stderr if stdout is JSON, and in its help: with what to do instead,
    which exists.
    """
    import nmsolve.torch as nmt

    for options in ([], ["--json"]):
        assert (
            main(
                ["prune", str(dense), str(tmp_path / f"out{options}"), "--pattern", "2:4", *options]
            )
            == 0
        )
        printed = capsys.readouterr()
        last = " ".join((printed.err if options else printed.out).splitlines()[-3:])
        assert last.startswith("Every mask keeps the largest |W|")
        assert "ruins a language model" in last
        assert ("ruins" in printed.err, "ruins" in printed.out) == (bool(options), not options)
        named = set(re.findall(r"\w+_(?=\W)", last))
        assert named == {"sparsegpt_", "adaprune_", "sparsify_"}
        assert all(callable(getattr(nmt, name)) for name in named)
        for page in re.findall(r"docs/\w+\.md", last):
            assert (Path(__file__).parents[2] / page).exists()
    for page in ("README.md", "docs/checkpoints.md"):
        text = (Path(__file__).parents[2] / page).read_text()
        assert re.search(r"\*\*[^*]*ruin[^*]*\*\*[^#]*tens of\s+times", text)
        assert "sparsegpt_" in text
    assert main(["prune", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ruined (tens of times the perplexity at 2:4) unless it is trained further" in text
    assert "sparsegpt_" in text


@pytest.mark.parametrize("rank", ["0", "3"])
def test_a_rank_of_another_program_silences_nothing(
    rank: str,
    dense: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["prune", str(dense), str(tmp_path / "out"), "--pattern", "2:4"]) == 0
    assert "19 of 23 tensors pruned" in capsys.readouterr().out


def test_a_run_that_was_finished_before_writes_nothing_and_says_so(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", str(dense), str(tmp_path / "out"), "--pattern", "2:4", "--resume"]
    assert main(command) == 0
    assert f"written to {tmp_path / 'out'} in " in capsys.readouterr().out
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "written to" not in printed
    assert f"{tmp_path / 'out'} was finished before, and is as it was written" in printed


def test_messages_name_options_as_a_shell_has_them(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And as Python has them where Python asked."""
    out = tmp_path / "out"
    with pytest.raises(InputError, match="include='absent' matches no layer"):
        checkpoint.prune(dense, out, "2:4", include="absent")
    assert main(["prune", str(dense), str(out), "2:4", "--include", "absent"]) == 2
    assert "--include absent matches no layer" in capsys.readouterr().err

    def stop(event: checkpoint.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(dense, out, "2:4", progress=stop)
    with pytest.raises(InputError, match="go on with it by resume=True, or"):
        checkpoint.prune(dense, out, "2:4")
    assert main(["prune", str(dense), str(out), "2:4"]) == 2
    assert "go on with it by --resume, or" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"unfinished run and no checkpoint yet: .*resume=True"):
        checkpoint.verify(out, "2:4")
    with pytest.raises(InputError, match="name one, such as pattern='2:4T'"):
        checkpoint.verify(dense)


def test_the_pattern_may_be_given_as_for_the_other_commands(dense: Path, tmp_path: Path) -> None:
    assert main(["prune", str(dense), str(tmp_path / "a"), "2:4", "--pattern", "*.mlp=2:4T"]) == 0
    assert (
        main(
            [
                "prune",
                str(dense),
                str(tmp_path / "b"),
                "--pattern",
                "2:4",
                "--pattern",
                "*.mlp=2:4T",
            ]
        )
        == 0
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    written = json.loads((tmp_path / "a" / "report.json").read_text())
    patterns = {entry["name"]: entry["pattern"] for entry in written["tensors"]}
    assert patterns["model.layers.0.mlp.up_proj.weight"] == "2:4T"
    assert patterns["model.layers.0.self_attn.q_proj.weight"] == "2:4"


def test_json(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(dense), str(tmp_path / "out"), "--pattern", "2:4", "--json"]) == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "report.json").read_text()


def test_options_reach_prune(dense: Path, tmp_path: Path) -> None:
    line = (
        "--pattern *.mlp=<=1:4T --pattern *.k_proj=dense --pattern 2:4 --method greedy "
        "--padding pad --include model.layers.0"
    )
    line += " --include model.layers.1 --exclude *.o_proj --exclude *.v_proj --threads 2"
    assert main(["prune", str(dense), str(tmp_path / "out"), *line.split()]) == 0
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["settings"] == {
        "pattern": {"*.mlp": "<=1:4T", "*.k_proj": None, "*": "2:4"},
        "method": "greedy",
        "include": ["model.layers.0", "model.layers.1"],
        "exclude": ["*.o_proj", "*.v_proj"],
        "padding": "pad",
    }
    patterns = {entry["name"]: entry["pattern"] for entry in written["tensors"] if entry["pattern"]}
    assert patterns == {
        f"model.layers.{layer}.{part}.weight": pattern
        for layer in (0, 1)
        for part, pattern in {
            "self_attn.q_proj": "2:4",
            "mlp.up_proj": "<=1:4T",
            "mlp.down_proj": "<=1:4T",
        }.items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name a pattern"),
        (("--pattern", "2:4X"), "cannot read the pattern '2:4X'"),
        (("--pattern", "2:4", "--pattern", "1:4"), "two patterns for all tensors: 2:4 and 1:4"),
        (("--pattern", "a=2:4", "--pattern", "a=1:4"), "two patterns for 'a'"),
        (("--pattern", "*.mpl=2:4"), "matches no layer of the checkpoint"),
        (("--pattern", "mlp=dense"), "matches no layer"),
        (("--pattern", "*=dense"), "no tensor of"),
        (("--pattern", "2:4", "--threads", "0"), "threads must be"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    options: tuple[str, ...],
    message: str,
    dense: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prune", str(dense), str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nmsolve: error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_verify(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["prune", str(dense), str(out), "--pattern", "2:4T", "--exclude", "lm_head"]) == 0
    capsys.readouterr()
    for options in (
        [],
        ["--pattern", "2:4T", "--exclude", "lm_head"],
        ["2:4", "--exclude", "lm_head"],
    ):
        assert main(["verify", str(out), *options]) == 0
        printed = capsys.readouterr().out
        assert "18 of 23 tensors checked: all hold" in printed
        assert re.search(
            r"^model\.layers\.0\.mlp\.up_proj\.weight +64×32 +2:4T? +0\.5000 +holds$",
            printed,
            re.MULTILINE,
        )
    assert main(["verify", str(out), "--pattern", "2:4T"]) == 1
    printed = capsys.readouterr().out
    assert re.search(
        r"lm_head\.weight .* violated in 640 of 640 groups; the first, at \[0, 0\], keeps 4",
        " ".join(printed.split()),
    )
    assert "19 of 23 tensors checked: 1 of them violated: lm_head.weight" in printed
    assert main(["verify", str(dense), "--pattern", "2:4"]) == 1
    capsys.readouterr()
    assert main(["verify", str(dense)]) == 2
    assert "name one, such as --pattern 2:4T" in capsys.readouterr().err


def test_solve_writes_masks_alone(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(dense), "--pattern", "2:4T"]) == 0
    checkpoint.prune(dense, tmp_path / "out", "2:4T")
    masks, expected = (
        checkpoint.open_masks(tmp_path / "dense-masks"),
        checkpoint.open_masks(tmp_path / "out"),
    )
    assert set(masks) == set(expected)
    assert all((masks[name] == expected[name]).all() for name in masks)
    assert not list((tmp_path / "dense-masks").glob("*.safetensors"))
    assert main(["verify", str(tmp_path / "dense-masks")]) == 0
    assert main(["verify", str(tmp_path / "dense-masks"), "1:4"]) == 1

    save_file({"fc.weight": weights(8, 8)}, tmp_path / "one.safetensors")
    assert main(["solve", str(tmp_path / "one.safetensors"), "1:4"]) == 0
    assert (checkpoint.open_masks(tmp_path / "one.safetensors")["fc.weight"].sum(axis=1) == 2).all()
    np.save(tmp_path / "array.npy", weights(8, 8))
    assert (
        main(
            [
                "solve",
                str(tmp_path / "array.npy"),
                "--pattern",
                "1:4T",
                "--out",
                str(tmp_path / "array.safetensors"),
            ]
        )
        == 0
    )
    assert checkpoint.open_masks(tmp_path / "array.safetensors")["arr_0"].sum() == 16
    assert (
        main(
            [
                "solve",
                str(tmp_path / "array.npy"),
                "--pattern",
                "1:4T",
                "--out",
                str(tmp_path / "mask.npy"),
            ]
        )
        == 0
    )
    assert np.load(tmp_path / "mask.npy").sum() == 16
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "one.masks.safetensors")]) == 0
    for wrong in (["--resume"], ["--exclude", "x"], ["--padding", "skip"]):
        assert main(["solve", str(tmp_path / "array.npy"), "2:4", *wrong]) == 2
        assert "is one array, for which --" in capsys.readouterr().err
    assert main(["solve", str(tmp_path / "one.safetensors"), "2:4", "--scores", "s.npy"]) == 2


def test_folders_may_be_named_by_dots(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dense)
    assert main(["solve", ".", "2:4T"]) == 0
    assert main(["prune", ".", "../out", "--pattern", "2:4T"]) == 0
    assert set(checkpoint.open_masks(tmp_path / "dense-masks")) == set(
        checkpoint.open_masks(tmp_path / "out")
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["prune", "../dense", ".", "--pattern", "2:4T"]) == 0
    assert main(["verify", "."]) == 0
    assert main(["report", ".", "-o", "../page.html"]) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "out")


def test_diversity_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diversity", "4:8T", "--shape", "8x8"]) == 0
    with_shape = capsys.readouterr().out
    assert "116963796250" in with_shape
    assert main(["diversity", "4:8T", "8", "8"]) == 0
    assert capsys.readouterr().out == with_shape
    assert main(["diversity", "4:8T", "--shape", "4096x4096"]) == 0
    assert "(4096, 4096)" in capsys.readouterr().out
    for wrong in ([], ["8"], ["--shape", "8"], ["--shape", "8x-8"], ["8", "8", "--shape", "8x8"]):
        assert main(["diversity", "4:8T", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^transposable +greedy +at least 1/2", printed, re.MULTILINE)
    assert re.search(r"^row-wise +greedy +the optimum", printed, re.MULTILINE)
    assert main(["methods", "4:8T"]) == 0
    assert "min_cost_flow" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_examples_that_are_commands(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every example parses: its command and its options exist."""
    from nmsolve.cli import nmsolve_command

    for flag in ("-h", "--help"):
        assert main([command, flag]) == 0
        printed = capsys.readouterr().out
    examples = printed.partition("Examples:\n")[2].splitlines()
    assert examples
    for example in examples:
        line = (
            example.strip()
            .removeprefix('eval "$(')
            .replace(')" ', " ")
            .partition("#")[0]
            .partition(">")[0]
        )
        words = shlex.split(line)
        words = words[words.index("nmsolve") + 1 :]
        assert words[0] == command
        nmsolve_command.commands[command].make_context(
            command, words[1:]
        )  # raises for what does not exist


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    ask = """
eval "$(nmsolve completion bash)"
complete -p nmsolve >/dev/null || exit 3
COMP_WORDS=(nmsolve {words}); COMP_CWORD={at}; _nmsolve_completion nmsolve; echo "${{COMPREPLY[@]}}"
"""

    def completed(*words: str) -> set[str]:
        script = ask.format(words=" ".join(words) or "''", at=max(1, len(words)))
        environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
            timeout=100,
        )
        return set(done.stdout.split())

    assert completed("pr") == {"prune"}
    assert {"--resume", "--pattern", "--threads", "--json"} <= completed("prune", "a", "b", "--")
    assert completed("prune", "--method", "g") == {"greedy"}


def test_completion_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "_NMSOLVE_COMPLETE" in capsys.readouterr().out


def on_a_terminal(arguments: list[str], **environment: str) -> tuple[int, str]:
    """A command's exit code, and all that a terminal of 100 columns got from it."""
    main_end, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nmsolve", *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        env={
            key: value
            for key, value in os.environ.items()
            if key not in ("NO_COLOR", "FORCE_COLOR")
        }
        | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        | environment,
    )
    os.close(other)
    shown = b""
    while process.poll() is None or select.select([main_end], [], [], 0)[0]:
        if select.select([main_end], [], [], 0.05)[0]:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # the other end is closed
                break
            shown += part
            if not part:
                break
    os.close(main_end)
    return process.wait(), shown.decode(errors="replace")


def test_a_live_bar_on_a_terminal(tmp_path: Path) -> None:
    write_folder(tmp_path / "dense", layers=6, width=256)
    code, shown = on_a_terminal(
        ["prune", str(tmp_path / "dense"), str(tmp_path / "out"), "--pattern", "2:4T"]
    )
    assert code == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\d+/44 \S*proj\.weight [━╸╺]+ +\d+% \S+ Mw/s  \S+( s)? left", text)
    assert re.search(r"\x1b\[[0-9;]*m", shown)  # colours
    assert re.search(r"\x1b\[\d*[AFK]|\x1b\[2K|\r", shown)  # redrawn in place
    assert "37 of 44 tensors pruned" in text


def test_no_color(tmp_path: Path) -> None:
    write_folder(tmp_path / "dense")
    code, shown = on_a_terminal(
        ["prune", str(tmp_path / "dense"), str(tmp_path / "out"), "--pattern", "2:4T"], NO_COLOR="1"
    )
    assert code == 0
    assert not [
        code
        for code in re.findall(r"\x1b\[([0-9;]*)m", shown)
        if re.search(r"(^|;)(3\d|4\d|9\d|38)(;|$)", code)
    ]


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    write_folder(tmp_path / "dense")
    code, shown = on_a_terminal(
        ["prune", str(tmp_path / "dense"), str(tmp_path / "out"), "--pattern", "2:4T"], TERM="dumb"
    )
    assert code == 0
    assert "\x1b" not in shown
    assert len(re.findall(r"^\d+/23  \S+  2:4T  ", shown, re.MULTILINE)) == 19


def test_ctrl_c_leaves_a_state_and_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT to a real process while it works; the command that it prints then finishes the run."""
    write_folder(
        tmp_path / "a dense one", layers=24, width=256, dtype=np.dtype(np.float32), files=12
    )
    src, out = tmp_path / "a dense one", tmp_path / "out"
    reading, writing = os.pipe()
    fcntl.fcntl(
        writing, fcntl.F_SETPIPE_SZ, 4096
    )  # some 50 lines: it waits for us with the others, however slow we are
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nmsolve",
            "prune",
            str(src),
            str(out),
            "--pattern",
            "2:4T",
            "--threads",
            "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=writing,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # which jobs in the background ignore
    )
    os.close(writing)
    shown = b""
    while not re.search(rb"^1\d/", shown, re.MULTILINE):
        shown += os.read(reading, 256)
    process.send_signal(signal.SIGINT)
    while part := os.read(reading, 4096):
        shown += part
    os.close(reading)
    assert process.wait(timeout=100) == 130
    rest = shown.decode()
    last = rest.splitlines()[-1]
    found = re.fullmatch(
        r"nmsolve: stopped, with (\d+) of \d+ tensors done\. Go on with: (nmsolve prune .* "
        r"--resume)",
        last,
    )
    assert found, rest
    assert int(found[1]) >= 10
    assert "Traceback" not in rest
    assert not list(out.glob("*.safetensors"))
    words = shlex.split(found[2])
    done = run(*words[1:])
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on: (\d+) tensors were done before", done.stderr)
    checkpoint.prune(src, tmp_path / "whole", "2:4T")
    assert contents(out) == contents(tmp_path / "whole")


def test_source_files_of_any_kind_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "w.npy", weights(8, 8))
    np.savez(tmp_path / "w.npz", a=weights(8, 8))
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "w.safetensors")
    for suffix in (".npy", ".npz", ".safetensors"):
        assert (
            main(
                [
                    "prune",
                    str(tmp_path / f"w{suffix}"),
                    str(tmp_path / f"out{suffix}"),
                    "--pattern",
                    "2:4T",
                ]
            )
            == 0
        )
        assert main(["verify", str(tmp_path / f"out{suffix}"), "--pattern", "2:4T"]) == 0
        for path in tmp_path.glob("out.*.*"):
            path.unlink()
    assert (
        load_file(tmp_path / "out.safetensors")["fc.weight"] == np.load(tmp_path / "out.npy")
    ).all()
    assert (np.load(tmp_path / "out.npz")["a"] == np.load(tmp_path / "out.npy")).all()


def test_without_the_packages_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert (
        main(
            [
                "prune",
                str(tmp_path / "w.safetensors"),
                str(tmp_path / "out.safetensors"),
                "--pattern",
                "2:4",
            ]
        )
        == 2
    )
    assert "pip install 'nmsolve[checkpoint]'" in capsys.readouterr().err


def test_the_command_line_is_lean() -> None:
    """Neither solving nor reading checkpoints is loaded before a command asks for it."""
    heavy = {"numba", "torch", "safetensors", "rich", "PIL", "matplotlib", "nmsolve.checkpoint"}
    code = f"import nmsolve.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_terminal_of_ascii(tmp_path: Path) -> None:
    save_file({"fc.weight": weights(8, 8)}, tmp_path / "w.safetensors")
    files = (tmp_path / "w.safetensors", tmp_path / "out.safetensors")
    done = run("prune", *files, "--pattern", "2:4", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert r"8\xd78" in done.stdout


def test_nmsolve_alone_is_enough_to_import() -> None:
    code = (
        "import nmsolve, sys; assert 'nmsolve.checkpoint' not in sys.modules; "
        "print(nmsolve.checkpoint.prune.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "nmsolve.checkpoint.pruning\n"
