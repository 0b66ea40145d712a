"""What happens around a run: full disks, closed streams, two trainings at once, strange names and limits."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import lmdb
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_solver import TINY_NET as NET
from tiny_solver import TINY_SOLVER, write_solver
from tiny_solver import made_files as names
from waiting import FOR_EVER

from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.files.atomic import atomic_file, atomic_folder, write_atomically
from imae.files.caffe_log import GlogFormatter, read_log
from imae.files.errors import DataError, FileError
from imae.files.limits import free_memory
from imae.files.read import read_bytes
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data_resources import most_threads
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import Datum
from imae.prototxt.text import parse_net
from imae.train.launched_ranks import LaunchedRanks
from imae.train.snapshot_lock import writing_alone
from imae.train.snapshots import find_snapshots
from imae.train.solverstate import read_state

SOLVER = TINY_SOLVER + "max_iter: 4\n"
IMAE = [sys.executable, "-m", "imae.cli.main"]
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")


@pytest.fixture
def here(here: Path) -> Path:
    """A working directory with net.prototxt and solver.prototxt."""
    write_solver(SOLVER)
    return here


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that refuses its input."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imae: ")]
    assert len(lines) == 1
    return lines[0]


# -- standard streams ----------------------------------------------------------------------------------------


@FULL
def test_a_full_disk_under_the_log_does_not_end_a_training(here: Path) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*IMAE, "train", "solver.prototxt"], stderr=full).returncode == 0
    assert {f"s_iter_{i}.{kind}" for i in (2, 4) for kind in ("caffemodel", "solverstate")} == names(here)
    assert read_state("s_iter_4.solverstate").iteration == 4


@FULL
def test_an_error_whose_line_finds_no_room_has_its_status(here: Path) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*IMAE, "train", "none.prototxt"], stderr=full).returncode == 2


@FULL
def test_an_output_for_which_there_is_no_room(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*IMAE, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "imae: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams(here: Path, closed: tuple[int, ...]) -> None:
    """No file gets the number of one, and with it what is written there; nothing goes where it should not."""
    redirections = "".join(f" {number}>&-" for number in closed)
    for command in ("--version", "train solver.prototxt"):
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -m imae.cli.main {command}{redirections}', sys.executable],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr
        assert not re.search(r"\] Iteration", done.stdout)
    assert "s_iter_4.solverstate" in names(here)


# -- the log -------------------------------------------------------------------------------------------------


def test_a_name_does_not_make_lines_nor_act_on_a_terminal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = r"I1129 00:00:00.000000     1 solver.cpp:239] Iteration 999 (1 iter/s, 1s/1 iters), loss = 0"
    name = rf"a\033]0;pwned\007\n{forged}"
    Path("net.prototxt").write_text(NET.replace('"a"', f'"{name}"').replace('top: "loss"', f'top: "{name}2"'))
    assert main(["train", "solver.prototxt"]) == 0
    log = capsys.readouterr().err
    assert "\x1b" not in log and "\x07" not in log and r"a\x1b]0;pwned\x07\nI1129" in log
    assert not any(line.startswith("I1129 00:00:00.000000     1 ") for line in log.splitlines())
    Path("log").write_text(log)
    assert max(number.iteration for number in read_log("log")) == 4


def test_the_lines_of_caffe_that_are_several_stay_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "solver.prototxt"]) == 0
    log = capsys.readouterr().err
    assert "Initializing solver from parameters: \nbase_lr: 0.1\n" in log
    assert "Initializing net from parameters: \nstate {\n  phase: TRAIN\n" in log


def test_names_in_what_commands_print(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "I1129 00:00:00.000000     1 solver.cpp:258]     Train net output #0: a\x1b]0;pwned\x07 = 1\n"
    Path("log").write_text("I1129 00:00:00.000000     1 solver.cpp:239] Iteration 1, loss = 1\n" + line)
    assert main(["compare-logs", "log", "log", "--numbers"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and r"a\x1b]0;pwned\x07" in printed
    Path("net.prototxt").write_text(
        r'layer { name: "i" type: "Input" top: "x\033[2J" input_param { shape { dim: 1 dim: 3 } } }'
        r'layer { name: "r" type: "ReLU" bottom: "x\033[2J" top: "y\033[2J" }'
    )
    assert main(["export", "--model", "net.prototxt", "--output", "x.onnx"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_tabs_stay(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    record = logging.LogRecord("imae", logging.INFO, "x.py", 1, "a\tforward: 1 ms.\x7f", None, None)
    assert GlogFormatter().format(record).endswith("] a\tforward: 1 ms.\\x7f")


# -- two trainings -------------------------------------------------------------------------------------------


def test_a_second_training_with_the_same_prefix_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("long.prototxt").write_text(SOLVER.replace("max_iter: 4", "max_iter: 100000000"))
    first = subprocess.Popen([*IMAE, "train", "long.prototxt", "--keep", "2"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + FOR_EVER
        while not Path("s_iter_4.solverstate").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert refused(capsys, "train", "solver.prototxt", "--keep", "2") == (
            "imae: another training writes its snapshots under snapshot_prefix 's' now; wait for its end, or "
            "choose another snapshot_prefix"
        )
        Path("other.prototxt").write_text(SOLVER.replace('"s"', '"other"'))
        assert main(["train", "other.prototxt"]) == 0
        Path("none.prototxt").write_text(
            SOLVER.replace("snapshot: 2", "snapshot_after_train: false")
        )  # it writes nothing there
        assert main(["train", "none.prototxt"]) == 0
        first.send_signal(signal.SIGINT)
        assert first.wait(FOR_EVER) == 0
    finally:
        first.kill()
        first.wait()
    whole = [found for found in find_snapshots("s") if found.model and found.state]
    assert whole and read_state(whole[0].state).iteration == whole[0].iteration
    assert not {name for name in names(here) if name.endswith(".lock")}
    assert main(["train", "solver.prototxt", "--keep", "2"]) == 0


def test_the_lock_of_a_training_that_was_killed_holds_nobody_up(here: Path) -> None:
    Path(".s.lock").touch()
    with writing_alone("s"), pytest.raises(FileError, match="another training"), writing_alone("s"):
        pass
    assert names(here) == set()
    with writing_alone("no/s"):  # a snapshot will say that there is no such folder
        pass
    Path(".t.lock").symlink_to("elsewhere")
    with writing_alone("t"):
        assert not Path("elsewhere").exists()
    with writing_alone("n" * 250):
        assert len(names(here)) == 2


# -- full disks ----------------------------------------------------------------------------------------------


def mounts() -> bool:
    """Whether a file system of our own can be had, as a full disk."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True
        ).returncode
        == 0
    )


