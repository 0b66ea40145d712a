"""InnerProduct, Dropout, Embed, beyond the recorded cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance

from imae.layers.caffe_random import CaffeRandom
from imae.layers.common.dropout import Dropout

XAVIER = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 }'


def inner_product(fields: str = "") -> str:
    return f'type: "InnerProduct" inner_product_param {{ num_output: 3 {XAVIER} {fields} }}'


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
@pytest.mark.parametrize("transpose", ["", "transpose: true"])
@pytest.mark.parametrize("bias", ["", "bias_term: false"])
def test_inner_product_is_a_product_of_the_axes_behind(axis: int, transpose: str, bias: str) -> None:
    x = normal(2, 5, 4, 3)
    layer = build(inner_product(f"axis: {axis} {transpose} {bias}"), x.shape)
    inputs = int(np.prod(x.shape[axis:]))
    assert layer.blob_shapes[0] == ((inputs, 3) if transpose else (3, inputs))
    assert len(layer.blobs) == (1 if bias else 2)
    weight = layer.blob(0).detach().numpy()
    flat = x.numpy().reshape(*x.shape[: axis % 4], inputs)
    want = np.einsum("...k,ko->...o" if transpose else "...k,ok->...o", flat, weight)
    if not bias:
        want = want + layer.blob(1).detach().numpy()
    rtol, atol, _ = tolerance("same arithmetic")
    (top,) = run(layer, x)
    np.testing.assert_allclose(top.detach().numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


def test_inner_product_contract_and_gradient() -> None:
    check_contract(inner_product(), normal(2, 5, 4))
    check_contract(inner_product("axis: 2 transpose: true"), normal(2, 5, 4))
    check_gradient(inner_product("axis: 2 transpose: true"), normal(2, 5, 4))
    check_gradient(inner_product(), normal(2, 5, 2))


@pytest.mark.parametrize(
    "fields", ["", "transpose: true", "bias_term: false", "axis: 2", "axis: -1 bias_term: false"]
)
def test_inner_product_in_onnx(fields: str) -> None:
    check_onnx(inner_product(fields), normal(2, 5, 4))


def test_inner_product_of_plain_vectors_in_onnx() -> None:
    check_onnx(inner_product(), normal(2, 5))


def test_inner_product_refuses() -> None:
    with refused("num_output must be positive, got 0"):
        build('type: "InnerProduct"', (2, 3))
    with refused("axis 4 out of range for a blob with 3 axes"):
        build(inner_product("axis: 4"), (2, 3, 4))
    layer = build(inner_product(), (2, 3, 4))
    with refused("Input size incompatible with inner product parameters.; got 15"):
        layer.checked_top_shapes([(2, 3, 5)])
    assert layer.checked_top_shapes([(7, 12)]) == [(7, 3)]


@pytest.mark.parametrize("path", reference.find("random/dropout*.npz"), ids=lambda path: path.stem)
def test_dropout_draws_caffes_masks(path: Path) -> None:
    assert reference.replay(reference.load(path)) > 0


@pytest.mark.parametrize("ratio", [0, 0.3, 0.5, 0.9])
def test_dropout_draws_one_word_an_element_in_memory_order(ratio: float) -> None:
    x = normal(4, 3, 5).permute(0, 2, 1)
    layer = build(f'type: "Dropout" phase: TRAIN dropout_param {{ dropout_ratio: {ratio} }}', x.shape, seed=5)
    (top,) = run(layer, x)
    stream = CaffeRandom(5)
    mask = torch.from_numpy(stream.bernoulli(60, 1 - float(np.float32(ratio)))).reshape(4, 5, 3)
    scale = np.float32(1 / (1 - float(np.float32(ratio))))
    assert torch.equal(top, x * mask * torch.tensor(scale))
    assert layer.random.word() == stream.word()


def test_dropout_sends_the_gradient_through_the_mask_of_the_forward_pass() -> None:
    layer = build('type: "Dropout" phase: TRAIN', (100,))
    x = normal(100).requires_grad_()
    (top,) = run(layer, x)
    top_diff = normal(100, seed=1)
    top.backward(top_diff)
    kept = top != 0
    assert 0 < int(kept.sum()) < 100
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(kept, top_diff * 2, 0))


def test_dropout_in_test_phase_is_the_identity_and_draws_nothing() -> None:
    layer = build('type: "Dropout" phase: TEST', (2, 3), seed=3)
    x = normal(2, 3)
    assert torch.equal(run(layer, x)[0], x)
    assert layer.random.word() == CaffeRandom(3).word()
    check_onnx('type: "Dropout" phase: TEST', x)
    check_contract('type: "Dropout" phase: TEST', x)
    check_contract('type: "Dropout" phase: TRAIN', x)


def test_dropout_keeps_caffes_masks_on_the_cpu_whatever_the_device_may_do() -> None:
    x, text = normal(4, 7), 'type: "Dropout" phase: TRAIN'
    plain, free = build(text, x.shape), build(text, x.shape)
    assert isinstance(free, Dropout)
    free.device_masks = True
    assert torch.equal(run(plain, x)[0], run(free, x)[0])


def test_dropout_lets_another_device_draw_where_it_may() -> None:
    layer = build('type: "Dropout" phase: TRAIN', (4, 7), seed=3)
    assert isinstance(layer, Dropout)
    layer.device_masks = True
    (top,) = run(layer, torch.empty(4, 7, device="meta"))  # without values: seen is only who draws
    assert top.device.type == "meta"
    assert layer.random.word() == CaffeRandom(3).word()


@pytest.mark.parametrize("ratio", ["1", "-0.5", "1.5", "nan"])
def test_dropout_refuses_ratios_that_leave_nothing(ratio: str) -> None:
    with refused("dropout_ratio must be at least 0 and less than 1"):
        build(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', (2, 3))


EMBED = f'type: "Embed" embed_param {{ num_output: 4 input_dim: 6 {XAVIER} }}'


def test_embed_takes_rows_and_adds_their_gradients() -> None:
    layer = build(EMBED, (2, 3))
    index = torch.tensor([[0.0, 5, 1.9], [1, -0.9, 0]])  # cut towards zero, as Caffe casts
    (top,) = run(layer, index)
    whole = torch.tensor([[0, 5, 1], [1, 0, 0]])
    assert torch.equal(top, layer.blob(0)[whole] + layer.blob(1))
    top_diff = normal(2, 3, 4)
    top.backward(top_diff)
    rtol, atol, _ = tolerance("same arithmetic")
    assert layer.blobs[0].grad is not None and layer.blobs[1].grad is not None
    want = torch.zeros(6, 4).index_add(0, whole.flatten(), top_diff.reshape(6, 4))
    torch.testing.assert_close(layer.blobs[0].grad, want, rtol=rtol, atol=atol)
    torch.testing.assert_close(layer.blobs[1].grad, top_diff.sum((0, 1)), rtol=rtol, atol=atol)


def test_embed_contract_and_onnx() -> None:
    index = torch.tensor([[0.0, 5, 1.9], [1, 4, 0]])
    check_contract(EMBED, index)
    check_onnx(EMBED, index)
    check_onnx(EMBED.replace("input_dim", "bias_term: false input_dim"), index)
    assert len(build(EMBED.replace("input_dim", "bias_term: false input_dim"), (2, 3)).blobs) == 1
    check_gradient(EMBED, index, constant=[0])


def test_embed_refuses() -> None:
    message = "layer 'it' (Embed): index 6 is out of range: input_dim is 6, so indices are 0 to 5; mend"
    with refused(message):
        run(build(EMBED, (2,)), torch.tensor([5.0, 6]))
    with refused("index -1 is out of range"):
        run(build(EMBED, (2,)), torch.tensor([5.0, -1]))
    with refused("Can't backpropagate to EmbedLayer input.; set"):
        diffs(build(EMBED, (2,)), torch.tensor([5.0, 1]))
    with refused("EmbedLayer num_output must be positive.; got 0"):
        build('type: "Embed" embed_param { input_dim: 2 }', (2,))
    with refused("EmbedLayer input_dim must be positive.; got 0"):
        build('type: "Embed" embed_param { num_output: 2 }', (2,))
