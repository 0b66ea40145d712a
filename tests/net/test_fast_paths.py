"""One iteration on the CPU the fast way and the plain way: the same weights and the same history.

The plain way computes layer by layer as the layers stand, blobs in the order N, C, H, W; it is what Caffe's
cases are compared with. The fast way joins layers and orders memory otherwise, so sums come in another order.

In double precision that is all, and the two agree to 1e-12. In single precision one more thing can differ: a
ReLU's bottom, or two pixels of a MAX pooling, so close to 0 or to each other that rounding decides. ResNet-20
has 24 million ReLUs in a batch of 128, and one such decision in its last stage changes a gradient by a
hundredth. So the gradients are compared where no ReLU was decided otherwise, and where one was, it is checked
that its bottom is rounding.

All is done with all the kernels in C, as on AMD's processors; with those of batch normalisation alone, as on
Intel's with AVX-512; and with torch's. oneDNN adds the gradients of a weight one after another, in an order
that depends on the processor. So in single precision both ways are compared with double, and may be as wrong
as such sums are (`sum_rounding`). That this notices faults is shown by faults that are put in on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from c_kernels import conv_supported
from tolerances import UNIT, sum_rounding, tolerance
from torch import Tensor

from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array
from imae.layers.run import Run
from imae.net.executor import NetExecutor
from imae.net.fuse import FusedBatchNormScale, fuse_training
from imae.net.kernels import native
from imae.net.kernels.conv import SubsampledConvolution
from imae.net.kernels.norm import is_channels_last, normalize_channels_last
from imae.net.kernels.norm_call import NormCall
from imae.net.net import Net
from imae.net.step import Step
from imae.prototxt import TEST, NetParameter, SolverParameter
from imae.prototxt.models.resnet import paper_solver, resnet, with_cifar10_data
from imae.prototxt.state import filter_net
from imae.prototxt.text import parse_net
from imae.train.options import Options
from imae.train.solver import Solver

DATA = """
layer { name: "data" type: "Data" top: "data" top: "label"
        transform_param { scale: 0.0078125 mean_value: 128 }
        data_param { source: "SOURCE" batch_size: BATCH backend: LMDB } }
