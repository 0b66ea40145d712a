"""A net in bfloat16 on the CPU: which steps are fused, what they round, and what is said of the processor."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from small_resnet import net_on, numbers_of, solver_param, write_images
from tolerances import tolerance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import imae.net.executor as executor
from imae.net.executor import NetExecutor
from imae.net.fuse import FusedBatchNormScale, fuse_training
from imae.net.kernels import SingleProducts, bfloat16, native, product_type
from imae.net.net import Net
from imae.net.step import Step
from imae.prototxt import NetParameter
from imae.prototxt.text import parse_net
from imae.train.options import Options
from imae.train.solver import Solver

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor for which oneDNN has no kernels of bfloat16."""
    set_onednn(monkeypatch, False)


def set_onednn(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    monkeypatch.setattr(bfloat16, "onednn_has_bfloat16", lambda: has_bfloat16)


def solver(database: str, reduced: bool = True, fast: bool = True) -> Solver:
    param = solver_param(net_on(database, "SoftmaxWithLoss"), 4, "test_initialization: false")
    return Solver(param, Options(reduced=torch.bfloat16 if reduced else None, fast=fast))


def plan_of(trained: Solver) -> list[Step]:
    assert isinstance(trained._run, NetExecutor)
    return list(trained._run.plan)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# -- the plan ------------------------------------------------------------------------------------------------


def note_blobs(plan: list[Step]) -> tuple[list[Tensor], list[Tensor]]:
    """Lists into which the steps put the images that they make, and these images' gradients."""
    tops: list[Tensor] = []
    diffs: list[Tensor] = []
    for step in plan:

        def run(*bottoms: Tensor, plain: object = step.run) -> Tensor | tuple[Tensor, ...]:
            result = plain(*bottoms)  # type: ignore[operator]
            for top in (result,) if isinstance(result, Tensor) else result:
                if top.dim() == 4 and top.requires_grad:
                    tops.append(top.detach())
                    top.register_hook(diffs.append)
            return result

        step.run = run
    return tops, diffs


@built
@pytest.mark.usefixtures("without_onednn")
def test_all_blobs_are_in_bfloat16_and_in_one_order(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; each fused step is a call of the kernels in either direction."""
    monkeypatch.delenv("IMAE_KERNELS", raising=False)
    calls: list[torch.dtype] = []
    kernel = native._kernel

    def note(name: str, dtype: torch.dtype | None = None) -> object:
        if name.startswith("batch_norm"):
            assert dtype is not None
            calls.append(dtype)
        return kernel(name, dtype)

    monkeypatch.setattr(native, "_kernel", note)
    trained = solver(database)
    plan = plan_of(trained)
    fused = [step for step in plan if isinstance(step.run, FusedBatchNormScale)]
    tops, diffs = note_blobs(plan)
    trained.step(1)
    assert len(fused) == 7 and calls == [torch.bfloat16] * 14
    assert {blob.dtype for blob in (*tops, *diffs)} == {torch.bfloat16}
    assert len(diffs) >= len(fused)
    for blob in (*tops, *diffs):  # a part of a blob's channels has gaps
        assert blob.stride(1) == 1 or blob.shape[1] == 1, blob.stride()
    assert {blob.dtype for blob in numbers_of(trained)} == {torch.float32}


@pytest.mark.parametrize("has", [False, True])
def test_products_in_single_precision_where_there_are_no_others(
    database: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_onednn(monkeypatch, has)
    replaced = [step.layer.type for step in plan_of(solver(database)) if isinstance(step.run, SingleProducts)]
    assert replaced == ([] if has else ["Convolution"] * 7 + ["InnerProduct"])
    plain = plan_of(solver(database, reduced=False))
    assert not any(isinstance(step.run, SingleProducts) for step in plain)


@pytest.mark.usefixtures("without_onednn")
def test_the_plain_plan_stays_plain(database: str) -> None:
    assert not any(isinstance(step.run, SingleProducts) for step in plan_of(solver(database, fast=False)))


@pytest.mark.usefixtures("without_onednn")
def test_weights_are_rounded_once_a_pass(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, rounded, plain = solver(database), list[int](), bfloat16._rounded
    addresses = {blob.data_ptr() for blob in trained.net.learnable}

    def note(x: Tensor) -> Tensor:
        rounded.extend([x.data_ptr()] if x.data_ptr() in addresses else [])
        return plain(x)

    monkeypatch.setattr(bfloat16, "_rounded", note)
    trained.step(1)
    assert len(rounded) == len(set(rounded)) == 9  # seven convolutions without bias; fc has one


class Casts(TorchDispatchMode):
    """Notes the addresses of what is converted to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.addresses.append(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def test_autocast_converts_weights_once_a_pass(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with products; the weights keep their order in memory."""
    set_onednn(monkeypatch, True)
    trained = solver(database)
    with Casts() as casts:
        trained.step(1)
    counts = [casts.addresses.count(blob.data_ptr()) for blob in trained.net.learnable]
    products = [step.layer for step in trained.net.steps if SingleProducts.supports(step.layer)]
    converted = {blob.data_ptr() for layer in products for blob in layer.blobs}
    assert len(converted) == 9
    for blob, count in zip(trained.net.learnable, counts, strict=True):
        assert count == (blob.data_ptr() in converted)
        if blob.dim() == 4:
            assert blob.bfloat16().is_contiguous(memory_format=torch.channels_last)


# -- products ------------------------------------------------------------------------------------------------

PRODUCTS = {
    "convolution": "num_output: 16 kernel_size: 3 pad: 1",
    "strided": "num_output: 8 kernel_size: 3 stride: 2 pad: 1",
    "subsampled": "num_output: 8 kernel_size: 1 stride: 2",
    "in groups": "num_output: 16 group: 4 kernel_size: 3",
    "dilated": "num_output: 8 kernel_size: 3 dilation: 2",
    "to one side": "num_output: 8 kernel_size: 4 stride: 3 pad: 1",
}


def product_net(kind: str, field: str, shape: str = "2 16 9 8") -> NetParameter:
    filler = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 }'
    dims = " ".join(f"dim: {size}" for size in shape.split())
    name = {"InnerProduct": "inner_product", "Deconvolution": "convolution"}.get(kind, "convolution")
    return parse_net(
        f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }} '
        f'layer {{ name: "y" type: "{kind}" bottom: "x" top: "y" {name}_param {{ {field} {filler} }} }}'
    )


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("Convolution", field) for field in PRODUCTS.values()),
        ("Deconvolution", "num_output: 8 kernel_size: 4 stride: 2 pad: 1"),
        ("InnerProduct", "num_output: 7"),
        ("InnerProduct", "num_output: 7 transpose: true"),
    ],
)
def test_a_product_is_that_of_the_rounded_numbers(kind: str, field: str) -> None:
    """Rounded once, as on a processor with products of bfloat16; so are the gradients."""
    net = Net(product_net(kind, field))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    step = fuse_training(net, single_products=True)[-1]
    assert isinstance(step.run, SingleProducts)
    generator = torch.Generator().manual_seed(1)
    x = last(torch.randn(2, 16, 9, 8, generator=generator)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        top = step.run(x)
    assert isinstance(top, Tensor)
    top_diff = torch.randn(top.shape, generator=generator).bfloat16()
    got = [top, *torch.autograd.grad(top, [x, *net.learnable], top_diff)]

    exact = Net(product_net(kind, field)).double()
    for own, blob in zip(exact.learnable, net.learnable, strict=True):
        own.data.copy_(blob.detach().bfloat16())
    bottom = x.detach().double().requires_grad_()
    want_top = exact.steps[-1].layer(bottom)
    want = [want_top, *torch.autograd.grad(want_top, [bottom, *exact.learnable], top_diff.double())]

    assert [value.dtype for value in got] == [torch.bfloat16] * 2 + [torch.float32] * len(net.learnable)
    rtol, atol = tolerance("rounded once", "bfloat16").rtol, tolerance("kernel").atol
    for ours, value in zip(got, want, strict=True):
        largest = float(value.detach().abs().max())
        torch.testing.assert_close(ours.double(), value, rtol=rtol, atol=atol * largest)
        assert torch.equal(ours, ours.bfloat16())  # a gradient of weights, too


def test_what_is_saved_for_the_backward_pass_is_in_bfloat16() -> None:
    net = Net(product_net("Convolution", PRODUCTS["convolution"]))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    run = fuse_training(net, single_products=True)[-1].run
    x = last(torch.randn(2, 16, 9, 8)).bfloat16().requires_grad_()
    convolved = run(x).grad_fn.next_functions[0][0]  # type: ignore[union-attr]  # before the rounding
    saved = getattr(convolved, "_raw_saved_tensors", None) or [convolved._raw_saved_input]
    assert saved
    for each in saved:
        with pytest.raises(RuntimeError):
            each.register_hooks(Tensor.float, Tensor.float)  # there are hooks already


def test_a_layer_that_changes_its_weights_is_left_alone() -> None:
    net = Net(product_net("InnerProduct", "num_output: 7 normalize: true"))
    assert not any(isinstance(step.run, SingleProducts) for step in fuse_training(net, single_products=True))


# -- the processor -------------------------------------------------------------------------------------------


def on_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, onednn: bool, avx512_bf16: bool, amx: bool
) -> str:
    """What is said of such a processor."""
    bfloat16.onednn_has_bfloat16.cache_clear()
    bfloat16.multiplies_bfloat16.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(bfloat16.platform, "machine", lambda: machine)  # type: ignore[attr-defined]
        patch.setattr(bfloat16, "_ask_onednn", lambda: onednn)
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        try:
            return bfloat16.slow_bfloat16()
        finally:
            bfloat16.onednn_has_bfloat16.cache_clear()
            bfloat16.multiplies_bfloat16.cache_clear()


def test_a_processor_without_products_is_named_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "SLOWER than fp32" in on_processor(monkeypatch, "x86_64", False, False, False)
    assert "computed in fp32" in on_processor(monkeypatch, "x86_64", False, False, False)
    # AVX-512 without BF16: oneDNN has kernels, which convert and multiply in single precision.
    assert "oneDNN imitates them" in on_processor(monkeypatch, "x86_64", True, False, False)
    assert on_processor(monkeypatch, "x86_64", True, True, False) == ""
    assert on_processor(monkeypatch, "x86_64", True, False, True) == ""
    assert on_processor(monkeypatch, "aarch64", True, False, False) == ""
    # AMX that oneDNN is told not to use, by ONEDNN_MAX_CPU_ISA.
    assert "SLOWER" in on_processor(monkeypatch, "x86_64", False, True, True)


def test_the_log_names_the_kernels_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    set_onednn(monkeypatch, False)
    assert product_type(torch.bfloat16) == product_type(torch.float32) == torch.float32
    set_onednn(monkeypatch, True)
    for dtype in (torch.bfloat16, torch.float64):
        assert product_type(dtype) == dtype


def test_a_torch_without_these_functions_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(bfloat16, "onednn_has_bfloat16", lambda: True)
    monkeypatch.setattr(bfloat16.platform, "machine", lambda: "x86_64")  # type: ignore[attr-defined]
    bfloat16.multiplies_bfloat16.cache_clear()
    try:
        assert "SLOWER" in bfloat16.slow_bfloat16()
    finally:
        bfloat16.multiplies_bfloat16.cache_clear()


def test_a_training_says_it_once(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for said, reduced, count in (("bf16 is SLOWER", True, 1), ("", True, 0), ("bf16 is SLOWER", False, 0)):
        caplog.clear()
        monkeypatch.setattr(executor, "slow_bfloat16", lambda said=said: said)
        trained = solver(database, reduced)
        assert len(trained.test_nets) == 1
        assert [record.message for record in caplog.records].count("bf16 is SLOWER") == count
