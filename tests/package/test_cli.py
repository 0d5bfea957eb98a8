# SPDX-License-Identifier: BSD-3-Clause
"""The command: output, exit codes, and errors of one line."""

import json
import os
import subprocess
import sys

import pytest
import torch

from maskattn_kernels import __version__, cli
from maskattn_kernels.benchmark import report, suite
from maskattn_kernels.common.extras import missing_package


def one_line(capsys) -> str:
    """What was written to stderr, which must be a single line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "Traceback" not in text
    return text.strip()


def exit_code(argv) -> int:
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


def test_info_names_every_backend(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert __version__ in out and torch.__version__ in out
    for name in ("cpu", "reference"):
        assert f"  {name}: can" in out
    assert "runs on: " in out


def test_module_and_version():
    command = [sys.executable, "-m", "maskattn_kernels.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"maskattn_kernels {__version__}")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "required"),
        (["paint"], "'paint'"),
        (["bench", "--threads", "0"], "expected a whole number from 1, got '0'"),
        (["bench", "--threads", "two"], "got 'two'"),
        (["bench", "--dtype", "float32,int8"], "got 'int8'"),
        (["bench", "--grid", "huge"], "'huge'"),
        (["bench", "--quick", "--grid", "full"], "not allowed with"),
        (["demo", "--size", "3"], "--size"),
        (["bench", "--out", "/dev/null/x"], "cannot make the folder /dev/null/x"),
        (["demo", "--out", "/dev/null/x"], "cannot make the folder /dev/null/x"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(argv, says, capsys):
    assert exit_code(argv) == 2
    assert says in one_line(capsys)


@pytest.fixture
def short_plan(monkeypatch):
    """`maskattn bench` with a plan of the test's own; threads stay as they are."""

    def use(*functions):
        steps = [suite.Step("cells", f"step {i}", f) for i, f in enumerate(functions)]
        monkeypatch.setattr(suite, "plan", lambda grid, dtypes, device: steps)
        monkeypatch.setattr(suite, "set_threads", lambda threads: None)

    return use


def raise_(error):
    raise error