"""
FILLED = "weight_filler { type: 'xavier' } bias_filler { type: 'constant' value: 0.1 }"


def conv(name: str, bottom: str, outputs: int, kernel: int, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} {more} {FILLED} }} }}\n"
    )


def inner_product(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f"inner_product_param {{ num_output: {outputs} {FILLED} }} }}\n"
    )


def layer(kind: str, name: str, bottom: str, top: str = "", more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top or name}" {more} }}\n'


def pool(name: str, bottom: str, method: str, kernel: int, stride: int) -> str:
    size = f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} round_mode: FLOOR }}"
    return layer("Pooling", name, bottom, more=size)


def norm(name: str, bottom: str, shared: str = "") -> str:
    """BatchNorm and Scale, not in place."""
    specs = "".join(f'param {{ name: "{shared}_{i}" lr_mult: 0 }} ' for i in range(3)) if shared else ""
    return layer("BatchNorm", f"{name}_bn", bottom, more=specs) + layer(
        "Scale", name, f"{name}_bn", more="scale_param { bias_term: true filler { value: 1.2 } }"
    )


def loss(bottom: str) -> str:
    return f'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "{bottom}" bottom: "label" top: "loss" }}'


LENET = (
    conv("conv1", "data", 20, 5)
    + pool("pool1", "conv1", "MAX", 2, 2)
    + conv("conv2", "pool1", 50, 5)
    + pool("pool2", "conv2", "MAX", 2, 2)
    + inner_product("ip1", "pool2", 500)
    + layer("ReLU", "relu1", "ip1", "ip1")
    + inner_product("ip2", "ip1", 10)
    + loss("ip2")
)

LRN = "lrn_param { local_size: 3 alpha: 0.00005 beta: 0.75 }"
CIFAR = (
    conv("conv1", "data", 32, 5, "pad: 2")
    + pool("pool1", "conv1", "MAX", 3, 2)
    + layer("ReLU", "relu1", "pool1", "pool1")
    + layer("LRN", "norm1", "pool1", more=LRN)
    + conv("conv2", "norm1", 32, 5, "pad: 2")
    + layer("ReLU", "relu2", "conv2", "conv2")
    + pool("pool2", "conv2", "AVE", 3, 2)
    + layer("LRN", "norm2", "pool2", more=LRN)
    + conv("conv3", "norm2", 64, 5, "pad: 2")
    + layer("ReLU", "relu3", "conv3", "conv3")
    + pool("pool3", "conv3", "AVE", 3, 2)
    + layer("Dropout", "drop3", "pool3", "pool3", "dropout_param { dropout_ratio: 0.4 }")
    + inner_product("ip1", "pool3", 10)
    + loss("ip1")
)

# ReLUs in place behind all that gives them memory of its own, or none: a split, a pooling, another ReLU.
CHAINS = (
    conv("a", "data", 12, 3, "pad: 1")
    + layer("ReLU", "a_relu", "a", "a")
    + layer("ReLU", "a_again", "a", "a")
    + layer("TanH", "t", "a")
    + layer("ReLU", "t_relu", "t", "t")
    + conv("b", "t", 12, 3, "pad: 1")
    + conv("c", "a", 12, 3, "pad: 1")
    + 'layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" bottom: "a" top: "sum" }\n'
    + layer("ReLU", "sum_relu", "sum", "sum")
    + pool("every", "sum", "MAX", 1, 2)
    + layer("ReLU", "every_relu", "every", "every", "relu_param { negative_slope: 0.1 }")
    + inner_product("ip", "every", 10)
    + loss("ip")
)

# One BatchNorm for two branches, beside others that are each other's alone.
SHARED = (
    conv("a", "data", 8, 3, "pad: 1 bias_term: false")
    + norm("a_norm", "a")
    + layer("ReLU", "a_relu", "a_norm", "a_norm")
    + conv("b", "a_norm", 8, 3, "pad: 1 bias_term: false")
    + norm("b_norm", "b", "both")
    + conv("c", "a_norm", 8, 3, "pad: 1 bias_term: false")
    + norm("c_norm", "c", "both")
    + 'layer { name: "sum" type: "Eltwise" bottom: "b_norm" bottom: "c_norm" top: "sum" }\n'
    + layer("ReLU", "sum_relu", "sum", "sum")
    + conv("d", "sum", 8, 3, "bias_term: false")
    + norm("d_norm", "d")
    + inner_product("ip", "d_norm", 10)
    + loss("ip")
)

NETS = {
    "lenet": (LENET, 1, 28),
    "cifar": (CIFAR, 3, 32),
    "chains": (CHAINS, 3, 16),
    "shared": (SHARED, 3, 16),
}
ONE_THREAD = [(name, 1) for name in ("resnet20", *NETS)]


@pytest.fixture(
    params=["all", "batch_norm", "none"], ids=lambda kernels: f"kernels in C: {kernels}", autouse=True
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels in C that are used, also where torch has others that are faster on this processor."""
    kernels: str = request.param
    if kernels != "none" and not native.available():
        pytest.skip("the kernels in C were not built")
    if kernels == "all" and not conv_supported():
        pytest.skip("no AVX2, or not chosen")
    monkeypatch.setenv("IMAE_KERNELS", kernels)
    return kernels


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_images(path: Path, channels: int, side: int, count: int = 200) -> str:
    random = np.random.default_rng(1)
    write_lmdb(
        path,
        (
            (
                b"%04d" % i,
                datum_from_array(random.integers(0, 256, (channels, side, side), np.uint8), int(label)),
            )
            for i, label in enumerate(random.integers(0, 10, count))
        ),
    )
    return str(path)


def net_of(name: str, folder: Path, batch: int = 16) -> NetParameter:
    folder.mkdir(exist_ok=True)
    if name == "resnet20":
        source = write_images(folder / "lmdb", 3, 40)
        return with_cifar10_data(resnet(20, loss="IMAELoss"), source, source, batch)
    text, channels, side = NETS[name]
    source = write_images(folder / "lmdb", channels, side)
    return parse_net(DATA.replace("SOURCE", source).replace("BATCH", str(batch)) + text)


