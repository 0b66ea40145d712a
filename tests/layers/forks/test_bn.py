"""The three layers that are called BN: which is meant, statistics, gradients, weights, ONNX.

What the recorded cases lack (phase TEST of CaffeMex, `frozen`, several passes) is compared with arithmetic
that is written out here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from single_layer import build, check_contract, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

import imae.pycaffe as caffe
from imae.files.errors import CaffemodelError, ExportError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.bn import TSNBN, CaffeMexBN, SegNetBN
from imae.layers.layer import Layer, Shape
from imae.layers.ranks import Ranks
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import LayerParameter, NetParameter
from imae.prototxt.text import parse_net

SLOPED = "slope_filler { type: 'uniform' min: 1 max: 2 } bias_filler { type: 'uniform' min: 1 max: 2 }"
SCALED = SLOPED.replace("slope", "scale").replace("bias", "shift")
X = normal(2, 3, 4, 5)


def bn(fields: str, phase: str = "TRAIN") -> str:
    return f'type: "BN" phase: {phase} bn_param {{ {fields} }}'


def close(got: Tensor, want: Tensor | NDArray[np.float64]) -> None:
    rtol, atol, _ = tolerance("same arithmetic")
    want = want.detach() if isinstance(want, Tensor) else torch.from_numpy(want)
    torch.testing.assert_close(got.detach().double(), want.double(), rtol=rtol, atol=atol)


def filled(layer: Layer) -> Layer:
    """The layer with numbers in all blobs, those of the variance above 0."""
    with torch.no_grad():
        for index, blob in enumerate(layer.blobs):
            blob.copy_(normal(*blob.shape, seed=index).abs() + 0.5)
    return layer


def channels_of(x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and biased variance of each channel, (1, C, 1, 1), counted up value by value."""
    values = x.double().numpy()
    means = [sum(v.flat) / v.size for v in np.moveaxis(values, 1, 0)]
    variances = [sum((w - m) ** 2 for w in v.flat) / v.size
                 for v, m in zip(np.moveaxis(values, 1, 0), means, strict=True)]  # fmt: skip
    return np.reshape(means, (1, -1, 1, 1)), np.reshape(variances, (1, -1, 1, 1))


# -- which layer is meant ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", TSNBN),
        ("bn_param { slope_filler { value: 1 } }", TSNBN),
        ("bn_param { frozen: false }", TSNBN),
        ("bn_param { engine: CUDNN momentum: 0.5 eps: 1 }", TSNBN),
        ("bn_param { bn_mode: INFERENCE }", SegNetBN),
        ("bn_param { scale_filler { value: 1 } shift_filler { value: 0.001 } }", SegNetBN),
        ("bn_param { scale_filler { value: 1 } } param { } param { }", SegNetBN),
        ("bn_param { scale_filler { value: 1 } decay: 0.9 }", CaffeMexBN),
        ("bn_param { moving_average: false }", CaffeMexBN),
        ("bn_param { scale_filler { value: 1 } } param { } param { } param { lr_mult: 0 }", CaffeMexBN),
        ("bn_param { shift_filler { value: 1 } } blobs { } blobs { } blobs { } blobs { }", CaffeMexBN),
        ("bn_param { bn_mode: LEARN } param { } param { } param { }", SegNetBN),
    ],
)
def test_the_fields_tell_which_layer_is_meant(text: str, meant: type[Layer]) -> None:
    assert class_of(text_format.Parse(f'name: "it" type: "BN" {text}', LayerParameter())) is meant


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ("bn_mode: LEARN decay: 0.9", "bn_mode (SegNet), decay (CaffeMex)"),
        (
            "scale_filler { } slope_filler { }",
            "scale_filler (SegNet or CaffeMex), slope_filler (TSN)",
        ),
        ("var_eps: 1 eps: 1", "eps (TSN), var_eps (CaffeMex)"),
    ],
)
def test_fields_of_two_are_an_error(fields: str, named: str) -> None:
    words = "layer 'it' (BN): three layers are called BN, and none has all these fields of bn_param: "
    with refused(f"{words}{named}; keep those of one"):
        build(bn(fields), X.shape)


