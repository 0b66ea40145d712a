"""The rates of ImageData, HDF5Data and DummyData beside what they wait for, and how long trainings wait.

Part of `python -m benchmarks data`. All ways of a layer take turns in this process; each turn starts without
batches that were made ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import in_turns
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import AheadLayer
from imae.layers.data.data_resources import DataResources, usable_cores
from imae.layers.data.dummy_data import DummyData
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net import kernels
from imae.prototxt import TRAIN, LayerParameter, NetParameter, SolverParameter
from imae.prototxt.text import parse_net, parse_text
from imae.train.options import Options
from imae.train.solver import Solver

FILES, BATCH, BATCHES = 256, 64, 4
ROWS, ROW = 4096, (3, 32, 32)
IMAGENET = (32, 3, 227, 227)  # a batch of CaffeNet
GAUSSIAN = 'data_filler { type: "gaussian" std: 0.01 }'

Way = Callable[[], object]


def print_rates(folder: Path) -> None:
    """The table: images per second, and the ratio to the rate of what the layer waits for."""
    print("\n| layer | images per second | / that of |\n| --- | ---: | --- |")
    paths = _write_files(folder)
    write_hdf5(folder)
    jpegs = "JPEG files 256x256"
    for size, crop in ((0, 224), (128, 112)):
        what = f", resized to {size}x{size}" if size else ""
        layer = _ahead(image_data(folder, BATCH, crop, size))
        base = f"reading and decoding{' and resizing' if size else ''} alone, all cores"
        ways = {"ImageData": _batches(layer), base: _decoding(paths, size)}
        _print_rows(f"{jpegs}{what}, crop {crop}", ways, BATCH * BATCHES, layer)
    layer = _ahead(hdf5_data(folder, BATCH))
    whole = _read(folder)
    ways = {
        "HDF5Data": _batches(layer, ROWS // BATCH),
        "copying rows in memory alone": _copying(whole),
        "reading the file alone": lambda: _read(folder),
    }
    _print_rows("3x32x32, shuffled", ways, ROWS, layer)
    shape = "x".join(map(str, IMAGENET))
    words, normal = np.random.Generator(np.random.MT19937(1)), (IMAGENET, np.float32)
    gaussian = _built(dummy_data(IMAGENET, GAUSSIAN))
    gaussian.ahead.WORTHWHILE = 1 << 40  # in turn, as there is nothing to do meanwhile
    ways = {
        "DummyData, gaussian": gaussian,
        "numpy's normal values, of the same words, alone": lambda: words.standard_normal(*normal),
    }
    _print_rows(shape, ways, IMAGENET[0])
    values = np.zeros(IMAGENET, np.float32)
    ways = {
        "DummyData, constant": _built(dummy_data(IMAGENET, "data_filler { value: 1 }")),
        "a copy of the batch": values.copy,
    }
    _print_rows(shape, ways, IMAGENET[0])


def print_waits(folder: Path, param: SolverParameter, iterations: int) -> None:
    """How long ResNet-20, whose solver is `param`, and CaffeNet wait for each layer."""
    _write_files(folder)
    write_hdf5(folder)
    small = (128, *ROW)
    for name, layer in (
        ("ImageData, JPEG files 256x256 resized to 40x40", image_data(folder, small[0], 32, 40)),
        ("HDF5Data", hdf5_data(folder, small[0])),
        ("DummyData, constant", dummy_data(small, "data_filler { value: 1 }")),
        ("DummyData, gaussian", dummy_data(small, GAUSSIAN)),
    ):
        own = SolverParameter()
        own.CopyFrom(param)
        others = [other for other in own.net_param.layer if other.type != "Data"]
        del own.net_param.layer[:]
        own.net_param.layer.extend([parse_text(layer, LayerParameter, "<benchmark>"), *others])
        _print_wait(f"ResNet-20, batch {small[0]}", name, own, iterations)
    for name, filler in (("constant", "data_filler { value: 1 }"), ("gaussian", GAUSSIAN)):
        own = SolverParameter(base_lr=0.001, lr_policy="fixed", snapshot_after_train=False)
        own.net_param.CopyFrom(caffenet(dummy_data(IMAGENET, filler)))
        _print_wait(f"CaffeNet, batch {IMAGENET[0]}", f"DummyData, {name}", own, iterations)


def _print_wait(net: str, name: str, param: SolverParameter, iterations: int) -> None:
    solver = Solver(param, Options(), data_resources=DataResources(0))
    layer = solver.net.layer("data")
    clock = _Clock()
    if isinstance(layer, DummyData):
        layer.ahead.draw = clock.around(layer.ahead.draw)  # type: ignore[method-assign]
    solver.step(3)  # DummyData sees how much the others draw
    waited, begun = clock.seconds + getattr(layer, "waited", 0.0), time.perf_counter()
    solver.step(iterations)
    seconds = time.perf_counter() - begun
    waited = clock.seconds + getattr(layer, "waited", 0.0) - waited
    print(
        f"- {net}, {iterations} iterations, {name}: waited for data {1e3 * waited:.1f} ms of {seconds:.2f} s "
        f"({100 * waited / seconds:.2f} %)",
        flush=True,
    )


class _Clock:
    """Adds up how long calls of a function take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(
        self, draw: Callable[[CaffeRandom], list[NDArray[np.float32]]]
    ) -> Callable[[CaffeRandom], list[NDArray[np.float32]]]:
        def timed(random: CaffeRandom) -> list[NDArray[np.float32]]:
            begun = time.perf_counter()
            values = draw(random)
            self.seconds += time.perf_counter() - begun
            return values

        return timed


