"""Which way to convolve is the fastest on this processor: oneDNN's, or a kernel in C for some instructions.

It is measured, once: two runs on one machine must choose the same, as a run that is repeated or resumed has
the same bits. So the times are kept in a small file, under a digest of all that they depend on: the
processor, torch, the sources of the kernels. They are times of one thread on the processor: what else runs on
the machine hardly changes them. The time that passes, with several threads that wait for each other, can be a
hundred times as long.

    $IMAE_CACHE/kernels.json, else $XDG_CACHE_HOME/imae/kernels.json, else ~/.cache/imae/kernels.json

A damaged file is as none. Where the file cannot be written, `Fastest.note` says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.files.atomic import write_atomically
from imae.files.errors import first_line
from imae.files.read import open_to_read
from imae.net.kernels.sources import sources_hash

ONEDNN = "oneDNN"
KERNELS = ("winograd", "winograd_weight", "conv_weight")
ROUNDS = 4  # the least time of these counts
MAX_BYTES = 1 << 20  # of the file
PATIENCE = 10  # seconds that another process may take to measure

Seconds = dict[str, dict[str, float]]  # by kernel, then by way


class Way(NamedTuple):
    """A way to convolve: windows of 3x3, a padding of 1, blobs and weights with the channels last."""

    top: Callable[[Tensor, Tensor], Tensor]  # bottom, weight
    bottom_gradient: Callable[[Tensor, Tensor, Tensor], Tensor]  # bottom, weight, top_diff
    weight_gradient: Callable[[Tensor, Tensor, Tensor, int], Tensor]  # the same and a stride


class ConvolutionLayer(NamedTuple):
    """A convolution to time."""

    channels: int
    outputs: int
    side: int  # of the bottom, in pixels
    stride: int
    images: int


LAYERS = (  # with 256 tiles or more, as in a training
    ConvolutionLayer(16, 16, 32, 1, 4),
    ConvolutionLayer(64, 64, 8, 1, 16),
    ConvolutionLayer(16, 32, 32, 2, 4),
)


class Fastest(NamedTuple):
    """The fastest way by kernel, and how it is known: words for the log."""

    ways: dict[str, str]
    note: str


def onednn() -> Way:
    """torch's convolution."""

    def gradients(x: Tensor, weight: Tensor, top_diff: Tensor, stride: int, mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            top_diff, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    def bottom_gradient(x: Tensor, weight: Tensor, top_diff: Tensor) -> Tensor:
        diff: Tensor = gradients(x, weight, top_diff, 1, [True, False, False])[0]
        return diff

    def weight_gradient(x: Tensor, weight: Tensor, top_diff: Tensor, stride: int) -> Tensor:
        diff: Tensor = gradients(x, weight, top_diff, stride, [False, True, False])[1]
        return diff

    return Way(lambda x, weight: F.conv2d(x, weight, None, 1, 1), bottom_gradient, weight_gradient)


def convolution_calls(layer: ConvolutionLayer, way: Way) -> dict[str, list[Callable[[], Tensor]]]:
    """What a layer does in training, by the kernel that does it: functions without arguments."""
    channels, outputs, side, stride, images = layer
    generator = torch.Generator().manual_seed(1)
    top_side = (side - 1) // stride + 1
    x, weight, top_diff = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").contiguous(
            memory_format=torch.channels_last
        )
        for shape in (
            (images, channels, side, side),
            (outputs, channels, 3, 3),
            (images, outputs, top_side, top_side),
        )
    )
    if stride > 1 or channels % 8:
        return {"conv_weight": [lambda: way.weight_gradient(x, weight, top_diff, stride)]}
    return {
        "winograd": [lambda: way.top(x, weight), lambda: way.bottom_gradient(x, weight, top_diff)],
        "winograd_weight": [lambda: way.weight_gradient(x, weight, top_diff, 1)],
    }


def measure(ways: Mapping[str, Way]) -> Seconds:
    """The least times of ResNet-20's kinds of layers, in turns; some tens of milliseconds in all."""
    seconds: Seconds = {kernel: dict.fromkeys(ways, 0.0) for kernel in KERNELS}
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _one_thread():
        for layer in LAYERS:
            of_ways = {name: convolution_calls(layer, way) for name, way in ways.items()}
            for kernel in next(iter(of_ways.values())):
                for turn in zip(*(of_way[kernel] for of_way in of_ways.values()), strict=True):
                    for name, least in zip(ways, _least_times(turn), strict=True):
                        seconds[kernel][name] += least
    return seconds


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _least_times(functions: tuple[Callable[[], Tensor], ...]) -> list[float]:
    for function in functions:  # oneDNN makes its kernel at the first call
        function()
    least = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for place, function in enumerate(functions):
            begun = time.thread_time()
            function()
            least[place] = min(least[place], time.thread_time() - begun)
    return least


def fastest(ways: Mapping[str, Way]) -> Fastest:
    """The fastest of these ways for each kernel: as measured before on this machine, or now."""
    try:
        path = _path()
    except RuntimeError as error:  # there is no home folder
        return _by_time(measure(ways), f"measured now, not kept ({first_line(error)})")
    key = _key(ways)
    with suppress(OSError):  # said below, where the file cannot be written
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.parent):
        kept = _read(path)
        if _is_whole(kept.get(key), ways):
            return _by_time(kept[key], f"as measured before: {path}")
        kept[key] = measure(ways)
        try:
            write_atomically(path, (json.dumps(kept, indent=1) + "\n").encode())
        except OSError as error:
            return _by_time(kept[key], f"measured now, not kept ({first_line(error)})")
    return _by_time(kept[key], f"measured now, kept: {path}")


def _by_time(seconds: Seconds, note: str) -> Fastest:
    return Fastest(
        {kernel: min(seconds[kernel], key=seconds[kernel].__getitem__) for kernel in KERNELS}, note
    )


def _path() -> Path:
    own, cache = (os.environ.get(name, "") for name in ("IMAE_CACHE", "XDG_CACHE_HOME"))
    if own:
        return Path(own) / "kernels.json"
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return folder / "imae" / "kernels.json"


def _key(ways: Mapping[str, Way]) -> str:
    """A digest of all that the times depend on."""
    facts = [_processor(), torch.__version__, sources_hash(), list(ways)]
    facts += [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _processor() -> list[str]:
    """The processor's model and instructions, as Linux lists them; not its clock, which changes."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except (OSError, UnicodeDecodeError):
        return [platform.processor(), platform.machine()]
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    return [line for line in first.splitlines() if line.partition(":")[0].strip() in names]


def _read(path: Path) -> dict[str, Any]:
    """The file's entries; none if it is missing or damaged."""
    try:
        with open_to_read(path) as file:
            entries = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):  # RecursionError: lists in lists, thousands deep
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_whole(entry: Any, ways: Mapping[str, Way]) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == set(KERNELS)
        and all(isinstance(times, dict) and set(times) == set(ways) for times in entry.values())
        and all(
            isinstance(t, float) and 0 < t < float("inf") for times in entry.values() for t in times.values()
        )
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Processes that start together measure one after the other, and the first one's times hold for all.

    Where the folder cannot be locked, or not for a long time, the block runs without.
    """
    handle = None
    try:
        import fcntl  # not on all systems

        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    break
                time.sleep(0.02)
    except (ModuleNotFoundError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
