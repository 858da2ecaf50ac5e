"""The command line: what it prints, writes and returns, for input that works and input that does
not.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import nmsolve
from nmsolve import demo, demo_results
from nmsolve.cli import main
from nmsolve.output import Output

WEIGHTS = np.random.default_rng(7).standard_normal((16, 32)).astype(np.float32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.npy"
    np.save(path, WEIGHTS)
    return path


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run of `nmsolve demo`: its exit code, its text, its table as {(pattern, method): cells}
    and its folder.
    """
    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["demo", "--out", str(out)])
    table = {}
    for line in printed.getvalue().splitlines():
        cells = re.split(r"  +", line.strip())
        if len(cells) == 8 and cells[0] != "pattern":
            table[cells[0], cells[1]] = SimpleNamespace(
                status=cells[2],
                **dict(
                    zip(
                        ("kept", "gap", "distance", "rate", "accuracy"),
                        map(number, cells[3:]),
                        strict=True,
                    )
                ),
            )
    return SimpleNamespace(code=code, text=printed.getvalue(), table=table, out=out)


def number(cell: str) -> float:
    return float(cell.removesuffix(" %"))


def failure(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a command prints to stderr as it exits with 2."""
    assert main([str(argument) for argument in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("nmsolve: error: ")
    return line


def test_demo_prints_one_row_for_every_pattern_and_method(demonstrated: SimpleNamespace) -> None:
    assert demonstrated.code == 0
    assert set(demonstrated.table) == {
        (pattern, method) for pattern in demo_results.PATTERNS for method in demo_results.METHODS
    }
    (dense,) = re.findall(r"^dense +100\.00 % +(\S+) %$", demonstrated.text, re.MULTILINE)
    assert float(dense) >= 97


def test_demo_claims_optimal_for_exact_and_for_row_wise_patterns_only(
    demonstrated: SimpleNamespace,
) -> None:
    for (pattern, method), row in demonstrated.table.items():
        optimal = method == "exact" or not pattern.endswith("T")
        assert row.status == ("optimal" if optimal else "feasible"), (pattern, method)
        assert row.gap <= (1e-6 if optimal else 0.2)
        assert row.distance <= 100 * row.gap
        assert row.rate > 0


def test_demo_exact_keeps_the_most(demonstrated: SimpleNamespace) -> None:
    for pattern in demo_results.PATTERNS:
        rows = {method: demonstrated.table[pattern, method] for method in demo_results.METHODS}
        assert rows["exact"].kept == max(row.kept for row in rows.values())
        assert rows["exact"].distance == 0
        if pattern.endswith("T"):
            assert rows["greedy"].distance > 0
            assert rows["cover"].distance > 0
    kept = {pattern: demonstrated.table[pattern, "exact"].kept for pattern in demo_results.PATTERNS}
    assert kept["1:4"] < kept["2:4T"] < kept["2:4"]
    assert kept["2:4T"] < kept["4:8T"] < kept["8:16T"]


def test_demo_accuracy_is_that_of_the_masked_network(demonstrated: SimpleNamespace) -> None:
    for (pattern, method), row in demonstrated.table.items():
        assert (60 if pattern == "1:4" else 85) <= row.accuracy <= 100, (pattern, method)
    network = demo_results.load_checkpoint()
    nothing = [np.zeros(weights.shape, bool) for weights in network.weights]
    assert network.accuracy(nothing) < 0.2
    assert network.accuracy([~mask for mask in nothing]) == network.accuracy() > 0.97


def test_demo_writes_masks_that_hold_and_are_worth_what_the_table_says(
    demonstrated: SimpleNamespace,
) -> None:
    masks = load_file(demonstrated.out / "masks.safetensors")
    network = demo_results.load_checkpoint()
    total = sum(np.abs(weights).sum(dtype=float) for weights in network.weights)
    assert len(masks) == 45
    for (pattern, method), row in demonstrated.table.items():
        kept = 0.0
        for layer, weights in enumerate(network.weights, start=1):
            mask = masks[f"{pattern}/{method}/layer{layer}"]
            assert mask.dtype == np.bool_
            assert nmsolve.verify(mask, pattern, padding="pad").ok
            kept += np.abs(weights[mask]).sum(dtype=float)
        assert 100 * kept / total == pytest.approx(row.kept, abs=0.0051)


def test_demo_draws_a_picture(demonstrated: SimpleNamespace) -> None:
    from matplotlib.image import imread

    picture = imread(demonstrated.out / "demo.png")
    height, width, _ = picture.shape
    assert width >= 1500
    assert height >= 600
    assert len(np.unique(picture.reshape(-1, picture.shape[2])[::7], axis=0)) > 50


def test_demo_knows_its_own_files(demonstrated: SimpleNamespace) -> None:
    from nmsolve.demo_picture import is_picture

    for name, ours in {"masks.safetensors": demo.is_packed, "demo.png": is_picture}.items():
        with Output(demonstrated.out / name, ours=ours) as output:
            assert output.is_file
        assert not ours(b"")
    assert sorted(path.name for path in demonstrated.out.iterdir()) == [
        "demo.png",
        "masks.safetensors",
    ]


def test_the_checkpoint_is_small_and_says_where_it_comes_from() -> None:
    path = Path(demo.__file__).parent / "data" / "digits.safetensors"
    assert path.stat().st_size < 1_000_000
    with safe_open(path, framework="numpy") as file:
        training = file.metadata()["training"]
        assert file.get_tensor("layer1.weight").shape == (256, 64)
        assert file.get_tensor("images").dtype == file.get_tensor("labels").dtype == np.uint8
    assert '"held_out_accuracy": 0.98' in training


@pytest.mark.parametrize("missing", ["safetensors.numpy", "PIL.Image"])
def test_demo_without_an_optional_package_names_the_extra(
    missing: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = failure(capsys, "demo", "--out", tmp_path)
    assert missing.partition(".")[0] in line
    assert "pip install 'nmsolve[demo]'" in line
    with pytest.raises(nmsolve.MissingDependencyError):
        demo.demo(tmp_path)


def test_solve_prints_the_result_and_writes_the_mask(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = weights.with_name("mask")
    assert main(["solve", str(weights), "4:8T", "--threads", "1", "--out", str(out)]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    result = nmsolve.solve(WEIGHTS, "4:8T")
    assert printed["pattern"] == "4:8T on (16, 32), density 0.5000"
    assert printed["method"] == "exact"
    assert printed["status"] == "optimal"
    assert float(printed["objective"]) == pytest.approx(result.objective, rel=1e-11)
    assert float(printed["gap"]) <= 1e-6
    assert "Mw/s" in printed["speed"]
    mask = np.load(out)
    assert mask.dtype == np.bool_
    assert (mask == result.mask).all()


def test_solve_passes_its_options_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "odd.npy", tmp_path / "mask.npy"
    np.save(path, WEIGHTS[:10])
    assert (
        main(
            [
                "solve",
                str(path),
                "1:4T",
                "--method",
                "greedy",
                "--at-most",
                "--padding",
                "pad",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "<=1:4T on (10, 32)" in printed
    assert "greedy" in printed
    assert "feasible" in printed
    assert main(["verify", str(out), "1:4T", "--at-most", "--padding", "pad"]) == 0
    assert (
        main(["solve", str(path), "<=1:4"]) == 0
    )  # Without --at-most the pattern's own "<=" stands.
    assert "<=1:4 on (10, 32)" in capsys.readouterr().out


def test_verify_reports_and_exits_with_1_for_a_violation(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = weights.with_name("mask.npy")
    mask = nmsolve.solve(WEIGHTS, "2:4T", method="greedy").mask
    np.save(out, mask)
    assert main(["verify", str(out), "2:4T"]) == 0
    assert capsys.readouterr().out.strip() == str(nmsolve.verify(mask, "2:4T"))

    assert main(["verify", str(out), "2:4T", "--weights", str(weights)]) == 0
    kept, bound, gap = map(
        float,
        re.findall(
            r"(?:kept \|W\||bound|gap) (\S+?)(?:,|$)", capsys.readouterr().out.splitlines()[1]
        ),
    )
    assert kept == pytest.approx(np.abs(WEIGHTS[mask]).sum(dtype=float))
    assert bound == pytest.approx(nmsolve.solve(WEIGHTS, "2:4T").objective, rel=1e-6)
    assert gap == pytest.approx(1 - kept / bound, rel=0.1)

    mask[5, 3] ^= True
    np.save(out, mask)
    assert main(["verify", str(out), "2:4T"]) == 1
    assert "violated" in capsys.readouterr().out


def test_diversity_prints_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diversity", "4:8T", "8", "8"]) == 0
    assert "116963796250" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = weights.parent
    assert "absent.npy" in failure(capsys, "solve", folder / "absent.npy", "2:4")
    assert "holds no .safetensors file; it holds weights.npy" in failure(
        capsys, "solve", folder, "2:4"
    )
    assert "'2:4X'" in failure(capsys, "solve", weights, "2:4X")
    assert "min_cost_flow" in failure(capsys, "solve", weights, "2:4", "--method", "min_cost_flow")
    assert "pass --padding pad (" in failure(capsys, "solve", weights, "5:10")
    assert "threads" in failure(capsys, "solve", weights, "2:4", "--threads", "0")
    assert "multiple of 8" in failure(capsys, "diversity", "4:8T", "8", "9")
    assert "absent.npy" in failure(capsys, "verify", folder / "absent.npy", "2:4")

    nan = folder / "nan.npy"
    np.save(nan, np.where(np.arange(64).reshape(8, 8) == 63, np.nan, 1.0))
    line = failure(capsys, "solve", nan, "2:4T")
    assert "[7, 7]" in line
    assert "(8, 8)" in line


def test_weights_of_another_shape_than_the_mask_are_refused(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = weights.with_name("mask.npy")
    np.save(mask, np.tile([True, False], (8, 16)))
    assert main(["verify", str(mask), "2:4", "--weights", str(weights)]) == 2
    assert "(16, 32)" in capsys.readouterr().err


def test_a_mask_that_cannot_be_written_is_an_error(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["solve", str(weights), "2:4", "--out", str(weights.parent / "absent" / "mask.npy")])
        == 2
    )
    assert "absent" in capsys.readouterr().err


def test_files_that_are_no_npy_are_one_line_and_exit_code_2(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = weights.read_bytes()
    archive, pickled = io.BytesIO(), io.BytesIO()
    np.savez(archive, weights=WEIGHTS)
    np.save(pickled, np.array([{"a": 1}, None], object), allow_pickle=True)
    contents = {
        "empty": b"",
        "text": b"1, 2\n3, 4\n",
        "archive": archive.getvalue(),
        "pickled": pickled.getvalue(),
        "truncated": whole[:300],
        "no header": whole[:8],
        "header": whole[:10] + b"{" * 118 + whole[128:],
        "enormous": whole.replace(b"(16, 32)", b"(1<<99,)").replace(b"'<f4'", b"'<f8'"),
    }
    for name, content in contents.items():
        path = weights.with_name(f"{name}.npy")
        path.write_bytes(content)
        assert f"{name}.npy" in failure(capsys, "solve", path, "2:4")
        assert f"{name}.npy" in failure(capsys, "verify", path, "2:4")


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["prove"], ["solve"], ["solve", "w.npy", "2:4", "--method", "best"]):
        assert main(argv) == 2
        assert "Usage: nmsolve" in capsys.readouterr().err


def test_the_installed_command(weights: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "nmsolve"

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *map(str, argv)], capture_output=True, text=True, timeout=50, check=False
        )

    assert run("--version").stdout == f"nmsolve {nmsolve.__version__}\n"
    dense = run("verify", weights, "2:4")
    assert (dense.returncode, dense.stderr) == (1, "")
    absent = run("solve", "absent.npy", "2:4")
    assert absent.returncode == 2
    assert absent.stderr == "nmsolve: error: [Errno 2] No such file or directory: 'absent.npy'\n"


def test_the_library_does_not_import_the_command_line() -> None:
    heavy = {"nmsolve.cli", "nmsolve.demo", "safetensors", "PIL", "matplotlib", "numba"}
    code = f"import nmsolve, sys; print(sorted({heavy} & set(sys.modules)))"
    lean = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert lean.stdout == "[]\n"
    fat = subprocess.run(
        [sys.executable, "-c", f"import nmsolve.cli; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fat.stdout == "['nmsolve.cli']\n"