def _print_rows(what: str, ways: dict[str, Way], count: int, layer: AheadLayer | None = None) -> None:
    """Time the ways in turns; the first one is the layer, each a turn of `count` images."""
    after = {next(iter(ways)): lambda: layer.set_state(layer.get_state())} if layer is not None else {}
    timings = in_turns(ways, 3, warm_up=1, after=after)
    (name, own), *others = timings.items()
    for other, timing in others:
        ratio = timing.ratio(own)
        print(f"| {name}: {what} | {count / own.least:,.0f} | {ratio:.2f} of {other} |", flush=True)


# -- the layers, and what they wait for ----------------------------------------------------------------------


def image_data(folder: Path, batch: int, crop: int, size: int) -> str:
    resized = f"new_height: {size} new_width: {size}" if size else ""
    return (
        'name: "data" type: "ImageData" top: "data" top: "label" transform_param { mirror: true '
        f"crop_size: {crop} mean_value: 104 mean_value: 117 mean_value: 123 }} image_data_param {{ source: "
        f'"{folder}/list.txt" batch_size: {batch} shuffle: true {resized} }}'
    )


def hdf5_data(folder: Path, batch: int) -> str:
    return (
        'name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { '
        f'source: "{folder}/files.txt" batch_size: {batch} shuffle: true }}'
    )


def dummy_data(shape: Sequence[int], filler: str) -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return (
        'name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { '
        f"shape {{ {dims} }} shape {{ dim: {shape[0]} }} {filler} data_filler {{ value: 1 }} }}"
    )


def _built(text: str) -> Any:
    param = parse_text(text, LayerParameter, "<benchmark>")
    param.phase = TRAIN
    layer = layer_class(param.type)(param)
    run = Run(CaffeRandom(1), data_resources=DataResources(0), plan_windows=kernels.plan_windows)
    layer.build([], run)
    return layer


def _ahead(text: str) -> AheadLayer:
    layer = _built(text)
    assert isinstance(layer, AheadLayer)
    return layer


def _batches(layer: AheadLayer, count: int = BATCHES) -> Way:
    return lambda: [layer.next_batch() and None for _ in range(count)]


def _write_files(folder: Path) -> list[Path]:
    """JPEGs of smooth random images, since noise would compress to files of an unusual size."""
    random, paths = np.random.default_rng(1), [folder / f"{i}.jpg" for i in range(FILES)]
    for path in paths:
        if not path.exists():
            small = random.integers(0, 256, (24, 24, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC))
    (folder / "list.txt").write_text("".join(f"{path} {i % 10}\n" for i, path in enumerate(paths)))
    return paths


