"""The command line: Caffe's flags, exit status, one line for bad input, the log on stderr."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_runs import RUNS, numbers, prepared, worded
from listing import set_of_names as names
from tiny_solver import TINY_NET, write_solver
from tolerances import tolerance

import imae.cli.main as main_module
from imae.cli.main import COMMANDS, command_module, main
from imae.files.errors import ImaeError
from imae.net.kernels import native
from imae.prototxt.text import read_solver
from imae.train.solver import Solver

NET = f'name: "tiny"\n{TINY_NET}'
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 display: 1 random_seed: 1\n'


@pytest.fixture
def here(here: Path) -> Path:
    """A folder with a net, a solver, and the snapshot of its second iteration under the name `given`."""
    write_solver(SOLVER + 'snapshot_prefix: "snap"', NET)
    Path("given.prototxt").write_text(SOLVER)
    solver = Solver(read_solver("given.prototxt"))
    solver.step(2)
    solver.snapshot()
    return here


GIVEN = {
    "net.prototxt",
    "solver.prototxt",
    "given.prototxt",
    "given_iter_2.caffemodel",
    "given_iter_2.solverstate",
}
SNAPPED = GIVEN | {"snap_iter_2.caffemodel", "snap_iter_2.solverstate"}


@pytest.mark.parametrize(
    "flags",
    [
        ["solver.prototxt"],
        ["--solver=solver.prototxt"],
        ["-solver=solver.prototxt"],
        ["-solver", "solver.prototxt"],
        ["--solver", "solver.prototxt", "-sigint_effect=none", "-sighup_effect", "stop"],
        ["-solver=solver.prototxt", "-weights=given_iter_2.caffemodel,given_iter_2.caffemodel"],
        ["-solver=solver.prototxt", "--snapshot=given_iter_2.solverstate"],
        ["solver.prototxt", "--snapshot", "given_iter_2.solverstate", "--resume-as-caffe"],
        ["-solver=solver.prototxt", "-level", "3", "-stage", "a,b"],
    ],
)
def test_training(here: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main(["train", *flags]) == 0
    assert names(here) == SNAPPED
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ caffe\.cpp:197\] Use CPU\.\n", err)
    assert err.endswith("caffe.cpp:250] Optimization Done.\n")


def test_level_and_stage_reach_the_train_state(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "solver.prototxt", "-level", "3", "-stage", "a,b"]) == 0
    assert 'train_state {\n  level: 3\n  stage: "a"\n  stage: "b"\n}\n' in capsys.readouterr().err


def test_the_files_level_does_nothing_as_in_caffe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("level.prototxt").write_text(SOLVER + "train_state { level: 2 }")
    assert main(["train", "level.prototxt"]) == 0
    err = capsys.readouterr().err
    assert "level.prototxt: these fields do nothing, as in Caffe: train_state.level (write --level 2)" in err
    assert "train_state {\n  level: 0\n" in err


def test_resuming_and_finetuning_are_logged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "solver.prototxt", "--snapshot", "given_iter_2.solverstate"]) == 0
    err = capsys.readouterr().err
    assert "caffe.cpp:235] Resuming from given_iter_2.solverstate\n" in err
    assert "sgd_solver.cpp:336] SGDSolver: restoring history\n" in err
    assert "Iteration 2, loss = " in err
    assert main(["train", "solver.prototxt", "--weights", "given_iter_2.caffemodel"]) == 0
    assert "solver.cpp:72] Finetuning from given_iter_2.caffemodel\n" in capsys.readouterr().err


BAD = [
    (["trane"], "Unknown action: trane; did you mean train? (known: train, test, "),
    (["train"], "Need a solver definition to train: imae train SOLVER"),
    (["train", "--solvr=x"], "train: unknown flag --solvr; did you mean --solver?"),
    (["train", "solver.prototxt", "more"], "train: unrecognized arguments: more"),
    (
        ["train", "solver.prototxt", "--solver", "other"],
        "Two solvers are given: solver.prototxt and --solver other",
    ),
    (["train", "nope.prototxt"], "nope.prototxt: no such file"),
    (["train", "sub/elsewhere.prototxt"], "there.prototxt: no such file; a relative path starts at the"),
    (["train", "solver.prototxt", "--threads", "0"], "--threads must be 1 to "),
    (["train", "solver.prototxt", "--threads", "x"], "train: argument --threads: invalid int value: 'x'"),
    (["train", "solver.prototxt", "--sigint_effect", "die"], 'Invalid signal effect "die" was specified'),
    (
        ["train", "solver.prototxt", "--weights", "a", "--snapshot", "b"],
        "Give a snapshot to resume training or weights to finetune but not both.",
    ),
    (["train", "solver.prototxt", "--weights", "nope"], "nope: no such file"),
    (
        ["train", "solver.prototxt", "--weights", "net.prototxt"],
        "net.prototxt: not a binary caffe.NetParameter",
    ),
    (["train", "solver.prototxt", "--snapshot", "nope.solverstate"], "nope.solverstate: no such file"),
    (["train", "solver.prototxt", "--snapshot", "nope.solverstate.h5"], "nope.solverstate.h5: no such file"),
    (
        ["train", "bad_field.prototxt"],
        'bad_field.prototxt:2:1: message "caffe.SolverParameter" has no field "bas_lr"',
    ),
    (["train", "bad_type.prototxt"], "Unknown layer type: InnerProdukt; did you mean 'InnerProduct'?"),
    (["train", "bad_bottom.prototxt"], "Unknown bottom blob 'nobody' (layer 'a', bottom index 0)"),
    (["train", "bad_policy.prototxt"], "Unknown learning rate policy: cosine"),
    (
        ["train", "bad_level.prototxt", "--strict"],
        "bad_level.prototxt: these fields do nothing: train_state.level (write --level 2); remove them",
    ),
    (["test", "--weights", "w"], "Need a model definition to score: --model NET"),
    (["test", "--model", "net.prototxt"], "Need model weights to score: --weights W"),
    (["test", "--model", "nope", "--weights", "w"], "nope: no such file"),
    (["test", "--model", "net.prototxt", "--weights", "w"], "w: no such file"),
    (
        ["test", "--model", "net.prototxt", "--weights", "w", "--phase", "x"],
        'phase must be "TRAIN" or "TEST"; got \'x\'',
    ),
    (
        ["test", "--model", "net.prototxt", "--weights", "w", "--iterations", "0"],
        "--iterations must be at least 1",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_status_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("bad_field.prototxt").write_text('net: "net.prototxt"\nbas_lr: 1')
    Path("bad_policy.prototxt").write_text(SOLVER.replace("fixed", "cosine"))
    Path("sub").mkdir()
    Path("sub/there.prototxt").write_text("")
    Path("sub/elsewhere.prototxt").write_text('net: "there.prototxt"')
    Path("bad_level.prototxt").write_text(SOLVER + "train_state { level: 2 }")
    for name, changed in (("type", "InnerProdukt"), ("bottom", "nobody")):
        text = (
            NET.replace("InnerProduct", changed)
            if name == "type"
            else NET.replace('bottom: "data"', f'bottom: "{changed}"')
        )
        Path(f"bad_{name}_net.prototxt").write_text(text)
        Path(f"bad_{name}.prototxt").write_text(SOLVER.replace("net.prototxt", f"bad_{name}_net.prototxt"))
    before = names(here)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    complaint = [line for line in err.splitlines() if line.startswith("imae: ")]
    assert out == ""
    assert err.splitlines()[-1:] == complaint
    assert message in complaint[0]
    assert "Traceback" not in err
    assert names(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "solver.prototxt", "--gpu", "0"],
            "--gpu 0: no CUDA device is available here; leave --gpu out",
        ),
        (["train", "solver.prototxt", "-gpu=all"], "--gpu all: no CUDA device is available here"),
        (["train", "solver.prototxt", "-gpu"], "--gpu 0: no CUDA device is available here"),
        (
            ["train", "gpu.prototxt"],
            "solver_mode: GPU: no CUDA device is available here; give --cpu or write solver_mode: CPU",
        ),
        (
            ["test", "-model=net.prototxt", "-weights=given_iter_2.caffemodel", "-gpu", "1"],
            "--gpu 1: no CUDA device",
        ),
    ],
)
def test_a_gpu_that_is_not_there(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("gpu.prototxt").write_text(SOLVER + "solver_mode: GPU")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "wanted", "count", "message"),
    [
        ("time", "all", 4, "one GPU computes, 4 are here; choose one, as in --gpu 0"),
        ("time", "0,1", 4, "one GPU computes, 4 are here; choose one, as in --gpu 0"),
        ("train", "2", 2, "expected the id of a GPU, 0 to 1, or all; got '2'"),
        ("train", "x", 1, "expected the id of a GPU, 0 to 0, or all; got 'x'"),
        ("train", "all", 1, None),
        ("train", "1", 2, None),
    ],
)
def test_choosing_a_gpu(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    wanted: str,
    count: int,
    message: str | None,
) -> None:
    """On a machine that only says that it has GPUs; they are used no further than to be chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    chosen: list[int | None] = []

    def use(device: torch.device) -> None:
        chosen.append(device.index)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "set_device", use)
    file = "-solver=solver.prototxt" if command == "train" else "-model=net.prototxt"
    status = main([command, file, "--gpu", wanted])
    if message is None:
        assert (status, chosen) == (130, [0 if wanted == "all" else int(wanted)])
    else:
        assert (status, chosen) == (2, [])
        assert message in capsys.readouterr().err


