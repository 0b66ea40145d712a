"""How fast are batches made from records: raw CIFAR images, and JPEGs of 256x256?

    python -m benchmarks data [--batches 40]

imae's Data layer (crop, mirror, mean), with records kept in memory and streamed (--data-cache 0), is compared
with a PyTorch DataLoader that does the same with the same LMDB, and with the limits of all: reading the
LMDB's bytes, decoding its JPEGs on all cores, and the disk. Each way has its own process, to measure its peak
memory (memory that the workers of a DataLoader share is counted in each), and starts each turn without
prefetched batches. Then ImageData, HDF5Data and DummyData beside what they wait for (data_layers.py), and the
share of a training's time that is spent waiting for data, with each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_layers import print_rates, print_waits
from benchmarks.measure import in_turns, machine
from benchmarks.training import make_solver, write_images
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.data_resources import DataResources, usable_cores
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.run import Run
from imae.net.device import keep_freed_memory
from imae.net.net import Net
from imae.prototxt import TRAIN, Datum, NetParameter
from imae.train.solver import Solver

BATCH = 128
MEAN = np.array([113.9, 123.0, 125.3], np.float32).reshape(3, 1, 1)
RAW_IMAGES, JPEGS = 10000, 1024
KEPT, STREAMED = "imae, kept in memory", "imae, streamed"
TRAINED = 5  # iterations


class Records(Dataset[tuple[torch.Tensor, int]]):
    """The usual Dataset over an LMDB of Datums: decode, random crop, mirror, mean."""

    def __init__(self, path: Path, crop: int) -> None:
        self.path, self.crop = str(path), crop
        self.environment: lmdb.Environment | None = None
        with lmdb.open(self.path, readonly=True, lock=False) as environment, environment.begin() as reader:
            self.keys = list(reader.cursor().iternext(values=False))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.environment is None:
            self.environment = lmdb.open(self.path, readonly=True, lock=False)
        with self.environment.begin() as reader:
            datum = Datum.FromString(reader.get(self.keys[index]))
        if datum.encoded:
            pixels = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_COLOR).transpose(2, 0, 1)
        else:
            pixels = np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)
        top, left = np.random.randint(0, pixels.shape[1] - self.crop + 1, 2)
        image = pixels[:, top : top + self.crop, left : left + self.crop].astype(np.float32) - MEAN
        if np.random.randint(2):
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image)), datum.label


# -- the ways: each returns a function that is called once a turn --------------------------------------------


def imae_way(budget: int | None, path: Path, crop: int, batches: int) -> Callable[[], object]:
    keep_freed_memory()
    (layer,) = _net(path, crop, DataResources(budget)).data_layers()
    for _ in range(0, len(open_lmdb(path)), BATCH):  # once through the database
        layer.next_batch()

    def turn() -> object:
        for _ in range(batches):
            layer.next_batch()
        return lambda: layer.set_state(layer.get_state())  # drop prefetched batches

    return turn


def torch_way(workers: int, path: Path, crop: int, batches: int) -> Callable[[], object]:
    keep_freed_memory()
    records = Records(path, crop)
    order = [i % len(records) for i in range(batches * BATCH)]
    loader = DataLoader(
        records, BATCH, sampler=order, num_workers=workers, persistent_workers=workers > 0
    )  # fmt: skip

    def turn() -> None:
        for _ in loader:
            pass

    return turn


def read_way(path: Path, crop: int, batches: int) -> Callable[[], object]:
    def turn() -> None:
        left = batches * BATCH
        with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as reader:
            while left:
                for _, value in reader.cursor():
                    left -= len(bytes(value)) > 0
                    if not left:
                        break

    return turn


def decode_way(path: Path, crop: int, batches: int) -> Callable[[], object]:
    with open_lmdb(path) as source:
        jpegs = [np.frombuffer(source.datum(i).data, np.uint8) for i in range(len(source))]
    sequence = [jpegs[i % len(jpegs)] for i in range(batches * BATCH)]
    pool = ThreadPoolExecutor(usable_cores())

    def decode(begin: int) -> None:
        for jpeg in sequence[begin : begin + 16]:
            cv2.imdecode(jpeg, cv2.IMREAD_COLOR)

    return lambda: list(pool.map(decode, range(0, len(sequence), 16)))


def nothing(path: Path, crop: int, batches: int) -> Callable[[], object]:
    return lambda: None


WAYS: dict[str, Callable[[Path, int, int], Callable[[], object]]] = {
    KEPT: partial(imae_way, None),
    STREAMED: partial(imae_way, 0),
    "PyTorch DataLoader, 0 workers": partial(torch_way, 0),
    "PyTorch DataLoader, 2 workers": partial(torch_way, 2),
    "reading the LMDB's bytes": read_way,
    "decoding alone, all cores": decode_way,
    "(a process that only imports)": nothing,
}


class Worker:
    """A way in its own process."""

    def __init__(self, name: str, path: Path, crop: int, batches: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.data"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, path, crop, batches))
        self._process.start()
        self._connection.recv()

    def turn(self) -> None:
        self._connection.send("turn")
        self._connection.recv()

    def settle(self) -> None:
        """Run what the last turn returned, so that no work of it is left."""
        self._connection.send("settle")
        self._connection.recv()

    def end(self) -> float:
        """End the process; returns its peak memory in MiB, including that of its own workers."""
        self._connection.send("end")
        peak: float = self._connection.recv()
        self._process.join()
        return peak


def _serve(connection: Connection, name: str, path: Path, crop: int, batches: int) -> None:
    way = WAYS[name](path, crop, batches)
    after: object = None
    connection.send("ready")
    while (asked := connection.recv()) != "end":
        if asked == "turn":
            after = way()
        elif callable(after):
            after()
        connection.send("done")
    connection.send(_peak("self") + sum(_peak(str(child.pid)) for child in multiprocessing.active_children()))


def _peak(process: str) -> float:
    status = Path(f"/proc/{process}/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(peak[1]) / 1024 if peak else float("nan")


# -- the benchmark -------------------------------------------------------------------------------------------


def main(arguments: argparse.Namespace) -> None:
    print(machine() + f"; {usable_cores()} threads decode\n")
    print("| | images per second | / imae, kept | peak memory, MiB |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = write_images(folder / f"train_lmdb_{RAW_IMAGES}", RAW_IMAGES)
        _rates("raw 3x40x40, crop 32", raw, 32, arguments.batches)
        _rates("JPEG 256x256, crop 224", _write_jpegs(folder / "jpeg"), 224, max(4, arguments.batches // 10))
        print_rates(folder)
        print()
        _waiting(folder)
        print_waits(folder, make_solver(folder, BATCH, 20, count=RAW_IMAGES).param, TRAINED)


def _rates(title: str, path: Path, crop: int, batches: int) -> None:
    names = [name for name in WAYS if crop > 32 or "decoding" not in name]
    workers = {name: Worker(name, path, crop, batches) for name in names}
    timings = in_turns(
        {name: worker.turn for name, worker in workers.items()},
        3,
        warm_up=1,
        after={name: worker.settle for name, worker in workers.items()},
    )
    for name, timing in timings.items():
        rate, peak = batches * BATCH / timing.least, workers[name].end()
        if WAYS[name] is nothing:
            print(f"| {title}: {name} | | | {peak:.0f} |", flush=True)
            continue
        ratio = timings[KEPT].least / timing.least
        print(f"| {title}: {name} | {rate:,.0f} | {ratio:.2f} | {peak:.0f} |", flush=True)
    size, seconds = _disk(path / "data.mdb")
    with open_lmdb(path) as source:
        rate = len(source) / seconds
    ratio = rate / (batches * BATCH / timings[KEPT].least)
    print(f"| {title}: the disk, {size / seconds / 1e9:.2f} GB/s | {rate:,.0f} | {ratio:.2f} | |", flush=True)


def _disk(file: Path, rounds: int = 3) -> tuple[int, float]:
    """The size of a file, and the least seconds to read it when it is not in the page cache."""
    best, number = float("inf"), os.open(file, os.O_RDONLY)
    try:
        os.fsync(number)
        for _ in range(rounds):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(number, 0, os.SEEK_SET)
            begun = time.perf_counter()
            while os.read(number, 1 << 22):
                pass
            best = min(best, time.perf_counter() - begun)
        return os.fstat(number).st_size, best
    finally:
        os.close(number)


def _waiting(folder: Path) -> None:
    """Print how long ResNet-20, batch 128, waits for the raw images."""
    keep_freed_memory()
    param = make_solver(folder, BATCH, 20, count=RAW_IMAGES).param
    for way, budget in ((KEPT, None), (STREAMED, 0)):
        solver = Solver(param, data_resources=DataResources(budget))
        (layer,) = solver.net.data_layers()
        solver.step(2)
        begun, waited = time.perf_counter(), layer.waited
        solver.step(TRAINED)
        seconds, waited = time.perf_counter() - begun, layer.waited - waited
        print(
            f"- ResNet-20, batch {BATCH}, {TRAINED} iterations, {way}: waited for data "
            f"{1e3 * waited:.1f} ms of {seconds:.2f} s ({100 * waited / seconds:.2f} %)",
            flush=True,
        )


def _write_jpegs(path: Path, count: int = JPEGS) -> Path:
    """Write JPEGs of smooth random images, since noise would compress to files of an unusual size."""
    random = np.random.default_rng(1)

    def datum(i: int) -> Datum:
        small: NDArray[np.uint8] = random.integers(0, 256, (24, 24, 3), np.uint8)
        done, data = cv2.imencode(".jpg", cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC))
        assert done
        return Datum(data=data.tobytes(), encoded=True, label=i % 10)

    write_lmdb(path, ((b"%08d" % i, datum(i)) for i in range(count)))
    return path


def _net(path: Path, crop: int, resources: DataResources) -> Net:
    param = NetParameter(name="data")
    param.state.phase = TRAIN
    data = param.layer.add(name="data", type="Data", top=["data", "label"])
    data.transform_param.mean_value.extend(MEAN.ravel().tolist())
    data.transform_param.mirror = True
    data.transform_param.crop_size = crop
    data.data_param.source = str(path)
    data.data_param.batch_size = BATCH
    data.data_param.backend = data.data_param.LMDB
    return Net(param, Run(data_resources=resources))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=40)
