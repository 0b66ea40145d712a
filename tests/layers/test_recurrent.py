"""LSTM, RNN, LSTMUnit, beyond the recorded cases: states, draws, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from single_layer import build, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer, Shape

KINDS = ["LSTM", "RNN"]
STATES = {"LSTM": 2, "RNN": 1}
T, N, D = 5, 2, 3
CONT = torch.tensor([[0.0, 0], [1, 1], [1, 0], [1, 1], [1, 1]])


def recurrent(kind: str, fields: str = "", bottoms: int = 2, tops: int = 1) -> str:
    names = "".join(f'bottom: "b{i}" ' for i in range(bottoms)) + "".join(
        f'top: "t{i}" ' for i in range(tops)
    )
    fillers = (
        'weight_filler { type: "uniform" min: -1 max: 1 } bias_filler { type: "uniform" min: -1 max: 1 }'
    )
    return f'type: "{kind}" {names} recurrent_param {{ num_output: {D} {fillers} {fields} }}'


def exposing(kind: str, static: bool = False) -> str:
    return recurrent(kind, "expose_hidden: true", 2 + static + STATES[kind], 1 + STATES[kind])


def assert_close(got: Tensor | None, want: Tensor) -> None:
    rtol, atol, _ = tolerance("same arithmetic")
    assert got is not None
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def literal(
    layer: Layer, x: Tensor, cont: Tensor, static: Tensor | None, states: list[Tensor]
) -> list[Tensor]:
    """Time step by time step, gate by gate: top, then the states after the last step."""
    blobs = [blob.detach() for blob in layer.blobs]
    tops = []
    for t in range(x.shape[0]):
        inputs = x[t].flatten(1) @ blobs[0].t() + blobs[1]
        if static is not None:
            inputs = inputs + static.flatten(1) @ blobs[2].t()
        before = states[0] * cont[t][:, None]
        if layer.type == "LSTM":
            i, f, o, g = (inputs + before @ blobs[-1].t()).split(D, 1)
            kept = cont[t][:, None] * torch.sigmoid(f) * states[1]
            cell = kept + torch.sigmoid(i) * torch.tanh(g)
            states = [torch.sigmoid(o) * torch.tanh(cell), cell]
            tops.append(states[0])
        else:
            states = [torch.tanh(inputs + before @ blobs[-3].t())]
            tops.append(torch.tanh(states[0] @ blobs[-2].t() + blobs[-1]))
    return [torch.stack(tops), *states]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("static", [False, True])
def test_states_live_on_from_pass_to_pass(kind: str, static: bool) -> None:
    shapes: list[Shape] = [(T, N, 2, 2), (T, N)] + ([(N, 3, 2)] if static else [])
    layer = build(recurrent(kind, bottoms=2 + static), *shapes)
    assert layer.checked_top_shapes(shapes) == [(T, N, D)]
    states = [torch.zeros(N, D)] * STATES[kind]
    for step, cont in enumerate([torch.ones(T, N), CONT, torch.ones(T, N), CONT]):
        bottoms = [normal(T, N, 2, 2, seed=step), cont] + ([normal(N, 3, 2, seed=9)] if static else [])
        top, *states = literal(layer, bottoms[0], cont, bottoms[2] if static else None, states)
        with torch.set_grad_enabled(step % 2 == 0):
            assert_close(run(layer, *bottoms)[0], top)


@pytest.mark.parametrize("kind", KINDS)
def test_another_batch_size_starts_from_zero(kind: str) -> None:
    layer, cont = build(recurrent(kind), (T, N, 4), (T, N)), torch.ones(T, 4)
    run(layer, normal(T, N, 4), torch.ones(T, N))
    assert layer.checked_top_shapes([(T, 4, 4), (T, 4)]) == [(T, 4, D)]
    x = normal(T, 4, 4)
    assert_close(run(layer, x, cont)[0], literal(layer, x, cont, None, [torch.zeros(4, D)] * STATES[kind])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("static", [False, True])
def test_exposed_states_come_in_and_go_out(kind: str, static: bool) -> None:
    bottoms = [normal(T, N, 4), torch.ones(T, N)] + ([normal(N, 6, seed=3)] if static else [])
    states = [normal(1, N, D, seed=4 + i) for i in range(STATES[kind])]
    shapes = [tuple(bottom.shape) for bottom in [*bottoms, *states]]
    layer = build(exposing(kind, static), *shapes)
    assert layer.checked_top_shapes(shapes) == [(T, N, D)] + [(1, N, D)] * STATES[kind]
    want = literal(layer, bottoms[0], bottoms[1], bottoms[2] if static else None, [s[0] for s in states])
    for _ in range(2):  # nothing lives on
        tops = run(layer, *bottoms, *states)
        assert_close(tops[0], want[0])
        for top, state in zip(tops[1:], want[1:], strict=True):
            assert_close(top, state.unsqueeze(0))
            assert not top.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind: str) -> None:
    static = recurrent(kind, bottoms=3)
    x, more = normal(T, N, 2), normal(N, 2, seed=1)
    # CONT begins with 0, so nothing lives on from one evaluation to the next.
    check_gradient(static, x, CONT, more, constant=[1])
    layer = build(exposing(kind), (T, N, 2), (T, N), *[(1, N, D)] * STATES[kind])
    leaves = [x, CONT, *(normal(1, N, D, seed=2 + i) for i in range(STATES[kind]))]
    needed = [leaf.clone().requires_grad_(index != 1) for index, leaf in enumerate(leaves)]
    run(layer, *needed)[0].sum().backward()
    assert needed[0].grad is not None and all(leaf.grad is None for leaf in needed[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_does_not_cross_passes(kind: str) -> None:
    layer, cont = build(recurrent(kind), (T, N, 4), (T, N)), torch.ones(T, N)
    first, second = normal(T, N, 4).requires_grad_(), normal(T, N, 4, seed=1).requires_grad_()
    before = run(layer, first, cont)[0]
    run(layer, second, cont)[0].sum().backward()
    assert first.grad is None and second.grad is not None
    before.sum().backward()  # and what has been kept for it is still in order
    assert first.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_weights_are_filled_once_per_time_step(kind: str) -> None:
    layer = build(recurrent(kind, bottoms=3), (T, N, 4), (T, N), (N, 6), seed=5)
    stream = CaffeRandom(5)
    rows = 4 * D if kind == "LSTM" else D
    once = [(rows, 4), (rows,), (rows, 6)]
    each = [(rows, D)] if kind == "LSTM" else [(D, D), (D, D), (D,)]
    assert layer.blob_shapes == once + each
    for blob, shape in zip(layer.blobs, once + each, strict=True):
        want = stream.uniform(int(np.prod(shape)), -1, 1).reshape(shape)
        np.testing.assert_array_equal(blob.detach().numpy(), want)
    for _ in range(T - 1):
        for shape in each:
            stream.uniform(int(np.prod(shape)), -1, 1)
    assert layer.random.word() == stream.word()


@pytest.mark.parametrize("kind", KINDS)
def test_any_memory_layout_and_dtype(kind: str) -> None:
    x = normal(T, N, 4)
    scattered = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    shapes = [(T, N, 4), (T, N)]
    (top,) = run(build(recurrent(kind), *shapes), x, CONT)
    assert_close(run(build(recurrent(kind), *shapes), scattered, CONT.t().contiguous().t())[0], top)
    (double,) = run(build(recurrent(kind), *shapes).double(), x.double(), CONT.double())
    assert double.dtype == torch.float64
    assert_close(double.float(), top)


REFUSED = [
    ('type: "LSTM"', [(T, N, 4), (T, N)], "num_output must be positive; got 0"),
    (recurrent("LSTM", bottoms=4), [(T, N, 4), (T, N), (N, 2), (N, 2)],
     "LSTM Layer takes 2 or 3 bottom blob(s) as input.; got 4"),
    (recurrent("RNN", "expose_hidden: true"), [(T, N, 4), (T, N)],
     "RNN Layer takes 3 or 4 bottom blob(s) as input.; got 2"),
    (recurrent("LSTM", "expose_hidden: true", 4), [(T, N, 4), (T, N), (1, N, D), (1, N, D)],
     "LSTM Layer produces 3 top blob(s) as output.; got 1"),
    (recurrent("RNN"), [(T, N), (T, N)], "axis 2 out of range for a blob with 2 axes"),
    (recurrent("RNN"), [(T, N, 4), (T, N, 1)],
     "bottom[1] must have exactly 2 axes -- (#timesteps, #streams); got (5, 2, 1) for (5, 2, 4)"),
    (recurrent("RNN", bottoms=3), [(T, N, 4), (T, N), (3, 4)],
     "bottom[2] must have 2 streams on axis 0; got (3, 4)"),
    (exposing("LSTM"), [(T, N, 4), (T, N), (1, N, D), (1, N, 4)],
     "shape mismatch - bottom[3] must be (1, 2, 3); got (1, 2, 4)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shapes", "message"), REFUSED)
def test_recurrent_layers_refuse(text: str, shapes: list[Shape], message: str) -> None:
    with refused(message):
        build(text, *shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_refuse_other_sizes_later(kind: str) -> None:
    layer = build(recurrent(kind, bottoms=3), (T, N, 4), (T, N), (N, 6))
    with refused("input number of timesteps changed; got 4, it was built for 5"):
        layer.checked_top_shapes([(4, N, 4), (4, N), (N, 6)])
    with refused(
        "Input size incompatible with inner product parameters.; got 3 values per stream of bottom[0]"
    ):
        layer.checked_top_shapes([(T, N, 3), (T, N), (N, 6)])
    with refused("got 5 values per stream of bottom[2], the weights are for 6"):
        layer.checked_top_shapes([(T, N, 4), (T, N), (N, 5)])
    cont = CONT.clone().requires_grad_()
    top = run(layer, normal(T, N, 4), cont, normal(N, 6))[0]
    with refused("Cannot backpropagate to sequence indicators.; set propagate_down to false for bottom 'b1'"):
        top.sum().backward()
    assert not layer.allows_force_backward(1) and layer.allows_force_backward(0)


# -- LSTMUnit ----------------------------------------------------------------------------------------------

UNIT = 'type: "LSTMUnit" top: "c" top: "h"'


def test_lstm_unit_is_its_formula() -> None:
    cell, gates, cont = normal(1, 4, 3), normal(1, 4, 12, seed=1), torch.tensor([[0.0, 1, 1, 0.5]])
    layer = build(UNIT, (1, 4, 3), (1, 4, 12), (1, 4))
    i, f, o, g = gates.split(3, 2)
    want = cont[:, :, None] * torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    tops = run(layer, cell, gates, cont)
    assert_close(tops[0], want)
    assert_close(tops[1], torch.sigmoid(o) * torch.tanh(want))
    check_onnx(UNIT, cell, gates, cont)
    with torch.no_grad():
        assert_close(run(layer.double(), cell.double(), gates.double(), cont.double())[0].float(), want)


def test_lstm_unit_gradient() -> None:
    """The derivative for cont 0 and 1; for others the forget gate's gradient is Caffe's f (1 - f)."""
    cell, gates = normal(1, 3, 2), normal(1, 3, 8, seed=1)
    check_gradient(UNIT, cell, gates, torch.tensor([[0.0, 1, 1]]), constant=[2])
    cont = torch.full((1, 3), 0.5)
    layer = build(UNIT, (1, 3, 2), (1, 3, 8), (1, 3))
    leaf = gates.clone().requires_grad_()
    run(layer, cell, leaf, cont)[0].sum().backward()
    f = 0.5 * torch.sigmoid(gates[:, :, 2:4])
    assert leaf.grad is not None
    assert_close(leaf.grad[:, :, 2:4], cell * f * (1 - f))
    only_hidden = cell.clone().requires_grad_()
    run(layer, only_hidden, gates, cont)[1].sum().backward()
    assert only_hidden.grad is not None and bool((only_hidden.grad != 0).all())


def test_lstm_unit_refuses() -> None:
    with refused(
        "the bottoms must be c (1, N, D), x (1, N, 4 D) and cont (1, N); got [(1, 4, 3), (1, 4, 9), (1, 4)]"
    ):
        build(UNIT, (1, 4, 3), (1, 4, 9), (1, 4))
    with refused("the bottoms must be c (1, N, D)"):
        build(UNIT, (2, 4, 3), (2, 4, 12), (2, 4))
    with refused("the bottoms must be c (1, N, D)"):
        build(UNIT, (4, 3), (4, 12), (4,))
    layer = build(UNIT, (1, 4, 3), (1, 4, 12), (1, 4))
    assert [layer.allows_force_backward(i) for i in range(3)] == [True, True, False]
    with refused("Cannot backpropagate to sequence indicators."):
        diffs(layer, normal(1, 4, 3), normal(1, 4, 12), torch.ones(1, 4))