def write_hdf5(folder: Path) -> None:
    random = np.random.default_rng(1)
    with h5py.File(folder / "0.h5", "w") as file:
        file["data"] = random.standard_normal((ROWS, *ROW), np.float32)
        file["label"] = np.arange(ROWS, dtype=np.float32) % 10
    (folder / "files.txt").write_text(str(folder / "0.h5"))


def _decoding(paths: Sequence[Path], size: int) -> Way:
    pool, step = ThreadPoolExecutor(usable_cores()), 16
    sequence = [paths[i % len(paths)] for i in range(BATCH * BATCHES)]

    def decode(begin: int) -> None:
        for path in sequence[begin : begin + step]:
            image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if size:
                cv2.resize(image, (size, size))

    return lambda: list(pool.map(decode, range(0, len(sequence), step)))


def _read(folder: Path) -> NDArray[np.float32]:
    with h5py.File(folder / "0.h5") as file:
        return np.asarray(file["data"], np.float32)


def _copying(values: NDArray[np.float32]) -> Way:
    order = np.random.default_rng(1).permutation(ROWS).reshape(-1, BATCH)
    part = np.empty((BATCH, *ROW), np.float32)
    return lambda: [np.take(values, rows, 0, part, "clip") is None for rows in order]


CAFFENET = """
layer {{ {data} }}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param {{ num_output: 96 kernel_size: 11 stride: 4 {weights} }} }}
layer {{ name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }}
layer {{ name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param {{ kernel_size: 3 stride: 2 }} }}
layer {{ name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param {{ local_size: 5 alpha: 0.0001 }} }}
layer {{ name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
        convolution_param {{ num_output: 256 pad: 2 kernel_size: 5 group: 2 {weights} }} }}
layer {{ name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }}
layer {{ name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param {{ kernel_size: 3 stride: 2 }} }}
layer {{ name: "norm2" type: "LRN" bottom: "pool2" top: "norm2" lrn_param {{ local_size: 5 alpha: 0.0001 }} }}
layer {{ name: "conv3" type: "Convolution" bottom: "norm2" top: "conv3"
        convolution_param {{ num_output: 384 pad: 1 kernel_size: 3 {weights} }} }}
layer {{ name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }}
layer {{ name: "conv4" type: "Convolution" bottom: "conv3" top: "conv4"
        convolution_param {{ num_output: 384 pad: 1 kernel_size: 3 group: 2 {weights} }} }}
layer {{ name: "relu4" type: "ReLU" bottom: "conv4" top: "conv4" }}
layer {{ name: "conv5" type: "Convolution" bottom: "conv4" top: "conv5"
        convolution_param {{ num_output: 256 pad: 1 kernel_size: 3 group: 2 {weights} }} }}
layer {{ name: "relu5" type: "ReLU" bottom: "conv5" top: "conv5" }}
layer {{ name: "pool5" type: "Pooling" bottom: "conv5" top: "pool5"
        pooling_param {{ kernel_size: 3 stride: 2 }} }}
layer {{ name: "fc6" type: "InnerProduct" bottom: "pool5" top: "fc6"
        inner_product_param {{ num_output: 4096 {weights} }} }}
layer {{ name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }}
layer {{ name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }}
layer {{ name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7"
        inner_product_param {{ num_output: 4096 {weights} }} }}
layer {{ name: "relu7" type: "ReLU" bottom: "fc7" top: "fc7" }}
layer {{ name: "drop7" type: "Dropout" bottom: "fc7" top: "fc7" }}
layer {{ name: "fc8" type: "InnerProduct" bottom: "fc7" top: "fc8"
        inner_product_param {{ num_output: 1000 {weights} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" top: "loss" }}
"""


def caffenet(data: str) -> NetParameter:
    """CaffeNet with its loss; `data` is the inside of its data layer."""
    return parse_net(CAFFENET.format(data=data, weights='weight_filler { type: "xavier" }'), "<benchmark>")
