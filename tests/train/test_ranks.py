"""Several ranks train one net: which records each reads, what they learn, how they end, how they start."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from rank_runs import PATIENCE, Job, ending, fail_beside_one_that_waits, job, train
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DeviceError, ImaeError, LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array
from imae.layers.layer import DataLayer
from imae.layers.ranks import ALONE, Ranks
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net import device
from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter
from imae.prototxt.text import parse_text, read_binary
from imae.train import launched_ranks
from imae.train.launched_ranks import spawn
from imae.train.snapshots import find_snapshots
from imae.train.solverstate import read_state

ROOT = Path(__file__).parents[2]
BATCH, CLASSES = 4, 3
NET = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        data_order_param { order: ORDER } transform_param { scale: 0.00390625 TRANSFORM }
        data_param { source: "train_db" batch_size: 4 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { scale: 0.00390625 TRANSFORM }
        data_param { source: "train_db" batch_size: 5 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 3 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
DROPOUT
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 }
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.5 lr_policy: "step" gamma: 0.5 stepsize: 5 momentum: 0.9 weight_decay: 0.01
random_seed: 7 display: 1 max_iter: 8 snapshot_prefix: "s"
"""
RANDOM = ("SHUFFLED", "crop_size: 3 mirror: true", "dropout")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a database of 64 records, net and solver."""
    monkeypatch.chdir(tmp_path)
    make_lmdb(range(64))
    write_net()
    Path("solver.prototxt").write_text(SOLVER)
    return tmp_path


def make_lmdb(records: Any, path: str = "train_db", labels: dict[int, int] | None = None) -> None:
    """Records by number, each of its own noise; `labels` takes the place of theirs."""
    noise = np.random.RandomState(1).randint(0, 256, (64, 2, 4, 4)).astype(np.uint8)
    data = [datum_from_array(noise[i], (labels or {}).get(i, i * i % CLASSES)) for i in records]
    shutil.rmtree(path, ignore_errors=True)
    write_lmdb(path, [(b"%05d" % place, datum) for place, datum in enumerate(data)])


def write_net(order: str = "SEQUENTIAL", transform: str = "", dropout: str = "") -> None:
    layer = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }' if dropout else ""
    text = NET.replace("ORDER", order).replace("TRANSFORM", transform).replace("DROPOUT", layer)
    Path("net.prototxt").write_text(text)


def write_solver(more: str) -> None:
    """The solver, with some of its fields set anew."""
    kept = SOLVER
    for name in re.findall(r"(\w+):", more):
        kept = re.sub(rf"\b{name}: \S+", "", kept)
    Path("solver.prototxt").write_text(kept + more)


def weights(path: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """All weights of a caffemodel, one behind the other."""
    net = read_binary(path, NetParameter)
    return np.concatenate([np.array(blob.data, np.float32) for layer in net.layer for blob in layer.blobs])


def lost(log: str) -> list[str]:
    """The lines by which a rank says why it ends."""
    assert "Traceback" not in log
    return [line for line in log.splitlines() if line.startswith("imae: ")]


# -- which records -------------------------------------------------------------------------------------------


def skipping(endless: Callable[[int], int], rank: int, size: int, count: int) -> list[int]:
    """Caffe's Skip and Next, one record at a time: what a rank gets of an endless list."""
    taken, offset = [], 0
    while len(taken) < count:
        if offset % size == rank:
            taken.append(endless(offset))
        offset += 1
    return taken


def layer_of(kind: str, text: str, who: Ranks, phase: int = TRAIN, seed: int = 5) -> DataLayer:
    param = parse_text(
        f'name: "data" type: "{kind}" top: "data" top: "label" {text}', LayerParameter, "<test>"
    )
    param.phase = phase
    layer = layer_class(kind)(param)
    assert isinstance(layer, DataLayer)
    layer.build([], Run(CaffeRandom(seed), who))
    return layer