@pytest.mark.skipif(not mounts(), reason="no file system can be mounted here, as by unshare -rm")
@pytest.mark.parametrize("command", ["convert-digits t/out", "split-lmdb db t/out --share 0.5"])
@pytest.mark.parametrize("pages", [0, 1, 2, 3])
def test_databases_on_a_full_disk(here: Path, command: str, pages: int) -> None:
    write_lmdb(
        "db", ((b"%d" % i, Datum(channels=1, height=40, width=40, data=bytes(1600))) for i in range(9))
    )
    Path("t").mkdir()
    script = (
        "mount -t tmpfs -o size=256k tmpfs t || exit 99; cat /dev/zero >t/filler 2>/dev/null; "
        f'truncate -s -{4096 * pages} t/filler; "$0" -m imae.cli.main {command}; status=$?; ls -A t; '
        "exit $status"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "filler\n", done
    assert re.search(r"(?m)^imae: cannot write 't/out", done.stderr)


def test_a_database_has_the_lock_file_that_other_readers_want(here: Path) -> None:
    assert write_lmdb("db", [(b"k", Datum(label=3))]) == 1
    assert {path.name for path in Path("db").iterdir()} == {"data.mdb", "lock.mdb"}
    with lmdb.open("db", readonly=True) as environment, environment.begin() as transaction:
        assert transaction.get(b"k") == Datum(label=3).SerializeToString()


# -- folders and permissions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_folders_that_cannot_be_synced(here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Some file systems of networks, and FUSE, say so; the files themselves are synced."""
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        synced.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically("file", b"1")
    with atomic_folder("folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")
    assert len(synced) == 2
    assert names(here) == {"file", "folder"}


def test_a_disk_that_fails_when_it_is_synced_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FileError, match="Input/output error"):
        write_atomically("file", b"1")


