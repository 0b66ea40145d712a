"""The fastest way to convolve: measured once, kept, and read back. The times are injected."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tolerances import sum_rounding
from torch import Tensor

from imae.net.kernels import fastest, native

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

WAYS = ("oneDNN", "avx2", "avx512f")


def seconds(**best: str) -> fastest.Seconds:
    """Times by kernel in which the given way is the fastest; without a word oneDNN's."""
    return {
        kernel: {way: 0.5 if way == best.get(kernel, "oneDNN") else 1.0 for way in WAYS}
        for kernel in fastest.KERNELS
    }


class Measured:
    """Stands for `measure`: returns these times, and counts its calls."""

    def __init__(self, **best: str) -> None:
        self.best, self.calls = best, 0

    def __call__(self, ways: object) -> fastest.Seconds:
        self.calls += 1
        return seconds(**self.best)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the times, in a folder that is not there yet."""
    monkeypatch.setenv("IMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels.json"


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor with AVX-512, with nothing in the environment."""
    for name in ("IMAE_KERNELS", "IMAE_KERNELS_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native, "supported_isas", lambda: ["default", "avx2", "avx512f"])
    monkeypatch.setattr(native, "_convolution_isas", lambda: ["avx2", "avx512f"])
    for cached in (native._choose, native._convolutions):
        cached.cache_clear()
    yield
    for cached in (native._choose, native._convolutions):
        cached.cache_clear()


def ways() -> dict[str, fastest.Way]:
    return dict.fromkeys(WAYS, fastest.onednn())


def test_the_suite_does_not_write_into_the_users_folder() -> None:
    assert os.environ["IMAE_CACHE"]
    assert Path.home() not in fastest._path().parents


@built
@pytest.mark.parametrize("kernel", fastest.KERNELS)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_wins_where_it_is_the_fastest(
    way: str, kernel: str, kept: Path, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(**{kernel: way})
    monkeypatch.setattr(fastest, "measure", measured)
    assert native.chosen() == (True, "fastest", "avx512f")
    used = native.uses_winograd(), native.uses_winograd_weight(), native.uses_conv_weight()
    assert used == tuple(way != "oneDNN" and name == kernel for name in fastest.KERNELS)
    called: list[str] = []
    monkeypatch.setattr(native, "_exported", lambda name, exported: called.append(exported))
    native._convolution_kernel(kernel, (16, 32))
    native._convolution_kernel(kernel, (16, 24))  # not in whole vectors of 16
    first = "avx512f" if way == "oneDNN" else way  # oneDNN: nothing but a test calls the kernel
    assert called == [f"imae_{kernel}_{first}_float", f"imae_{kernel}_avx2_float"]
    line = native.description(torch.float32)
    assert line.startswith("Kernels in C: BatchNorm (avx512f), LRN and the update of SGD")
    assert line.endswith(f"; the fastest of oneDNN, avx2, avx512f, measured now, kept: {kept}")
    assert line.count(f"({way})") == (way != "oneDNN") + (way == "avx512f")
    assert "measured" not in native.description(torch.float64)
    assert measured.calls == 1


@built
def test_nothing_is_measured_where_there_is_nothing_to_choose(
    kept: Path, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "measure", None)
    for kernels, isa, want in (
        ("auto", "avx2", "avx2"),
        ("auto", "avx512f", "avx512f"),
        ("auto", "default", None),
        ("all", "auto", "avx512f"),
        ("all", "avx2", "avx2"),
        ("batch_norm", "auto", None),
        ("none", "auto", None),
    ):
        monkeypatch.setenv("IMAE_KERNELS", kernels)
        monkeypatch.setenv("IMAE_KERNELS_ISA", isa)
        assert native.convolutions() == (want, want, want, "")
    for name in ("IMAE_KERNELS", "IMAE_KERNELS_ISA"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(native, "_convolution_isas", lambda: ["avx2"])
    monkeypatch.setattr(native, "supported_isas", lambda: ["default", "avx2"])
    native._choose.cache_clear()
    assert native.convolutions() == ("avx2", "avx2", "avx2", "")
    assert not kept.exists()


def test_the_times_are_read_back(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(winograd="avx512f", conv_weight="avx2")
    monkeypatch.setattr(fastest, "measure", measured)
    first, second = fastest.fastest(ways()), fastest.fastest(ways())
    assert first.ways == {"winograd": "avx512f", "winograd_weight": "oneDNN", "conv_weight": "avx2"}
    assert (second.ways, measured.calls) == (first.ways, 1)
    assert (first.note, second.note) == (f"measured now, kept: {kept}", f"as measured before: {kept}")
    assert [path.name for path in kept.parent.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize("change", ["torch", "processor", "sources", "oneDNN", "ways"])
def test_times_of_something_else_do_not_count(
    change: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured()
    monkeypatch.setattr(fastest, "measure", measured)
    fastest.fastest(ways())
    others = ways()
    with monkeypatch.context() as patch:
        if change == "torch":
            patch.setattr(torch, "__version__", "0.1")
        elif change == "processor":
            patch.setattr(fastest, "_processor", lambda: ["flags : none"])
        elif change == "sources":
            patch.setattr(fastest, "sources_hash", lambda: "0" * 64)
        elif change == "oneDNN":
            patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        else:
            others = {name: others[name] for name in WAYS[:2]}
        fastest.fastest(others)
    assert measured.calls == 2
    fastest.fastest(ways())
    assert measured.calls == 2  # the first times are kept beside the others
    assert len(json.loads(kept.read_text())) == 2


def damage() -> dict[str, bytes]:
    whole = seconds()
    lacking = {kernel: times for kernel, times in whole.items() if kernel != "winograd"}
    entries = {
        "a kernel lacks": lacking,
        "a way lacks": {**whole, "winograd": {"avx2": 1.0}},
        "a negative time": {**whole, "winograd": dict.fromkeys(WAYS, -1.0)},
        "not a number": {**whole, "winograd": dict.fromkeys(WAYS, float("nan"))},
        "a text": {**whole, "winograd": dict.fromkeys(WAYS, "1.0")},
        "a list": list(whole),
    }
    files = {name: json.dumps({fastest._key(ways()): entry}).encode() for name, entry in entries.items()}
    files |= {"empty": b"", "cut off": json.dumps(whole).encode()[:40], "no object": b"[1]"}
    return files | {"bytes": b"\xff\0", "deep": b"[" * 100_000}


@pytest.mark.parametrize("name", damage())
def test_a_damaged_file_is_as_none(name: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(winograd="avx2")
    monkeypatch.setattr(fastest, "measure", measured)
    kept.parent.mkdir()
    kept.write_bytes(damage()[name])
    found = [fastest.fastest(ways()) for _ in range(2)]
    assert [each.ways["winograd"] for each in found] == ["avx2", "avx2"]
    assert measured.calls == 1
    assert fastest._key(ways()) in json.loads(kept.read_text())


@pytest.mark.parametrize("place", ["a file", "a folder of that name", "read-only"])
def test_where_nothing_can_be_kept_the_log_says_so(
    place: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(winograd="avx2")
    monkeypatch.setattr(fastest, "measure", measured)
    if place == "a file":
        kept.parent.write_text("no folder")
    elif place == "a folder of that name":
        kept.mkdir(parents=True)
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        kept.parent.mkdir(mode=0o500)
    for count in (1, 2):
        found = fastest.fastest(ways())
        assert found.ways["winograd"] == "avx2"
        assert found.note.startswith("measured now, not kept (cannot write ")
        assert str(kept) in found.note and "\n" not in found.note
        assert measured.calls == count


def test_processes_that_start_together_choose_the_same(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slowly(ways: object) -> fastest.Seconds:
        calls.append(1)
        time.sleep(0.1)
        return seconds(winograd=WAYS[len(calls)])  # the second one would find other times

    monkeypatch.setattr(fastest, "measure", slowly)
    found: list[fastest.Fastest] = []
    threads = [threading.Thread(target=lambda: found.append(fastest.fastest(ways()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [each.ways["winograd"] for each in found] == ["avx2"] * 3


def test_a_folder_that_stays_locked_is_not_waited_for(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="not on this system")
    monkeypatch.setattr(fastest, "measure", Measured(winograd="avx2"))
    monkeypatch.setattr(fastest, "PATIENCE", 0.05)
    kept.parent.mkdir()
    handle = os.open(kept.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert fastest.fastest(ways()).ways["winograd"] == "avx2"
    finally:
        os.close(handle)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMAE_CACHE", "")
    for cache, want in (
        (None, ".cache/imae"),
        ("", ".cache/imae"),
        ("relative", ".cache/imae"),  # as its specification says
        (str(tmp_path / "other"), "other/imae"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv("XDG_CACHE_HOME", raising=False)
            if cache is not None:
                patch.setenv("XDG_CACHE_HOME", cache)
            assert fastest._path() == tmp_path / want / "kernels.json"
    monkeypatch.setenv("IMAE_CACHE", str(tmp_path / "own"))
    assert fastest._path() == tmp_path / "own" / "kernels.json"


def test_the_processors_facts_are_the_same_in_each_call() -> None:
    """Without its clock, which changes from moment to moment."""
    facts = fastest._processor()
    assert facts and not any("MHz" in fact for fact in facts)
    assert fastest._key(ways()) == fastest._key(ways())


@built
def test_every_way_of_this_processor_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "ROUNDS", 1)
    ways = native.convolution_ways()
    times = fastest.measure(ways)
    assert fastest._is_whole(times, ways)
    assert next(iter(ways)) == "oneDNN"


def test_one_thread_is_timed_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, counts = fastest.onednn(), []

    def top(x: Tensor, weight: Tensor) -> Tensor:
        counts.append(torch.get_num_threads())
        return plain.top(x, weight)

    monkeypatch.setattr(fastest, "ROUNDS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        key = fastest._key(ways())
        fastest.measure({"oneDNN": plain._replace(top=top)})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(counts) == {1}
    assert key == fastest._key(ways())


@built
@pytest.mark.parametrize("stride", [1, 2])
def test_every_way_of_this_processor_computes_the_same(stride: int) -> None:
    layer = fastest.ConvolutionLayer(16, 32, 6, stride, 2)
    of_ways = [fastest.convolution_calls(layer, way) for way in native.convolution_ways().values()]
    for kernel in of_ways[0]:
        for functions in zip(*(of_way[kernel] for of_way in of_ways), strict=True):
            want, *others = (function() for function in functions)
            for got in others:
                assert got.shape == want.shape
                # The longest sums are those of a bottom's gradient.
                assert float((got - want).abs().max() / want.abs().max()) <= sum_rounding(32 * 9)