def test_solver_mode_gpu_counts_only_where_it_is_written(here: Path) -> None:
    assert not read_solver("solver.prototxt").HasField("solver_mode")
    assert main(["train", "solver.prototxt"]) == 0


def test_cpu_overrules_solver_mode(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("solver.prototxt").write_text(SOLVER + "solver_mode: GPU")
    assert main(["train", "solver.prototxt", "--cpu"]) == 0
    assert "Use CPU." in capsys.readouterr().err
    scored = ["test", "-model=net.prototxt", "-weights=given_iter_2.caffemodel", "-iterations=1", "--cpu"]
    for command in (scored, ["time", "-model=net.prototxt", "-iterations=1", "-cpu"]):
        assert main(command) == 0
    assert main(["train", "solver.prototxt", "--cpu", "--gpu", "0"]) == 2
    assert "not allowed with argument --cpu" in capsys.readouterr().err


def test_a_stopped_training_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the first of 9 iterations, and not at the end."""
    Path("net.prototxt").write_text(NET)
    Path("long.prototxt").write_text(SOLVER.replace("max_iter: 2", 'max_iter: 9 snapshot_prefix: "long"'))
    step = Solver.apply_update

    def interrupted(solver: Solver) -> None:
        step(solver)
        if solver.iteration == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Solver, "apply_update", interrupted)
    assert main(["train", "long.prototxt"]) == 0
    advice = "to go on: imae train long.prototxt --snapshot long_iter_1.solverstate, or --resume auto"
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in lines[-3:]] == [
        "Optimization stopped early.", advice, "Optimization Done.",
    ]  # fmt: skip
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["train", *advice.partition("imae train ")[2].partition(",")[0].split()]) == 0
    err = capsys.readouterr().err
    assert "Resuming from long_iter_1.solverstate" in err and "to go on" not in err


@pytest.mark.parametrize("flags", [[], ["--double"]])
def test_scoring_a_model_logs_what_caffe_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.chdir(prepared("digits_lenet", tmp_path))
    capsys.readouterr()
    named = ["-model=net.prototxt", "-weights=lenet_iter_500.caffemodel", "-iterations", "3"]
    assert main(["test", *named, "--verbose", *flags]) == 0
    log = capsys.readouterr().err
    recorded = (RUNS / "digits_lenet" / "test.log").read_text(encoding="utf-8")
    if flags:  # double blobs are twice as large
        log, recorded = (re.sub(r"(required for data:) \d+", r"\1", text) for text in (log, recorded))
    assert worded(log) == worded(recorded)
    rtol, atol, _ = tolerance("logged")
    np.testing.assert_allclose(numbers(log), numbers(recorded), rtol, atol)


def test_scoring_in_phase_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-model=net.prototxt", "-weights=given_iter_2.caffemodel", "-iterations=1", "-phase=TRAIN"]
    assert main(["test", *flags, "-v"]) == 0
    assert "phase: TRAIN" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: imae COMMAND ...")
        assert "\n  train                      train a solver" in out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"imae \d+\.\d+\.\d+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "--snapshot STATE" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_what_the_table_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its module is there, and `imae --help` and `imae NAME --help` say the same of it, from the table."""
    module = command_module(name)
    assert module.__name__ == f"imae.cli.command_{name.replace('-', '_')}"
    assert COMMANDS[name].strip()
    assert not hasattr(module, "HELP")  # no second copy
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: imae {name}" in out
    assert COMMANDS[name] in " ".join(out.split())


def test_every_module_of_a_command_is_in_the_table() -> None:
    modules = Path(main_module.__file__).parent.glob("command_*.py")
    assert {path.stem.removeprefix("command_").replace("_", "-") for path in modules} == set(COMMANDS)


def test_ctrl_c_outside_of_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_run", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "imae: interrupted\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar_below_whole_lines(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, file = Terminal(), io.StringIO()
    for stderr in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(["train", "solver.prototxt"]) == 0
    assert "\r1/2 [50 %]" in terminal.getvalue()
    assert " %]" not in file.getvalue()
    shown = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert worded("\n".join(shown)) == worded(file.getvalue())


def test_the_script_runs_from_anywhere(here: Path) -> None:
    """`train/` on the path would hide modules; the script takes it away before it imports anything."""
    script = Path(main_module.__file__).parents[1] / "train" / "solve.py"
    result = subprocess.run(
        [sys.executable, script, "solver.prototxt"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.endswith("Optimization Done.\n")
    assert names(here) == SNAPPED


def test_other_commands_do_not_wait_for_torch() -> None:
    code = "import sys, imae.cli.main; print(sorted({'torch', 'onnx', 'h5py', 'cv2'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "parse-log --help",
        "plot-log --help",
        "compare-logs --help",
        "device-query --help",
        "draw-net --help",
        "convert-cifar --help",
        "convert-digits --help",
        "convert-folder --help",
        "convert-imageset --help",
        "convert-annoset --help",
        "convert-mars --help",
        "corrupt-labels --help",
        "split-lmdb --help",
        "compute-image-mean --help",
        "upgrade-net-proto-text --help",
        "upgrade-net-proto-binary --help",
        "upgrade-solver-proto-text --help",
        "demo --help",
    ],
)
def test_help_waits_for_no_library_that_it_does_not_need(command: str) -> None:
    """Not for torch; and that of all commands for no command's module and nothing but the command line."""
    code = """
import atexit, sys
from imae.cli.main import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main(sys.argv[1:])
"""
    words = [sys.executable, "-c", code, *command.split()]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(result.stderr.split())
    assert "torch" not in loaded
    if command.startswith("--"):
        assert not loaded & {"numpy", "google.protobuf", "onnx", "h5py", "cv2", "matplotlib"}
        assert not [name for name in loaded if name.startswith("imae.cli.command_")]


class Slow(io.StringIO):
    """Takes its time after an error."""

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.startswith("imae"):
            time.sleep(0.1)
        return written


def test_an_errors_line_is_the_last_whatever_a_thread_still_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that which makes batches ahead."""
    stderr = Slow()
    monkeypatch.setattr(sys, "stderr", stderr)
    done, logger = threading.Event(), logging.getLogger("imae.talker")

    def talk() -> None:
        while not done.is_set():
            logger.info("still here")

    thread = threading.Thread(target=talk)

    def fail(_: object) -> int:
        thread.start()
        time.sleep(0.05)
        raise ImaeError("it is so")

    monkeypatch.setattr(main_module, "_run", fail)
    try:
        assert main(["train"]) == 2
    finally:
        done.set()
        thread.join()
    lines = stderr.getvalue().splitlines()
    assert lines[-1] == "imae: it is so"
    assert "still here" in lines[0]


@pytest.mark.parametrize(("built", "flags", "said"), [(False, [], 1), (True, [], 0), (False, ["--plain"], 0)])
def test_missing_kernels_are_said(
    built: bool,
    flags: list[str],
    said: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(native, "available", lambda: built)
    assert main(["train", "solver.prototxt", *flags]) == 0
    assert capsys.readouterr().err.count("The kernels in C were not built") == said


@pytest.mark.parametrize(
    ("variables", "flags", "said"),
    [
        ({"IMAE_KERNELS": "none"}, [], "Kernels in C: none"),
        ({"IMAE_KERNELS": "none"}, ["--plain"], None),
        ({"IMAE_KERNELS_ISA": "default"}, [], "Kernels in C: BatchNorm (default), LRN and the update of SGD"),
        (
            {"IMAE_KERNELS_ISA": "default"},
            ["--double"],
            "Kernels in C: BatchNorm (default), LRN and the update of SGD",
        ),
        (
            {"IMAE_KERNELS_ISA": "default"},
            ["--precision", "bf16"],
            "Kernels in C: BatchNorm (default), LRN and the update of SGD",
        ),
    ],
)
def test_the_kernels_that_are_used_are_said(
    variables: dict[str, str],
    flags: list[str],
    said: str | None,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not native.available():
        pytest.skip("the kernels in C were not built")
    for name in ("IMAE_KERNELS", "IMAE_KERNELS_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "solver.prototxt", *flags]) == 0
    found = [line for line in capsys.readouterr().err.splitlines() if "Kernels in C" in line]
    assert [line.partition("] ")[2] or line for line in found] == ([] if said is None else [said])


@pytest.mark.parametrize("name", ["IMAE_KERNELS", "IMAE_KERNELS_ISA"])
@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_kernels_that_are_not_known_are_one_line(
    name: str,
    flags: list[str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, "fast")
    assert main(["train", "solver.prototxt", *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imae:")]
    assert line.startswith(f"imae: {name} must be one of ") and line.endswith("; got 'fast'")