def numbered_lmdb(count: int) -> None:
    data = [datum_from_array(np.full((1, 1, 1), i, np.uint8), i) for i in range(count)]
    write_lmdb("db", [(b"%05d" % i, datum) for i, datum in enumerate(data)])


@pytest.mark.parametrize("order", ["SEQUENTIAL", "SHUFFLED"])
@pytest.mark.parametrize(("records", "size"), [(7, 2), (8, 2), (5, 3), (2, 3), (16, 8)])
def test_a_rank_reads_what_caffe_lets_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, records: int, size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    numbered_lmdb(records)
    text = f'data_param {{ source: "db" batch_size: 3 backend: LMDB }} data_order_param {{ order: {order} }}'
    alone = layer_of("Data", text, ALONE)
    endless = [int(label) for _ in range(8 * size) for label in alone.next_batch()[1]]
    for rank in range(size):
        layer = layer_of("Data", text, Ranks(rank, size))
        want = skipping(endless.__getitem__, rank, size, 24)
        first = [int(label) for _ in range(5) for label in layer.next_batch()[1]]
        state = layer.get_state()
        rest = [int(label) for _ in range(3) for label in layer.next_batch()[1]]
        assert first + rest == want
        layer.set_state(state)
        assert [int(label) for _ in range(3) for label in layer.next_batch()[1]] == rest
        layer.close()  # type: ignore[operator]  # torch's Module knows only tensors and modules
    alone.close()  # type: ignore[operator]


@pytest.mark.parametrize("shuffle", ["false", "true"])
@pytest.mark.parametrize(("rows", "size"), [((4, 3, 1), 2), ((5,), 2), ((1, 4), 3)])
def test_a_rank_reads_its_rows_of_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str, rows: tuple[int, ...], size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, count in enumerate(rows):
        with h5py.File(f"{number}.h5", "w") as file:
            file["data"] = file["label"] = 10 * number + np.arange(count, dtype=np.float32)
    Path("list").write_text("\n".join(f"{number}.h5" for number in range(len(rows))))
    text = f'hdf5_data_param {{ source: "list" batch_size: 4 shuffle: {shuffle} }}'
    alone = layer_of("HDF5Data", text, ALONE)
    endless = [int(label) for _ in range(4 * size) for label in alone.next_batch()[1]]
    for rank in range(size):
        layer = layer_of("HDF5Data", text, Ranks(rank, size))
        got = [int(label) for _ in range(4) for label in layer.next_batch()[1]]
        assert got == skipping(endless.__getitem__, rank, size, 16)


def test_rank_0_tests_on_all_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    numbered_lmdb(6)
    layer = layer_of("Data", 'data_param { source: "db" batch_size: 6 backend: LMDB }', Ranks(0, 2), TEST)
    assert layer.next_batch()[1].tolist() == [0, 1, 2, 3, 4, 5]
    layer.close()  # type: ignore[operator]


def test_each_rank_draws_balanced_batches_of_its_own(here: Path) -> None:
    text = (
        'data_param { source: "train_db" batch_size: 4 backend: LMDB } '
        "data_order_param { order: CLASS_BALANCED classes_per_batch: 2 images_per_class: 2 }"
    )
    make_lmdb(range(64), labels={i: i % 2 for i in range(64)})
    drawn = []
    for rank in range(2):
        layer = layer_of("Data", text, Ranks(rank, 2), seed=5 + rank)  # the solver seeds each rank so
        batches = [layer.next_batch() for _ in range(4)]
        assert all(sorted(labels.tolist()) == [0, 0, 1, 1] for _, labels in batches)
        drawn.append(torch.cat([images for images, _ in batches]))
        layer.close()  # type: ignore[operator]
    assert not torch.equal(*drawn)


