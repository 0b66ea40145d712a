"""How fast do records become batches: raw CIFAR images, and JPEGs of 256x256?

    python -m benchmarks data [--batches 20]

imae's Data layer (crop, mirror, mean) against a PyTorch DataLoader that does the same with the same LMDB, and
against reading the LMDB's bytes alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import in_turns, machine
from benchmarks.training import write_images
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.net import Net
from imae.prototxt import TRAIN, Datum, NetParameter

BATCH = 128
MEAN = np.array([113.9, 123.0, 125.3], np.float32).reshape(3, 1, 1)


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


def main(arguments: argparse.Namespace) -> None:
    print(machine() + "\n")
    print("| | images per second | of imae |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, path, crop in (
            ("raw 3x40x40, crop 32", write_images(folder / "raw", 10000), 32),
            ("JPEG 256x256, crop 224", _write_jpegs(folder / "jpeg"), 224),
        ):
            net = _net(path, crop)
            loaders = {w: _endless(Records(path, crop), w) for w in (0, 2)}
            batches = arguments.batches if crop == 32 else max(2, arguments.batches // 4)

            def read(path: Path = path) -> None:
                with (
                    lmdb.open(str(path), readonly=True, lock=False) as environment,
                    environment.begin() as reader,
                ):
                    sum(len(value) for _, value in reader.cursor())

            def pull(source: Iterator[object], batches: int = batches) -> None:
                for _ in range(batches):
                    next(source)

            def imae(net: Net = net, batches: int = batches) -> None:
                for _ in range(batches):
                    net.next_batch()

            begun = time.perf_counter()
            imae()
            first = batches * BATCH / (time.perf_counter() - begun)
            ways = {
                "imae, Data layer": imae,
                **{
                    f"PyTorch DataLoader, {workers} workers": (lambda source=source: pull(source))
                    for workers, source in loaders.items()
                },
            }
            timings = in_turns(ways, 3, warm_up=1)
            base = timings["imae, Data layer"].least
            for way, timing in timings.items():
                rate = batches * BATCH / timing.least
                print(f"| {what}: {way} | {rate:,.0f} | {base / timing.least:.2f} |", flush=True)
            with lmdb.open(str(path), readonly=True, lock=False) as environment:
                count = environment.stat()["entries"]
            least = in_turns({"read": read}, 3, warm_up=1)["read"].least
            print(f"| {what}: imae, first batches, not yet cached | {first:,.0f} | |")
            print(f"| {what}: reading the LMDB's bytes | {count / least:,.0f} | |", flush=True)
            del loaders


def _endless(records: Records, workers: int) -> Iterator[object]:
    loader = DataLoader(
        records, BATCH, shuffle=False, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def _write_jpegs(path: Path, count: int = 1024) -> Path:
    """Smooth random pictures: noise compresses to files of an unusual size."""
    random = np.random.default_rng(1)

    def datum(i: int) -> Datum:
        small: NDArray[np.uint8] = random.integers(0, 256, (24, 24, 3), np.uint8)
        done, data = cv2.imencode(".jpg", cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC))
        assert done
        return Datum(data=data.tobytes(), encoded=True, label=i % 10)

    write_lmdb(path, ((b"%08d" % i, datum(i)) for i in range(count)))
    return path


def _net(path: Path, crop: int) -> Net:
    param = NetParameter(name="data")
    param.state.phase = TRAIN
    data = param.layer.add(name="data", type="Data", top=["data", "label"])
    data.transform_param.mean_value.extend(MEAN.ravel().tolist())
    data.transform_param.mirror = True
    data.transform_param.crop_size = crop
    data.data_param.source = str(path)
    data.data_param.batch_size = BATCH
    data.data_param.backend = data.data_param.LMDB
    return Net(param)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=20)