# -- SegNet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_segnet_learns_from_the_batch_in_both_phases(phase: str) -> None:
    layer = filled(build(bn(SCALED, phase) + ' top: "t" top: "m" top: "v"', X.shape))
    mean, variance = channels_of(X)
    scale, shift = (blob.detach().double().numpy() for blob in layer.blobs)
    tops = run(layer, X)
    close(tops[0], (X.double().numpy() - mean) / np.sqrt(variance + 1e-9) * scale + shift)
    close(tops[1], mean)
    close(tops[2], variance)
    for top in (' top: "t" top: "m"', ""):
        assert len(run(build(bn(SCALED, phase) + top, X.shape), X)) == (2 if top else 1)


def test_segnet_keeps_small_deviations_from_a_large_mean() -> None:
    """The fork takes one large square from another; here no digit is lost."""
    x = 1000 + 0.01 * X
    layer = build(bn("scale_filler { value: 1 } bn_mode: LEARN"), X.shape)
    (top,) = run(layer, x.double())
    mean, variance = channels_of(x.double())
    close(top, (x.double().numpy() - mean) / np.sqrt(variance + 1e-9))


def test_segnet_inference_is_scale_and_shift_alone() -> None:
    for phase in ("TRAIN", "TEST"):
        layer = filled(build(bn(f"{SCALED} bn_mode: INFERENCE", phase), X.shape))
        close(run(layer, X)[0], X * layer.blobs[0] + layer.blobs[1])
    with refused("BN Layer produces at most 1 top blob(s) as output.; got 2 for INFERENCE"):
        build(bn(f"{SCALED} bn_mode: INFERENCE") + ' top: "t" top: "m"', X.shape)
    with refused("BN Layer produces at most 3 top blob(s) as output.; got 4"):
        build(bn(SCALED) + ' top: "t" top: "m" top: "v" top: "w"', X.shape)


def test_segnets_further_tops_send_no_gradient() -> None:
    layer = build(bn(SCALED) + ' top: "t" top: "m" top: "v"', X.shape)
    tops = run(layer, X.clone().requires_grad_())
    assert [top.requires_grad for top in tops] == [True, False, False]


# -- TSN -----------------------------------------------------------------------------------------------------


def test_tsn_keeps_the_biased_variance_and_test_uses_it() -> None:
    layer = build(bn(f"{SLOPED} momentum: 0.75 eps: 0.5"), X.shape)
    running = np.zeros((1, 3, 1, 1)), np.zeros((1, 3, 1, 1))
    slope, bias = (blob.detach().double().numpy() for blob in list(layer.blobs)[:2])
    for seed in range(3):
        x = normal(*X.shape, seed=seed)
        (top,) = run(layer, x)
        statistics = channels_of(x)
        close(top, (x.double().numpy() - statistics[0]) / np.sqrt(statistics[1] + 0.5) * slope + bias)
        running = tuple(0.75 * old + 0.25 * new for old, new in zip(running, statistics, strict=True))
        for blob, want in zip(list(layer.blobs)[2:], running, strict=True):
            close(blob, want)
    test = build(bn(f"{SLOPED} momentum: 0.75 eps: 0.5", "TEST"), X.shape)
    frozen = build(bn(f"{SLOPED} momentum: 0.75 eps: 0.5 frozen: true"), X.shape)
    want = (X.double().numpy() - running[0]) / np.sqrt(running[1] + 0.5) * slope + bias
    for other in (test, frozen):
        with torch.no_grad():
            for blob, source in zip(other.blobs, layer.blobs, strict=True):
                blob.copy_(source)
        close(run(other, X)[0], want)
        for blob, source in zip(other.blobs, layer.blobs, strict=True):
            assert torch.equal(blob, source)


def test_tsn_starts_from_zero_and_frozen_from_one() -> None:
    for fields, variance in (("", 0), ("frozen: true", 1)):
        layer = build(bn(fields), X.shape)
        assert [blob.flatten().tolist() for blob in layer.blobs] == [[0] * 3] * 3 + [[variance] * 3]
        assert {tuple(blob.shape) for blob in layer.blobs} == {(1, 3, 1, 1)}