def solver(
    param: NetParameter, fast: bool, dtype: torch.dtype = torch.float32, seed: int = 7, keep: bool = True
) -> Solver:
    """The paper's, of this net, without tests, logs and snapshots; its executor can keep ReLUs' tops."""
    result = paper_solver("resnet20")
    for field in (
        "net", "test_iter", "test_interval", "test_initialization", "display", "snapshot", "average_loss",
    ):  # fmt: skip
        result.ClearField(field)
    result.net_param.CopyFrom(param)
    result.random_seed, result.solver_mode = seed, SolverParameter.CPU
    relus = sorted({each.top[0] for each in param.layer if keep and each.type == "ReLU"})
    return Solver(
        result,
        Options(executor=lambda net: NetExecutor(net, torch.device("cpu"), fast, keep=relus), fast=fast),
        dtype=dtype,
    )


def blobs_of(solver: Solver) -> dict[str, Tensor]:
    """A copy of weights, statistics and history by name, in double precision."""
    names = [f"{name}[{i}]" for name, blobs in solver.net.params.items() for i in range(len(blobs))]
    weights = [blob for blobs in solver.net.params.values() for blob in blobs]
    found = {name: blob.detach().double().clone() for name, blob in zip(names, weights, strict=True)}
    found.update({f"history {i}": blob.double().clone() for i, blob in enumerate(solver.history)})
    return found


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((got - want).abs().max()) / (float(want.abs().max()) or 1.0)


def one_iteration(param: NetParameter, dtype: torch.dtype, seed: int = 7) -> list[Solver]:
    """The same iteration the fast and the plain way."""
    solvers = [solver(param, fast, dtype, seed) for fast in (True, False)]
    for each in solvers:
        each.step(1)
    return solvers


def relu_tops(solver: Solver) -> dict[str, Tensor]:
    return executor_of(solver).kept


def executor_of(solver: Solver) -> NetExecutor:
    """What runs the train net."""
    assert isinstance(solver._run, NetExecutor)
    return solver._run


def unequal(got: Solver, want: Solver) -> list[str]:
    """The blobs that are not what double precision made of them, though `got` is in double, too."""
    found, exact = blobs_of(got), blobs_of(want)
    allowed = tolerance("fast way", "float64").atol
    return [name for name, values in exact.items() if distance(found[name], values) > allowed]


def assert_equal(fast: Solver, plain: Solver) -> None:
    assert not unequal(fast, plain)


def weighted_steps(net: Net) -> list[Step]:
    return [step for step in net.steps if step.layer.type in ("Convolution", "InnerProduct")]


def too_far(got: Solver, exact: Solver, before: dict[str, Tensor]) -> list[str]:
    """The blobs of single precision that are further from exact than rounding explains.

    What an iteration changed is made of sums over at most n products, through all layers with weights; the
    rest of a blob was rounded twice: when it was filled, and when its change was subtracted.

    before   the blobs before the iteration
    """
    tops = [exact.net.blob_shapes[step.tops[0]] for step in weighted_steps(exact.net)]
    n = max(
        num * math.prod(size) for num, _, *size in tops
    )  # of a weight's diff: one for each pixel of the top
    allowed, found = sum_rounding(n, len(tops)), blobs_of(got)
    return [
        name
        for name, values in blobs_of(exact).items()
        if float((found[name] - values).abs().max())
        > allowed * float((values - before[name]).abs().max()) + 2 * UNIT * float(values.abs().max())
    ]


def otherwise_decided(got: Solver, exact: Solver) -> bool:
    """Whether a ReLU decided otherwise than in double precision; its bottom must then be rounding."""
    otherwise = False
    for top, values in relu_tops(got).items():
        want = relu_tops(exact)[top]
        differ = (values > 0) != (want > 0)
        if differ.any():
            otherwise = True
            near = tolerance("near-tie").atol * float(want.max())
            assert float(torch.maximum(values.double(), want)[differ].amax()) <= near, top
    return otherwise