def test_layers_that_cannot_share_say_so(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cv2.imwrite("a.png", np.zeros((2, 2, 3), np.uint8))
    Path("list").write_text("a.png 0\n")
    recommended = "Shuffling or skipping recommended for multi-GPU"
    for more, who, count in (("", Ranks(0, 2), 1), ("shuffle: true", Ranks(0, 2), 0), ("", ALONE, 0)):
        caplog.clear()
        layer_of("ImageData", f'image_data_param {{ source: "list" batch_size: 1 {more} }}', who)
        assert sum(recommended in message for message in caplog.messages) == count
    param = parse_text(
        'name: "out" type: "HDF5Output" hdf5_output_param { file_name: "out.h5" } bottom: "a" bottom: "b"',
        LayerParameter,
        "<test>",
    )
    with pytest.raises(LayerError, match=r"each of 2 ranks would write 'out\.h5'"):
        layer_class("HDF5Output")(param).build([(1, 1), (1,)], Run(CaffeRandom(1), Ranks(0, 2)))


@pytest.mark.parametrize(
    ("who", "bottom", "count"), [(Ranks(0, 2), "", 1), (Ranks(0, 2), "a", 0), (ALONE, "", 0)]
)
def test_a_python_layer_that_reads_data_must_know_its_rank(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    who: Ranks,
    bottom: str,
    count: int,
) -> None:
    monkeypatch.syspath_prepend(here)
    code = ["import caffe", "class Source(caffe.Layer):"]
    code += [f"    def {name}(self, bottom, top): pass" for name in ("setup", "forward", "backward")]
    code += ["    def reshape(self, bottom, top): top[0].reshape(1)"]
    Path("rank_source.py").write_text("\n".join(code))
    text = 'name: "d" type: "Python" top: "b" python_param { module: "rank_source" layer: "Source" }'
    param = parse_text(text, LayerParameter, "<test>")
    param.phase = TRAIN
    if bottom:
        param.bottom.append(bottom)
    layer_class("Python")(param).build([(1,)] * bool(bottom), Run(CaffeRandom(1), who))
    assert sum("each of 2 ranks runs it" in message for message in caplog.messages) == count


# -- what is learnt ------------------------------------------------------------------------------------------


def test_two_ranks_learn_what_one_process_learns_in_two_passes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """iter_size adds up where ranks average, and Caffe clips before it divides: its limit is twice theirs."""
    write_solver("clip_gradients: 0.25")
    log = train(here, 2, "solver.prototxt")
    together = weights("s_iter_8.caffemodel")
    state = read_state("s_iter_8.solverstate")
    order = [8 * batch + rank + 2 * k for batch in range(8) for rank in range(2) for k in range(BATCH)]
    make_lmdb(order)
    write_solver('clip_gradients: 0.5 iter_size: 2 snapshot_prefix: "one"')
    assert main(["train", "solver.prototxt"]) == 0
    one_log = capsys.readouterr().err
    rtol, atol, _ = tolerance("same arithmetic")
    assert 2 <= log.count("Gradient clipping") == one_log.count("Gradient clipping") <= 8
    np.testing.assert_allclose(together, weights("one_iter_8.caffemodel"), rtol, atol)
    for ours, other in zip(state.history, read_state("one_iter_8.solverstate").history, strict=True):
        np.testing.assert_allclose(ours, other, rtol, atol * np.abs(other).max())


@pytest.mark.parametrize("end", ["", ".h5"])
def test_two_ranks_go_on_exactly(here: Path, capsys: pytest.CaptureFixture[str], end: str) -> None:
    """Bit for bit, through --resume auto; random orders, crops and masks differ from rank to rank."""
    write_net(*RANDOM)
    write_solver(f"snapshot: 4 test_iter: 2 test_interval: 3 {'snapshot_format: HDF5' if end else ''}")
    log = train(here, 2, "solver.prototxt")
    whole = read_state(f"s_iter_8.solverstate{end}")
    assert seeds(whole.run) == [7, 8]
    first, second = (state["data"][0]["data"] for state in (whole.run, *whole.run["ranks"]))
    assert first["transformer"] != second["transformer"]
    assert first["round"] == second["round"]  # one order for both
    Path(f"s_iter_8.solverstate{end}").unlink()
    Path(f"s_iter_8.caffemodel{end}").unlink()
    resumed = train(here, 2, "solver.prototxt", "--resume", "auto")
    again = read_state(f"s_iter_8.solverstate{end}")
    assert again.run.pop("model") == whole.run.pop("model") or end  # HDF5 files differ in unused bytes
    assert str(again) == str(whole)
    assert [values.tobytes() for values in again.history] == [values.tobytes() for values in whole.history]
    for line in ("Iteration 7 ", "Iteration 8, loss", "Test net output #0: loss = "):
        assert said(line, log)[-1:] == said(line, resumed)[-1:] != []


def seeds(run: dict[str, Any]) -> list[int]:
    """The seed of each rank's random numbers."""
    return [int.from_bytes(state["random"][:4], "little") for state in (run, *run["ranks"])]


def said(line: str, log: str) -> list[str]:
    """What the lines that contain `line` say from there on, speed apart."""
    return [re.sub(r"\(.*?s/", "(", found) for found in re.findall(f"{re.escape(line)}.*", log)]


def test_one_rank_alone_hears_itself() -> None:
    """The solver asks it what it asks several; what it wants is asked for only after the update."""
    blob, asked = torch.ones(3), list[str]()

    def flags() -> list[bool]:
        asked.append("flags")
        return [True, False]

    ALONE.connect(torch.device("cpu"))
    ALONE.broadcast([blob])
    ALONE.average([blob], flags)
    assert not asked and blob.tolist() == [1, 1, 1]
    assert ALONE.any_rank(flags) == [True, False] and asked == ["flags"]
    assert (ALONE.broadcast_str("a\0b"), ALONE.broadcast_int(-7)) == ("a\0b", -7)
    assert ALONE.gather(b"state") == [b"state"]
    assert (ALONE.rank, ALONE.size, ALONE.local_rank, ALONE.local_size) == (0, 1, 0, 1)


def test_another_number_of_ranks_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_solver("max_iter: 2")
    train(here, 2, "solver.prototxt")
    write_solver("max_iter: 4")
    resume = ["solver.prototxt", "--snapshot", "s_iter_2.solverstate"]
    assert main(["train", *resume]) == 2
    assert lost(capsys.readouterr().err) == [
        "imae: s_iter_2.solverstate: the run cannot go on exactly: it was written by 2 rank(s), and 1 would "
        "go on; start 2, with torchrun --nproc-per-node 2 (--resume-as-caffe starts the data anew)"
    ]
    assert main(["train", *resume, "--resume-as-caffe"]) == 0
    with job(here, 2, "solver.prototxt", "--resume", "auto") as started:  # from what one process wrote
        assert started.ended() == [2, 2]
        (line,) = lost(started.log(0) + started.log(1))
    assert re.match(
        r"imae: rank [01]: s_iter_4\.solverstate: .* written by 1 rank\(s\), and 2 would go on", line
    )


def test_a_fresh_seed_is_agreed_on(here: Path) -> None:
    write_net(*RANDOM)
    write_solver("random_seed: -1 max_iter: 1")
    log = train(here, 2, "solver.prototxt")
    (seed,) = re.findall(r"this run's seed is (\d+)", log)
    assert seeds(read_state("s_iter_1.solverstate").run) == [int(seed), (int(seed) + 1) % 2**32]


# -- how they end --------------------------------------------------------------------------------------------


def test_a_rank_that_fails_ends_the_job(here: Path) -> None:
    """A label that only rank 1 reads; rank 0 waits for its gradients."""
    make_lmdb(range(64), labels={25: 99})
    with job(here, 2, "solver.prototxt") as started:
        assert started.ended() == [2, 2]
        logs = [started.log(0), started.log(1)]
    assert lost(logs[0]) == [] and "Iteration 2 " in logs[0]
    (line,) = lost(logs[1])
    assert logs[1] == f"{line}\n"
    assert line.startswith("imae: rank 1: layer 'loss' (SoftmaxWithLoss): label 99 is out of range")


def test_a_rank_that_waits_for_one_that_fails_is_ended(tmp_path: Path) -> None:
    """As on a GPU, where a sum to which not all contribute never ends."""
    begun = time.monotonic()
    with ending(Job(tmp_path, 2, fail_beside_one_that_waits)) as started:
        assert started.ended() == [2, 1]
        assert started.log(0) == ""
        assert started.log(1).endswith("ImaeError: rank 1: it is broken\n")
    assert time.monotonic() - begun < PATIENCE


def test_an_error_of_all_ranks_is_said_once(here: Path) -> None:
    Path("net.prototxt").unlink()
    with job(here, 2, "solver.prototxt") as started:
        assert started.ended() == [2, 2]
        (line,) = lost(started.log(0) + started.log(1))
    assert re.match(r"imae: rank [01]: .*net\.prototxt", line)


def test_a_rank_that_is_killed_ends_the_job(here: Path) -> None:
    write_solver("max_iter: 1000000 display: 20")
    with job(here, 2, "solver.prototxt") as started:
        wait_for(lambda: "Iteration 20 " in started.log(0))
        os.kill(started.processes[1].pid or 0, signal.SIGKILL)
        assert started.ended() == [2, -signal.SIGKILL]
        (line,) = lost(started.log(0))
    assert line.startswith("imae: rank 0: the connection to the other ranks is lost: ")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_signal_to_one_rank_is_heard_by_all(here: Path) -> None:
    """SIGHUP: a snapshot, and on they go; SIGINT: one more, and the end."""
    write_solver("max_iter: 1000000 display: 20 test_iter: 1 test_interval: 50")
    with job(here, 2, "solver.prototxt") as started:
        wait_for(lambda: "Iteration 20 " in started.log(0))
        os.kill(started.processes[1].pid or 0, signal.SIGHUP)
        wait_for(lambda: any(found.state for found in find_snapshots("s")))
        os.kill(started.processes[1].pid or 0, signal.SIGINT)
        assert started.ended() == [0, 0]
        log = started.log(0)
        assert started.log(1) == ""
    assert log.count("Snapshotting solver state") == 2
    assert log.splitlines()[-3].endswith("Optimization stopped early.")
    assert "to go on: imae train solver.prototxt --snapshot s_iter_" in log.splitlines()[-2]
    newest = find_snapshots("s")[0]
    iteration = newest.iteration
    write_solver(f"max_iter: {iteration + 1}")
    assert f"Iteration {iteration} " in train(here, 2, "solver.prototxt", "--snapshot", newest.state)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_signals_during_a_test(here: Path) -> None:
    """The others wait meanwhile; all snapshot and stop at the test's iteration, as one process does."""
    write_solver("max_iter: 2 test_iter: 100000000 test_interval: 1 test_initialization: false")
    with job(here, 2, "solver.prototxt") as started:
        wait_for(lambda: "Iteration 1, Testing net" in started.log(0))
        os.kill(started.processes[0].pid or 0, signal.SIGHUP)
        wait_for(lambda: any(found.state for found in find_snapshots("s")))
        first = Path("s_iter_1.solverstate").read_bytes()
        os.kill(started.processes[0].pid or 0, signal.SIGTERM)
        assert started.ended() == [0, 0]
        assert "Test interrupted." in started.log(0)
    assert len(find_snapshots("s")) == 1
    assert Path("s_iter_1.solverstate").read_bytes() == first


# -- how they are started ------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def test_torchrun(here: Path) -> None:
    write_solver("max_iter: 2")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"{ROOT}/train/solve.py"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "solver.prototxt"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Iteration 1 ") == 1
    assert len(read_state("s_iter_2.solverstate").run["ranks"]) == 1


def test_spawn_starts_ranks_and_passes_signals_on(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_solver("max_iter: 1000000 display: 20 snapshot: 20")

    def stop() -> None:
        wait_for(lambda: bool(find_snapshots("s")))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopping = threading.Thread(target=stop)
    stopping.start()
    assert spawn(2, ["train", "solver.prototxt"]) == 0
    stopping.join()
    assert signal.getsignal(signal.SIGTERM) is before
    log = capfd.readouterr().err
    assert log.count("Iteration 20 ") == log.count("Optimization stopped early.") == 1
    assert len(read_state(find_snapshots("s")[0].state).run["ranks"]) == 1


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        (["pass", "pass"], 0),
        (["pass", "sys.exit(3)"], 3),
        (["time.sleep(99)", "sys.exit(2)"], 2),
        (["time.sleep(99)", "os.kill(os.getpid(), 9)"], "rank 1 was ended by signal 9"),
    ],
)
def test_the_first_rank_to_fail_gives_the_status(
    monkeypatch: pytest.MonkeyPatch, codes: list[str], status: int | str
) -> None:
    monkeypatch.setattr(launched_ranks, "GRACE", 0.1)
    processes = [subprocess.Popen([sys.executable, "-c", f"import os, sys, time; {code}"]) for code in codes]
    try:
        if isinstance(status, int):
            assert launched_ranks.exit_status(processes) == status
        else:
            with pytest.raises(ImaeError, match=status):
                launched_ranks.exit_status(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("wanted", "there", "count", "ids"),
    [
        ("0", 4, 2, [0, 1]),
        ("all", 4, 4, [0, 1, 2, 3]),
        ("2,3", 4, 2, [2, 3]),
        ("2", 4, 1, [2]),
        ("0", 1, 2, "--gpu 0: one GPU is needed for each of 2 ranks here; got 1"),
        ("0,1,2", 4, 2, "one GPU is needed for each of 2 ranks here; got 3"),
        ("0,4", 4, 2, "expected the id of a GPU, 0 to 3, or all; got '0,4'"),
        ("1,1", 4, 2, "a GPU is in the list twice"),
    ],
)
def test_each_rank_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, wanted: str, there: int, count: int, ids: list[int] | str
) -> None:
    """On a machine that only says that it has GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    arguments = wanted, f"--gpu {wanted}", "leave --gpu out", count
    if isinstance(ids, list):
        assert device.gpus_of_ranks(*arguments) == ids
    else:
        with pytest.raises(DeviceError, match=re.escape(ids)):
            device.gpus_of_ranks(*arguments)


@pytest.mark.parametrize("wanted", ["0,1", "all"])
def test_several_gpus_mean_as_many_ranks(here: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    started: list[Any] = []
    monkeypatch.setattr("imae.train.launched_ranks.spawn", lambda *what: started.append(what) or 0)
    assert main(["train", "solver.prototxt", f"-gpu={wanted}"]) == 0
    assert started == [(2, ["train", "solver.prototxt", f"-gpu={wanted}"])]


@pytest.mark.parametrize(
    "asked, processes, given, cores, threads",
    [
        (None, 1, None, 8, None),  # torch's own choice
        (None, 2, None, 8, 4),
        (None, 2, "1", 8, 4),  # what torchrun sets
        (None, 2, "3", 8, None),  # what a user has set
        (None, 2, "1", 2, 1),
        (None, 4, "1", 2, 1),
        (5, 4, "1", 2, 5),
    ],
)
def test_ranks_share_the_cores_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    processes: int,
    given: str | None,
    cores: int,
    threads: int | None,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    device.set_threads(asked, processes)
    assert chosen == ([] if threads is None else [threads])