def test_tsn_sets_the_rates_of_its_statistics() -> None:
    specs = "param { lr_mult: 3 } param { lr_mult: 4 decay_mult: 2 } param { lr_mult: 5 }"
    rates = [(s.lr_mult, s.decay_mult) for s in build(bn(SLOPED) + specs, X.shape).param_specs()]
    assert rates == [(3, 1), (4, 2), (0, 0), (0, 0)]
    frozen = build(bn(f"{SLOPED} frozen: true") + specs, X.shape)
    assert [(s.lr_mult, s.decay_mult) for s in frozen.param_specs()] == [(0, 0)] * 4
    net = Net(parse_net(NET.replace(bn(SCALED), f"{bn(SLOPED)} {specs}")))
    assert list(net.lr_mults) == [3, 4, 0, 0]


def test_tsns_backward_pass() -> None:
    """TEST sends the gradient through the statistics like TRAIN; frozen does not, nor to any blob."""
    diff = normal(*X.shape, seed=9)
    layer = filled(build(bn(SLOPED, "TEST"), X.shape))
    slope, _, mean, variance = (blob.detach() for blob in layer.blobs)
    std = (variance + 1e-5).sqrt()
    normed, scaled = (X - mean) / std, diff * slope
    want = scaled - scaled.mean((0, 2, 3), True) - normed * (scaled * normed).mean((0, 2, 3), True)
    close(diffs(layer, X, top_diffs=[diff])[0], want / std)
    close(layer.blobs[0].grad, (diff * normed).sum((0, 2, 3), True))
    close(layer.blobs[1].grad, diff.sum((0, 2, 3), True))
    frozen = filled(build(bn(f"{SLOPED} frozen: true"), X.shape))
    close(diffs(frozen, X, top_diffs=[diff])[0], scaled / std)
    assert [blob.grad for blob in (*layer.blobs, *frozen.blobs)][2:] == [None] * 6


# -- CaffeMex ------------------------------------------------------------------------------------------------


def test_caffemex_adds_eps_in_train_only() -> None:
    fields = f"{SCALED} decay: 0.75 var_eps: 0.5"
    layer = build(bn(fields), X.shape)
    assert [blob.flatten().tolist() for blob in list(layer.blobs)[2:]] == [[0] * 3, [1] * 3]
    scale, shift = (blob.detach().double().numpy() for blob in list(layer.blobs)[:2])
    mean, variance = channels_of(X)
    centred = X.double().numpy() - mean
    close(run(layer, X)[0], centred / np.sqrt(variance + 0.5) * scale + shift)
    close(layer.blobs[2], 0.25 * mean)
    close(layer.blobs[3], 0.75 + 0.25 * variance)
    test = build(bn(fields, "TEST"), X.shape)
    with torch.no_grad():
        for blob, source in zip(test.blobs, layer.blobs, strict=True):
            blob.copy_(source)
    want = (X.double().numpy() - 0.25 * mean) / np.sqrt(0.75 + 0.25 * variance) * scale + shift
    close(run(test, X)[0], want)
    own = build(bn(f"{fields} moving_average: false", "TEST"), X.shape)
    close(run(own, X)[0], centred / np.sqrt(variance) * scale + shift)
    assert own.blobs[3].flatten().tolist() == [1] * 3


def test_caffemexs_gradient_in_test() -> None:
    diff = normal(*X.shape, seed=9)
    layer = filled(build(bn(f"{SCALED} decay: 0.9", "TEST"), X.shape))
    scale, _, _, variance = (blob.detach() for blob in layer.blobs)
    close(diffs(layer, X, top_diffs=[diff])[0], diff * scale / variance.sqrt())
    own = build(bn(f"{SCALED} moving_average: false", "TEST"), X.shape)
    (top,) = run(own, X)
    top.backward(diff)  # its own blobs have a gradient
    close(own.blobs[1].grad, diff.sum((0, 2, 3), True))
    with refused("in phase TEST it has no gradient for its bottom where moving_average is false"):
        diffs(own, X)