Plant = Callable[[Solver], None]


def iterations_in_single(
    param: NetParameter, count: int, plant: Plant | None = None
) -> Iterator[tuple[Solver, Solver, Solver, dict[str, Tensor]]]:
    """The fast and the plain way in single precision, and double, after an iteration, with what was before.

    With so many seeds with which all ReLUs decide alike. `plant` puts a fault into the fast one.
    """
    for seed in range(1, 30):
        ways = [solver(param, fast, seed=seed) for fast in (True, False)]
        exact = solver(param, False, torch.float64, seed)
        before = blobs_of(exact)
        if plant is not None:
            plant(ways[0])
        for each in (*ways, exact):
            each.step(1)
        decided = [otherwise_decided(way, exact) for way in ways]
        if not any(decided):
            yield ways[0], ways[1], exact, before
            count -= 1
            if not count:
                return
    pytest.fail("a ReLU was decided otherwise with nearly every seed")


@pytest.mark.parametrize(("name", "count"), [*ONE_THREAD, ("shared", 2)])
def test_both_ways_are_one_function_in_double_precision(name: str, count: int, tmp_path: Path) -> None:
    with threads(count):
        assert_equal(*one_iteration(net_of(name, tmp_path, batch=8), torch.float64))


@pytest.mark.parametrize(("name", "count"), [*ONE_THREAD, ("resnet20", 2), ("lenet", 2)])
def test_both_ways_make_the_same_weights_and_history(name: str, count: int, tmp_path: Path) -> None:
    param = net_of(name, tmp_path, batch=4 if name == "resnet20" else 16)
    with threads(count):
        for fast, plain, exact, before in iterations_in_single(param, 3 if count == 1 else 1):
            assert not too_far(fast, exact, before)
            assert not too_far(plain, exact, before)


# -- faults that are put in on purpose, which these comparisons must notice ----------------------------------


def first_weight(solver: Solver) -> Tensor:
    return solver.net.learnable[0]


def scaled_gradient(factor: float) -> Plant:
    def plant(solver: Solver) -> None:
        first_weight(solver).register_hook(lambda diff: diff * factor)

    return plant


def gradient_in_bfloat16(solver: Solver) -> None:
    first_weight(solver).register_hook(lambda diff: diff.bfloat16().to(diff.dtype))


def dropped_term(solver: Solver) -> None:
    """The pixel of the first image with the largest diff is left out of the gradient of the first weights."""
    plan = executor_of(solver).plan
    place = next(i for i, step in enumerate(plan) if step.layer.type == "Convolution")
    run = plan[place].run

    def without_a_pixel(diff: Tensor) -> Tensor:
        diff = diff.clone()
        row, column = divmod(int(diff[0].abs().sum(0).argmax()), diff.shape[3])
        diff[0, :, row, column] = 0
        return diff

    def convolve(*bottoms: Tensor) -> Tensor:
        top = run(*bottoms)
        assert isinstance(top, Tensor)
        top.register_hook(without_a_pixel)
        return top

    plan = list(plan)
    plan[place] = replace(plan[place], run=convolve)
    executor_of(solver).plan = plan


FAULTS: dict[str, Plant] = {
    "a gradient times 1 + 1e-4": scaled_gradient(1 + 1e-4),
    "a gradient in bfloat16": gradient_in_bfloat16,
    "one term of a sum dropped": dropped_term,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["resnet20", "lenet"])
def test_a_fault_is_noticed_in_single_precision(name: str, fault: str, tmp_path: Path) -> None:
    param = net_of(name, tmp_path, batch=4 if name == "resnet20" else 16)
    for fast, _, exact, before in iterations_in_single(param, 1, FAULTS[fault]):
        assert "history 0" in too_far(fast, exact, before)


@pytest.mark.parametrize("fault", [*FAULTS, "a gradient times 1 + 1e-10"])
@pytest.mark.parametrize("name", ["resnet20", "lenet"])
def test_a_fault_is_noticed_in_double_precision(name: str, fault: str, tmp_path: Path) -> None:
    param = net_of(name, tmp_path, batch=8)
    fast, exact = (solver(param, way, torch.float64) for way in (True, False))
    FAULTS.get(fault, scaled_gradient(1 + 1e-10))(fast)
    for each in (fast, exact):
        each.step(1)
    assert "history 0" in unequal(fast, exact)