def test_bench_writes_results(short_plan, tmp_path, capsys):
    from maskattn_kernels.benchmark.cases import Case
    from maskattn_kernels.benchmark.cells import measure

    short_plan(lambda: measure(Case(32, 8), 0.01))
    assert cli.main(["bench", "--quick", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    path = next(tmp_path.glob("*.json"))
    assert f"written: {path}" in out and "N32-D8-B1-k-keep0.25-fp32-fwd" in out
    assert err.startswith("[1/1 0:0") and "gather" in err
    results = json.loads(path.read_text())
    assert results["complete"] and results["machine"]["torch"] == torch.__version__


def test_bench_with_a_wrong_result_fails(short_plan, tmp_path, capsys):
    from maskattn_kernels.benchmark.check import WrongResult

    short_plan(lambda: raise_(WrongResult("out is off")))
    assert cli.main(["bench", "--out", str(tmp_path)]) == 1
    assert "step 0: out is off" in capsys.readouterr().out


def test_interrupted_bench_keeps_what_is_finished(short_plan, tmp_path, capsys):
    stopped = (lambda: {"name": "step 0", "wrong": "-"}, lambda: raise_(KeyboardInterrupt()))
    short_plan(*stopped)
    assert cli.main(["bench", "--out", str(tmp_path)]) == 130
    path = next(tmp_path.glob("*.json"))
    saved = json.loads(path.read_text())
    assert len(saved["cells"]) == 1 and not saved["complete"]
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"maskattn bench: interrupted; --resume {path} continues"
    short_plan(stopped[0], lambda: {"name": "step 1", "wrong": "-"})
    assert cli.main(["bench", "--out", str(tmp_path), "--resume", str(path)]) == 1
    saved = json.loads(path.read_text())
    assert [row["name"] for row in saved["cells"]] == ["step 0", "step 1"] and saved["complete"]
    assert capsys.readouterr().err.startswith("[2/2 ")
    assert cli.main(["bench", "--quick", "--out", str(tmp_path), "--resume", str(path)]) == 2
    assert "--resume: " in one_line(capsys)


def test_failure_while_running_is_one_line_and_exit_code_1(
    short_plan, monkeypatch, tmp_path, capsys
):
    short_plan(lambda: raise_(RuntimeError("first\nsecond")))
    assert cli.main(["bench", "--out", str(tmp_path)]) == 1
    shown = "maskattn bench: RuntimeError: first second"
    assert one_line(capsys) == f"{shown} (MASKATTN_DEBUG=1 shows where)"
    monkeypatch.setenv("MASKATTN_DEBUG", "1")
    assert cli.main(["bench", "--out", str(tmp_path)]) == 1
    *trace, last = capsys.readouterr().err.strip().splitlines()
    assert trace[0].startswith("Traceback") and "in raise_" in "".join(trace) and last == shown


def hide(monkeypatch, package, *ours):
    """Make a package look uninstalled, and forget our modules that have imported it."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in [m for m in sys.modules if m.startswith(f"{package}.") or m in ours]:
        monkeypatch.delitem(sys.modules, name)


def test_demo_without_its_extra(monkeypatch, tmp_path, capsys):
    import maskattn_kernels.demo

    ours = ("command", "run", "photographs")
    hide(monkeypatch, "skimage", *(f"maskattn_kernels.demo.{name}" for name in ours))
    for name in ours:
        monkeypatch.delattr(maskattn_kernels.demo, name, raising=False)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    line = one_line(capsys)
    assert "skimage is not installed; pip install 'maskattn_kernels[demo]'" in line


def test_bench_without_matplotlib_says_so_and_goes_on(short_plan, monkeypatch, tmp_path, capsys):
    import maskattn_kernels.benchmark

    ours = ("command", "plots")
    hide(monkeypatch, "matplotlib", *(f"maskattn_kernels.benchmark.{name}" for name in ours))
    for name in ours:
        monkeypatch.delattr(maskattn_kernels.benchmark, name, raising=False)
    short_plan(lambda: {"name": "one", "peers": {"ours": {"median": 1.0}}, "case": {}})
    monkeypatch.setattr(report, "text", lambda results: "")
    assert cli.main(["bench", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("no plots: matplotlib is not installed; pip install")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["train", "--steps", "many"], 2, "maskattn train: steps: expected int, got many"),
        (["train", "--data", "cats"], 2, "maskattn train: argument --data: invalid choice: 'cats'"),
        (["train", "--out", "/dev/null/x"], 2, "maskattn train: out: cannot make the folder"),
        (["eval", "--data", "coco"], 2, "maskattn eval: the following arguments are required"),
        (["predict", "{tmp}", "--checkpoint", "y"], 2, "no images there"),
        (["predict", "{file}", "--checkpoint", "{tmp}"], 2, "no model.safetensors in this folder"),
        (["predict", "x", "--checkpoint", "y", "--device", "gpu"], 2, "device: 'gpu' cannot be"),
        (["check-data", "cats"], 2, "maskattn check-data: argument name: expected --data cats"),
    ],
)
def test_wrong_input_of_the_segmentation_commands(argv, code, says, tmp_path, capsys):
    assert exit_code([word.format(tmp=tmp_path, file=__file__) for word in argv]) == code
    assert says in one_line(capsys)


def test_failure_while_training_is_one_line_and_exit_code_1(monkeypatch, capsys):
    from maskattn_kernels.common.atomic import WriteError
    from maskattn_kernels.segmentation.training import command as training

    monkeypatch.setattr(training, "main", lambda argv: raise_(WriteError("cannot write a: full")))
    assert cli.main(["train"]) == 1
    assert one_line(capsys) == "maskattn train: cannot write a: full"
    stopped = KeyboardInterrupt("stopped after step 3; resume with: maskattn train")
    monkeypatch.setattr(training, "main", lambda argv: raise_(stopped))
    assert cli.main(["train"]) == 130
    assert one_line(capsys) == f"maskattn train: {stopped}"


def test_training_without_its_extra(monkeypatch, capsys):
    hide(monkeypatch, "pytorch_lightning", "maskattn_kernels.segmentation.training.command")
    assert cli.main(["train", "--help"]) == 1
    line = one_line(capsys)
    assert "pytorch_lightning is not installed; pip install 'maskattn_kernels[train]'" in line


def test_a_module_of_ours_that_is_missing_is_not_blamed_on_an_extra():
    error = ModuleNotFoundError("No module named 'maskattn_kernels.nowhere'")
    error.name = "maskattn_kernels.nowhere"
    with pytest.raises(ModuleNotFoundError):
        missing_package(error, "demo")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert exit_code([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: maskattn {name}")


def test_help_lists_every_command(capsys):
    assert exit_code(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["info", "info --help", "--help"])
def test_the_reader_of_the_output_may_leave(words, unbuffered):
    command = f"{sys.executable} -m maskattn_kernels.cli {words} | true"
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=env)
    assert done.stderr == ""