def test_caffemexs_statistics_have_the_rates_of_the_prototxt() -> None:
    specs = build(
        bn(f"{SCALED} decay: 0.9") + "param { } param { } param { lr_mult: 0 }", X.shape
    ).param_specs()
    assert [spec.lr_mult for spec in specs] == [1, 1, 0, 1]


def test_caffemexs_sync_forward_is_refused_where_it_would_matter() -> None:
    assert run(build(bn(f"{SCALED} sync_forward: true"), X.shape), X)[0].shape == X.shape
    param = parse_net(f'layer {{ name: "it" bottom: "x" top: "y" {bn("sync_forward: true")} }}').layer[0]
    with refused("sync_forward takes the statistics over all ranks, which is not available; there are 2"):
        CaffeMexBN(param).build([tuple(X.shape)], Run(CaffeRandom(1), ranks=Ranks(0, 2)))


# -- all -----------------------------------------------------------------------------------------------------

VARIANTS = {
    "segnet": SCALED,
    "segnet inference": f"{SCALED} bn_mode: INFERENCE",
    "tsn": SLOPED,
    "tsn frozen": f"{SLOPED} frozen: true",
    "caffemex": f"{SCALED} var_eps: 1e-3",
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_contract_and_gradient(fields: str) -> None:
    """Running statistics are no part of the derivative."""
    check_contract(bn(fields), X)
    layer = build(bn(fields), X.shape).double()
    leaf = X.double().requires_grad_()
    learned = [] if "frozen" in fields else list(layer.blobs)[:2]
    rtol, atol, _ = tolerance("gradient", "float64")
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), [leaf, *learned], rtol=rtol, atol=atol)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (4, 3, 5)])
def test_onnx(fields: str, shape: Shape) -> None:
    x = normal(*shape)
    more = ' top: "t" top: "m" top: "v"' if fields == SCALED else ""
    check_onnx(bn(fields, "TEST") + more, x)
    assert run(build(bn(fields), shape), x)[0].shape == (shape if "slope" in fields else (*shape, 1, 1)[:4])


def test_onnx_of_statistics_that_training_left() -> None:
    for fields in (f"{SLOPED} eps: 0.01", f"{SCALED} decay: 0.9"):
        layer = filled(build(bn(fields, "TEST"), X.shape))
        text = " ".join(f"blobs {{ {str(blob_from_array(blob.detach().numpy())).replace(chr(10), ' ')} }}"
                        for blob in layer.blobs)  # fmt: skip
        check_onnx(bn(fields, "TEST") + text, X)
    layer = build(bn(f"{SCALED} moving_average: false"), X.shape)
    with pytest.raises(ExportError, match="moving_average is false, so it depends on the batch"):
        layer.to_onnx(None, ["x"], ["y"])  # type: ignore[arg-type]  # it does not come to that


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_in_place_the_axes_stay(fields: str) -> None:
    for shape in ((4, 3), (2, 3, 4, 5)):
        x = normal(*shape)
        plain = build(bn(fields), shape)
        layer = build(bn(fields) + ' bottom: "x" top: "x"', shape)
        (top,) = run(layer, x)
        assert top.shape == shape
        close(top, run(plain, x)[0].reshape(shape))


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_errors(fields: str) -> None:
    with refused("the bottom must have at least 2 axes, (N, C, ...); got (5,)"):
        build(bn(fields), (5,))
    with refused("the bottom must have at most 4 axes, (N, C, H, W); got (1, 2, 3, 4, 5)"):
        build(bn(fields), (1, 2, 3, 4, 5))
    layer = build(bn(fields), X.shape)
    with refused("bottom (2, 4, 4, 5) must have 3 channels on axis 1"):
        layer(normal(2, 4, 4, 5))
    if "INFERENCE" not in fields and "frozen" not in fields:
        with refused("a bottom without values has no statistics; got (0, 3, 4, 5)"):
            layer(torch.zeros(0, 3, 4, 5))