@pytest.mark.parametrize("name", ["resnet20", "shared"])
def test_another_eps_is_noticed(name: str, tmp_path: Path) -> None:
    """1.1e-5 for 1e-5, in double precision. In single, test_native.py compares exactly."""
    param = net_of(name, tmp_path, batch=8)
    exact = solver(param, False, torch.float64)
    for each in param.layer:
        if each.type == "BatchNorm":
            each.batch_norm_param.eps = 1.1e-5
    fast = solver(param, True, torch.float64)
    for each in (fast, exact):
        each.step(1)
    assert "history 0" in unequal(fast, exact)


def test_the_fast_way_of_batch_norm_is_as_near_to_double_precision_as_the_plain_one(tmp_path: Path) -> None:
    param = net_of("resnet20", tmp_path, batch=32)
    fast, plain = one_iteration(param, torch.float32)
    exact = solver(param, fast=False, dtype=torch.float64)
    exact.step(1)
    statistics = [name for name in blobs_of(exact) if "_bn[" in name]
    assert len(statistics) == 57
    errors = [
        max(distance(blobs_of(each)[name], blobs_of(exact)[name]) for name in statistics)
        for each in (fast, plain)
    ]
    assert errors[0] <= max(2 * errors[1], tolerance("statistics").atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["resnet20", *NETS])
def test_both_ways_are_one_function_in_the_test_phase(name: str, dtype: str, tmp_path: Path) -> None:
    param = net_of(name, tmp_path, batch=8)
    for each in param.layer:
        if each.type == "Data":
            each.data_param.batch_size = 8
    precision = getattr(torch, dtype)
    trained = solver(param, fast=True, dtype=precision)
    trained.step(2)

    def top(net: Net, fast: bool) -> Tensor:
        run = NetExecutor(net, torch.device("cpu"), fast, keep=[net.param.layer[-1].bottom[0]])
        run.forward()
        (top,) = run.kept.values()
        return top.double()

    exact = Net(filter_net(param, TEST), Run(CaffeRandom(1), dtype=torch.float64))
    with torch.no_grad():
        for layer, blobs in trained.net.params.items():
            for own, blob in zip(exact.params[layer], blobs, strict=True):
                own.copy_(blob)
    want = top(exact, fast=False)
    blobs = [step.layer.blobs[0] for step in weighted_steps(exact)]
    n = max(blob[0].numel() for blob in blobs)  # products of one number of a top
    allowed = tolerance("fast way", dtype).atol if dtype == "float64" else sum_rounding(n, len(blobs))
    for fast in (True, False):
        net = Net(filter_net(param, TEST), Run(CaffeRandom(1), dtype=precision), trained.net)
        assert distance(top(net, fast), want) <= allowed


def trained_plan(name: str, folder: Path, keep: tuple[str, ...] = ()) -> tuple[Net, list[object]]:
    net = solver(net_of(name, folder), fast=False).net
    return net, [step.run for step in fuse_training(net, keep)]


def test_statistics_that_nobody_shares_are_renewed_together(tmp_path: Path) -> None:
    _, runs = trained_plan("shared", tmp_path)
    fused = {run.norm.name: run.running_statistics for run in runs if isinstance(run, FusedBatchNormScale)}
    assert {name for name, together in fused.items() if together is None} == {"b_norm_bn", "c_norm_bn"}
    assert fused["a_norm_bn"] is fused["d_norm_bn"]