def test_a_folder_that_may_be_written_but_not_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opened(path: str, flags: int, *more: int, **options: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", opened)
    write_atomically("file", b"1")
    assert Path("file").read_bytes() == b"1"


def test_a_file_for_ones_own_eyes_stays_so(here: Path) -> None:
    Path("secret").write_text("old")
    os.chmod("secret", 0o600)
    with atomic_file("secret") as file:
        assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600
        file.write(b"new")
    assert stat.S_IMODE(os.stat("secret").st_mode) == 0o600
    assert Path("secret").read_text() == "new"


# -- what is no regular file ---------------------------------------------------------------------------------


def test_a_pipe_that_a_file_names_is_not_waited_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    os.mkfifo("pipe.npy")
    Path("list").write_text("pipe 0\n")
    image = 'type: "ImageData" top: "a" top: "b" image_data_param { source: "list" batch_size: 1 }'
    with pytest.raises(DataError, match="it is a pipe, not a file"):
        Net(parse_net(f'layer {{ name: "x" {image} }}'), Run(CaffeRandom(1)))
    Path("solver.prototxt").write_text(SOLVER.replace("net.prototxt", "pipe"))
    write_lmdb("db", [(b"k", Datum(channels=1, height=1, width=1, data=b"a"))])
    for arguments in (
        ["train", "solver.prototxt"],
        ["train", "pipe"],
        ["test", "--model", "net.prototxt", "--weights", "pipe"],
        ["parse-log", "pipe", "out"],
        ["convert-cifar", "pipe", "out"],
        ["convert-imageset", "", "pipe", "out"],
        ["corrupt-labels", "db", "out", "--noise", "file", "--labels", "pipe"],
        ["corrupt-labels", "db", "out", "--noise", "file", "--labels", "pipe.npy"],
        ["split-lmdb", "pipe", "out", "--share", "0.5"],
    ):
        assert "it is a pipe, not a file" in refused(capsys, *arguments), arguments


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty"])
def test_devices(here: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    write_lmdb("db", [(b"k", Datum(channels=1, height=1, width=1, data=b"a"))])
    for arguments in (
        ["parse-log", device, "out"],
        ["compare-logs", device, device],
        ["corrupt-labels", "db", "out", "--noise", "file", "--labels", device],
        ["convert-imageset", "", device, "out"],
        ["convert-cifar", device, "out"],
    ):
        assert "it is a device, not a file" in refused(capsys, *arguments), arguments


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="the system has no /proc")
def test_files_that_the_system_makes_up(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have no size, and some no end."""
    assert read_bytes("/proc/self/pagemap") == b""
    assert "no loss, rate or output in it" in refused(capsys, "parse-log", "/proc/self/pagemap", ".")
    assert "the file is empty" in refused(capsys, "train", "/proc/self/pagemap")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="the system has no /dev/fd")
def test_pipes_that_a_process_is_started_with(here: Path) -> None:
    """`imae train <(sed ...)`, and a log through a pipe."""
    for command in (
        "train <(sed s/4/2/ solver.prototxt)",
        "train /dev/stdin < <(cat solver.prototxt)",
        "parse-log <(cat log) out",
    ):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m imae.cli.main {command}', sys.executable],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
        Path("log").write_text(done.stderr)
        Path("out").mkdir(exist_ok=True)


# -- strange names and numbers -------------------------------------------------------------------------------

# In a process of its own: pytest-xdist cannot hand on a log with such names.
LATIN = r"""
import os, shutil, sys
from contextlib import redirect_stderr
from io import StringIO
from imae.layers.data.lmdb_source import open_lmdb
from imae.cli.main import main

latin = os.fsdecode(b"\xfc")

def refused(*arguments):
    with redirect_stderr(StringIO()) as log:
        assert main(list(arguments)) == 2, arguments
    (line,) = [line for line in log.getvalue().splitlines() if line.startswith("imae: ")]
    return line

shutil.copy("solver.prototxt", f"s{latin}.prototxt")
assert main(["train", f"s{latin}.prototxt"]) == 0
shutil.copy("unset.prototxt", f"n{latin}.prototxt")
assert "no snapshot_prefix can be made of this path; write one: " in refused("train", f"n{latin}.prototxt")
shutil.copy("s_iter_4.caffemodel", f"w{latin}.caffemodel")
weights = refused("train", "solver.prototxt", "--weights", f"w{latin}.caffemodel")
assert weights.startswith("imae: --weights cannot be put into the solver; rename the file or folder: ")
assert "--stage names a stage" in refused("train", "solver.prototxt", "--stage", latin)
assert "--stage names a stage" in refused("time", "--model", "net.prototxt", "--stage", latin)
assert main(["train", "solver.prototxt", "--snapshot", "s_iter_2.solverstate"]) == 0
assert main(["convert-digits", f"d{latin}"]) == 0
database = os.path.join(f"d{latin}", "digits_train_lmdb")
assert main(["split-lmdb", database, f"p{latin}", f"r{latin}", "--share", "0.5"]) == 0
assert main(["corrupt-labels", database, f"c{latin}", "--noise", "symmetric", "--rate", "0.4"]) == 0
with open_lmdb(f"c{latin}") as source:
    assert len(source) > 100
shutil.copy("net.prototxt", f"net{latin}.onnx")
model = f"net{latin}.onnx"
for command in (["run", model, "--lmdb", database], ["quantize", model, "q", "--to", "fp16"]):
    assert "ONNX Runtime cannot open it; rename the file or folder" in refused(*command)
"""


def test_paths_that_are_not_utf8(here: Path) -> None:
    Path("unset.prototxt").write_text(SOLVER.replace('snapshot_prefix: "s"', ""))
    done = subprocess.run([sys.executable, "-c", LATIN], capture_output=True, text=True)
    assert done.returncode == 0, ascii(done.stderr)  # surrogates would end the tests of several processes


@pytest.mark.parametrize(
    "command", ["train solver.prototxt", "time --model net.prototxt", "test --model net.prototxt --weights x"]
)
@pytest.mark.parametrize("threads", ["0", "-1", "40000", "1000000000", "99999999999999999999"])
def test_threads(here: Path, capsys: pytest.CaptureFixture[str], command: str, threads: str) -> None:
    """Thousands of them end the libraries, and the process with them."""
    said = refused(capsys, *command.split(), "--threads", threads)
    assert said == f"imae: --threads must be 1 to {most_threads()} on this machine, got {threads}"


def test_zero_bytes_in_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line can have none, but a string of a prototxt can."""
    said = "there is a zero byte in "
    for old, new in (("net.prototxt", r"a\000b"), ('prefix: "s"', r'prefix: "a\000b"')):
        for more in ("", "snapshot_after_train: false", "snapshot_format: HDF5"):
            Path("odd.prototxt").write_text(SOLVER.replace(old, new) + more)
            assert said in refused(capsys, "train", "odd.prototxt", "--keep", "1", "--resume", "auto")
            assert said in refused(capsys, "train", "odd.prototxt")
    for name, inner in {
        "ImageData": r'image_data_param { source: "a\000b" batch_size: 1 }',
        "HDF5Data": r'hdf5_data_param { source: "a\000b" batch_size: 1 }',
        "WindowData": "transform_param { crop_size: 9 } "
        r'window_data_param { source: "a\000b" batch_size: 4 }',
    }.items():
        with pytest.raises(DataError, match=said):
            Net(
                parse_net(f'layer {{ name: "x" type: "{name}" top: "a" top: "b" {inner} }}'),
                Run(CaffeRandom(1)),
            )
    with pytest.raises(FileError, match=said):
        write_atomically("a\0b", b"")
    with pytest.raises(FileError, match=said), atomic_folder("a\0b"):
        pass


def test_a_rank_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="RANK 5 is none of WORLD_SIZE 2, counted from 0; start them with torchrun"
    ):
        LaunchedRanks()


def test_no_further_thread(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    write_lmdb("db", [(b"k", Datum(channels=1, height=1, width=3, data=b"abc"))])
    data = (
        'layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "db" backend: LMDB'
    )
    rest = NET[NET.index('layer { name: "a"') :]
    Path("net.prototxt").write_text(f"{data} batch_size: 2 }} }} {rest}")
    monkeypatch.setattr(threading.Thread, "start", start)
    assert "no further thread can be started" in refused(capsys, "train", "solver.prototxt")


def test_a_limit_of_memory_counts(here: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), limits[1]))
    try:
        assert 0 < free_memory() <= 64 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# -- models that are programs --------------------------------------------------------------------------------