@pytest.mark.parametrize(
    ("fields", "adds_up"), [(SLOPED, True), (SCALED, False), (f"{SCALED} decay: 0.9", False)]
)
def test_diffs_of_several_passes(fields: str, adds_up: bool) -> None:
    """With iter_size, the diffs of TSN's blobs add up; SegNet and CaffeMex keep those of the last pass."""
    layer = build(bn(fields), X.shape)
    single = []
    for seed in (1, 2):
        for blob in layer.blobs:
            blob.grad = None
        diffs(layer, normal(*X.shape, seed=seed), top_diffs=[normal(*X.shape, seed=seed + 5)])
        single.append([blob.grad.clone() for blob in list(layer.blobs)[:2]])  # type: ignore[union-attr]
    for blob in layer.blobs:
        blob.grad = None
    for seed in (1, 2):
        diffs(layer, normal(*X.shape, seed=seed), top_diffs=[normal(*X.shape, seed=seed + 5)])
    for index in (0, 1):
        want = single[0][index] + single[1][index] if adds_up else single[1][index]
        assert torch.equal(layer.blobs[index].grad, want)  # type: ignore[arg-type]


NET = f"""force_backward: true
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
    layer {{ name: "it" bottom: "x" top: "y" {bn(SCALED)} }}"""


def test_pycaffe_shows_the_diffs_of_the_last_pass(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TRAIN)
    net.blobs["x"].data[...] = X.numpy()
    seen = []
    for _ in range(2):
        net.forward()
        net.blobs["y"].diff[...] = 1
        net.backward()
        seen.append(net.params["it"][1].diff.copy())
    assert (seen[0] == 40).all() and (seen[1] == 40).all()


# -- weights -------------------------------------------------------------------------------------------------


def weights(path: Path, *shapes: Shape) -> Path:
    net = NetParameter()
    layer = net.layer.add(name="it", type="BN")
    layer.blobs.extend(blob_from_array(np.full(s, i + 1, np.float32)) for i, s in enumerate(shapes))
    path.write_bytes(net.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3), (1, 3, 1)])
def test_tsns_weights_of_either_shape_are_loaded(tmp_path: Path, shape: Shape) -> None:
    net = Net(parse_net(NET.replace(SCALED, SLOPED)))
    load_caffemodel(net, weights(tmp_path / "w", *[shape] * 4))
    blobs = net.steps[1].layer.blobs
    assert [blob.flatten().tolist() for blob in blobs] == [[i] * 3 for i in (1, 2, 3, 4)]
    assert {tuple(blob.shape) for blob in blobs} == {(1, 3, 1, 1)}


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 4), (1, 1, 1, 3)])
def test_weights_of_other_shapes_are_refused(tmp_path: Path, shape: Shape) -> None:
    net = Net(parse_net(NET.replace(SCALED, SLOPED)))
    with pytest.raises(CaffemodelError, match="Cannot copy param 0 weights from layer 'it'; shape mismatch"):
        load_caffemodel(net, weights(tmp_path / "w", *[shape] * 4))


def test_only_tsns_weights_may_have_another_shape(tmp_path: Path) -> None:
    net = Net(parse_net(NET))
    with pytest.raises(CaffemodelError, match="shape mismatch"):
        load_caffemodel(net, weights(tmp_path / "w", (1, 3), (1, 3)))
    load_caffemodel(net, weights(tmp_path / "w", (1, 3, 1, 1), (1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("fields", "count", "advice"),
    [
        (
            SCALED,
            4,
            "the file has 4, the net 2; CaffeMex's BN has 4, the net gets it by decay",
        ),
        (SLOPED, 2, "the file has 2, the net 4; SegNet's BN has 2; the net gets it by scale_filler or"),
        (f"{SCALED} decay: 0.9", 2, "the file has 2, the net 4; SegNet's BN has 2"),
        (SLOPED, 3, "the file has 3, the net 4; rename the layer to learn it from scratch"),
    ],
)
def test_weights_of_another_bn_are_refused_with_advice(
    tmp_path: Path, fields: str, count: int, advice: str
) -> None:
    net = Net(parse_net(NET.replace(SCALED, fields)))
    with pytest.raises(CaffemodelError) as error:
        load_caffemodel(net, weights(tmp_path / "w", *[(1, 3, 1, 1)] * count))
    assert f"Incompatible number of blobs for layer it: {advice}" in str(error.value)