def test_a_pass_that_is_broken_off_leaves_no_statistics_to_the_next(tmp_path: Path) -> None:
    """As where a layer raises an error between two BatchNorms."""
    first, second = (solver(net_of("resnet20", tmp_path / n, batch=2), fast=True) for n in ("a", "b"))
    plan, batch = executor_of(first).plan, first.net.next_batch()
    first.net.outputs = []
    first.net.loss_weights, weights = {}, first.net.loss_weights
    first.net.forward(batch, plan=plan[: len(plan) // 2])
    first.net.loss_weights = weights
    for each in (first, second):
        each.net.forward(batch, plan=executor_of(each).plan)
    for name, blobs in second.net.params.items():
        for got, want in zip(first.net.params[name], blobs, strict=True):
            assert torch.equal(got, want), name


def test_statistics_renewed_together_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    together, alone = (solver(net_of("resnet20", tmp_path / n, batch=4), fast=True) for n in ("a", "b"))
    for step in executor_of(alone).plan:
        if isinstance(step.run, FusedBatchNormScale):
            step.run.running_statistics = None
    for each in (together, alone):
        each.step(2)
    for name, values in blobs_of(alone).items():
        assert torch.equal(blobs_of(together)[name], values), name


def test_a_sum_does_not_overwrite_a_blob_that_is_kept(tmp_path: Path) -> None:
    net, _ = trained_plan("shared", tmp_path)
    batch = net.next_batch()
    with torch.no_grad():
        keep = ("b_norm", "c_norm")
        want = net.forward(batch, keep)
        got = net.forward(batch, keep, fuse_training(net, keep))
    n = want["b_norm"].numel() // 8  # numbers of a channel, for its statistics; 4 layers before
    for name in ("b_norm", "c_norm"):
        assert distance(got[name].double(), want[name].double()) <= sum_rounding(n, 4)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (2, 16, 8, 8), (3, 2, 1, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_channels_last_batch_norm_has_the_values_and_the_gradients(
    shape: tuple[int, ...], affine: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 5
    weight, bias = (
        torch.randn(2, shape[1], generator=generator, dtype=torch.float64) if affine else (None, None)
    )
    top_diff = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = []
    for last in (True, False):
        bottom = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        leaves = [leaf.clone().requires_grad_() for leaf in (bottom, weight, bias) if leaf is not None]
        statistics = torch.zeros(2, shape[1], dtype=torch.float64)
        if last:
            assert is_channels_last(leaves[0])
            top, *statistics = normalize_channels_last(NormCall(leaves[0], *leaves[1:], eps=1e-5))
        else:
            given = leaves[1:] or (None, None)
            top = torch.batch_norm(leaves[0], *given, *statistics, True, 1, 1e-5, False)
        found.append([top, *statistics, *torch.autograd.grad(top, leaves, top_diff)])
    for got, want in zip(*found, strict=True):
        assert distance(got.detach(), want.detach()) <= tolerance("fast way", "float64").atol


# -- layers that others look into ----------------------------------------------------------------------------

# The first ReLU's backward pass reads what BatchNorm, or Scale, leaves in its memory.
OVERWRITTEN = (
    conv("c", "data", 3, 3)
    + layer("ReLU", "relu", "c", "c")
    + layer("BatchNorm", "bn", "c", "c")
    + layer("Scale", "scale", "c", "TOP", "scale_param { bias_term: true }")
)
STATISTICS = "".join(f'param {{ name: "x{i}" lr_mult: 0 }} ' for i in range(3))
# A branch of BatchNorm and Scale, and TanH, whose backward pass reads what the sum leaves in its memory.
BRANCH = (
    conv("c", "data", 3, 3, "bias_term: false")
    + layer("BatchNorm", "bn", "c", "n")
    + layer("Scale", "scale", "n", "m", "scale_param { bias_term: true }")
    + conv("k", "data", 3, 3)
    + layer("TanH", "tanh", "k", "t")
)
SUM_IN_PLACE = 'layer { name: "sum" type: "Eltwise" bottom: "t" bottom: "m" top: "t" }\n'
LOOKED_INTO = {
    "what BatchNorm leaves": (OVERWRITTEN.replace("TOP", "end"), []),
    "what Scale leaves": (OVERWRITTEN.replace("TOP", "c") + layer("ReLU", "last", "c", "end"), ["bn scale"]),
    # The statistics are renewed by the first, then by the second.
    "shared statistics": (
        layer("BatchNorm", "one", "data", "one", STATISTICS)
        + layer("Scale", "scale", "one", "scaled", "scale_param { bias_term: true }")
        + layer("Power", "power", "data", "power", "power_param { scale: 2 shift: 1 }")
        + layer("BatchNorm", "two", "power", "two", STATISTICS)
        + layer("ReLU", "relu", "scaled", "scaled")
        + 'layer { name: "sum" type: "Eltwise" bottom: "scaled" bottom: "two" top: "end" }',
        ["one scale"],
    ),
    "what a joined sum leaves": (
        BRANCH + "SUM_IN_PLACE" + layer("ReLU", "relu", "t", "end"),
        ["bn scale sum"],
    ),
    "a joined sum, and the ReLU in place": (
        BRANCH + "SUM_IN_PLACE" + layer("ReLU", "relu", "t", "t") + layer("Power", "end", "t"),
        ["bn scale sum relu"],
    ),
    "a sum for which a blob is left over": (
        conv("k", "data", 3, 3)
        + layer("TanH", "tanh", "k", "t")
        + layer("BatchNorm", "bn", "t", "t")
        + layer("Scale", "scale", "t", "t", "scale_param { bias_term: true }")
        + conv("k2", "data", 3, 3)
        + layer("Power", "p", "k2")
        + 'layer { name: "sum" type: "Eltwise" bottom: "p" bottom: "t" top: "end" }',
        ["bn scale"],
    ),
    "what a sum leaves to a ReLU": (
        conv("k", "data", 3, 3)
        + layer("TanH", "tanh", "k", "t")
        + conv("m", "data", 3, 3)
        + "SUM_IN_PLACE"
        + layer("ReLU", "relu", "t", "end"),
        [],
    ),
    "no sum of three": (
        BRANCH
        + conv("k2", "data", 3, 3)
        + 'layer { name: "sum" type: "Eltwise" bottom: "t" bottom: "m" bottom: "k2" top: "end" }',
        ["bn scale"],
    ),
    "two joined branches": (
        conv("a", "data", 3, 3, "bias_term: false")
        + norm("m", "a")
        + conv("b", "data", 3, 3, "bias_term: false")
        + norm("n", "b")
        + 'layer { name: "sum" type: "Eltwise" bottom: "m" bottom: "n" top: "sum" }'
        + layer("ReLU", "relu", "sum", "end"),
        ["n_bn n", "m_bn m sum relu"],
    ),
}
LOOKED_INTO = {
    name: (body.replace("SUM_IN_PLACE", SUM_IN_PLACE), joined) for name, (body, joined) in LOOKED_INTO.items()
}


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_layers_that_others_look_into_run_by_themselves(name: str, tmp_path: Path) -> None:
    """Two iterations in double precision, and which layers run as one."""
    body, joined = LOOKED_INTO[name]
    source = write_images(tmp_path / "lmdb", 3, 16)
    data = DATA.replace("SOURCE", source).replace("BATCH", "8")
    param = parse_net(data + body + inner_product("ip", "end", 10) + loss("ip"))
    solvers = [solver(param, fast, torch.float64, keep=False) for fast in (True, False)]
    for each in solvers:
        each.step(2)
    runs = [step.run for step in executor_of(solvers[0]).plan if isinstance(step.run, FusedBatchNormScale)]
    assert [
        f"{run.norm.name} {run.scale.name}{' sum' * run.has_shortcut}{' relu' * run.relu}" for run in runs
    ] == joined
    assert_equal(solvers[0], solvers[1])


def test_a_blob_that_is_kept_is_not_joined_away(tmp_path: Path) -> None:
    _, runs = trained_plan("shared", tmp_path, keep=("a_norm_bn",))
    assert "a_norm_bn" not in [run.norm.name for run in runs if isinstance(run, FusedBatchNormScale)]


@pytest.mark.parametrize("name", ["resnet20", "shared"])
def test_sums_are_joined(name: str, tmp_path: Path) -> None:
    _, runs = trained_plan(name, tmp_path)
    joined = [run for run in runs if isinstance(run, FusedBatchNormScale)]
    sums = sum(run.has_shortcut and run.relu for run in joined)
    assert (sums, len(joined)) == {"resnet20": (9, 19), "shared": (1, 4)}[name]


def test_reduced_precision_is_near_single_precision(tmp_path: Path) -> None:
    """One iteration the fast way in bfloat16, beside the plain way in single precision."""
    body = conv("c", "data", 8, 3) + layer("ReLU", "r", "c", "c") + conv("d", "c", 8, 3) + norm("n", "d")
    source = write_images(tmp_path / "lmdb", 3, 16)
    data = DATA.replace("SOURCE", source).replace("BATCH", "8")
    param = parse_net(data + body + inner_product("ip", "n", 10) + loss("ip"))
    history = []
    for fast, reduced in ((True, torch.bfloat16), (False, None)):
        each = solver(param, False, keep=False)
        run = Solver(
            each.param,
            Options(executor=partial(NetExecutor, device=torch.device("cpu"), fast=fast, reduced=reduced)),
        )
        run.step(1)
        history.append(torch.cat([blob.flatten() for blob in run.history]))
    error = float((history[0] - history[1]).norm() / history[1].norm())
    assert error <= tolerance("history in bfloat16").rtol


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_norm_before_a_grouped_convolution(batch: int, tmp_path: Path) -> None:
    """torch takes a wrong gradient of a group's weights where the one image has an odd stride."""
    body = (
        conv("c", "data", 16, 3, "bias_term: false")
        + layer("BatchNorm", "bn", "c")
        + conv("g", "bn", 24, 3, "group: 2")
    )
    source = write_images(tmp_path / "lmdb", 3, 12)
    data = DATA.replace("SOURCE", source).replace("BATCH", str(batch))
    param = parse_net(data + body + inner_product("ip", "g", 10) + loss("ip"))
    fast, plain = one_iteration(param, torch.float64)
    assert_equal(fast, plain)


def test_every_second_pixel_of_few_channels(tmp_path: Path) -> None:
    """Where oneDNN writes past the end of its memory."""
    body = conv("c", "data", 24, 1, "stride_h: 2 stride_w: 3")
    source = write_images(tmp_path / "lmdb", 3, 12)
    data = DATA.replace("SOURCE", source).replace("BATCH", "5")
    param = parse_net(data + body + inner_product("ip", "c", 10) + loss("ip"))
    fast, plain = one_iteration(param, torch.float64)
    assert [step.run for step in executor_of(fast).plan if isinstance(step.run, SubsampledConvolution)]
    assert_equal(fast, plain)


def test_inputs_of_other_shapes_than_the_net_was_made_for() -> None:
    """Refused, or computed, as the plain net does."""
    text = """
    layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: [2, 8, 9, 9] } } }
    layer { name: "bn" type: "BatchNorm" bottom: "a" top: "n" }
    layer { name: "s" type: "Scale" bottom: "n" top: "m" scale_param { bias_term: true } }
    layer { name: "sum" type: "Eltwise" bottom: "m" bottom: "b" top: "sum" }
    layer { name: "c" type: "Convolution" bottom: "sum" top: "c"
            convolution_param { num_output: 8 kernel_size: 5 stride: 3 weight_filler { type: "msra" } } }
    """
    net = Net(parse_net(text), Run(CaffeRandom(1)))
    fused = fuse_training(net)

    def numbers(size: int) -> Tensor:
        values = torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(size))
        return values.contiguous(memory_format=torch.channels_last)

    def tops(plan: Sequence[Step], *sizes: int) -> Tensor | str:
        a, b = (numbers(size) for size in sizes)
        try:
            return net({"a": a, "b": b}, plan=plan)["c"].detach()
        except LayerError as error:
            return str(error)

    for sizes in ((9, 9), (4, 4), (8, 4), (1, 1)):
        plain, fast = tops(net.steps, *sizes), tops(fused, *sizes)
        if isinstance(plain, Tensor):
            assert isinstance(fast, Tensor)
            assert distance(fast.double(), plain.double()) <= sum_rounding(8 * 5 * 5, 2)
        else:
            assert fast == plain