def images_model(*nodes: onnx.NodeProto, size: str | int = 1) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 1, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_name_in_a_model_that_is_not_utf8(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images_model(size="batchXX").SerializeToString().replace(b"batchXX", b"batch\xbd\xbd")
    Path("m.onnx").write_bytes(data)
    Path("x.png").write_bytes(b"")
    assert "m.onnx: ONNX Runtime cannot load it" in refused(capsys, "run", "m.onnx", "--images", "x.png")


def test_ctrl_c_ends_a_model_that_never_does(here: Path) -> None:
    import cv2

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["on_"]),
            helper.make_node("Relu", ["v"], ["v_"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 1, 8, 8]),
        ],
        [
            helper.make_tensor_value_info("on_", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_", TensorProto.FLOAT, [1, 1, 8, 8]),
        ],
    )
    trips = helper.make_node(
        "Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    )
    on = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    loop = helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)
    onnx.save(images_model(trips, on, loop), "m.onnx")
    cv2.imwrite("x.png", np.zeros((8, 8), np.uint8))
    process = subprocess.Popen([*IMAE, "run", "m.onnx", "--images", "x.png", "--threads", "1"])
    try:
        status = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + FOR_EVER
        while time.monotonic() < deadline and process.poll() is None:  # until it counts
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[11]) / os.sysconf("SC_CLK_TCK") > 5:
                break
            time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(FOR_EVER) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
