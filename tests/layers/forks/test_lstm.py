"""Lstm of caffe-lstm. Nothing was recorded: the reference is the slow implementation below.

It is written from what the fork's source computes, value by value.
"""

from __future__ import annotations

from math import exp, tanh

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.recurrent.lstm import LSTM

Array = NDArray[np.float64]
T, D, I = 4, 3, 5  # noqa: E741  # the words of the docstring
FILLERS = 'weight_filler { type: "uniform" min: -1 max: 1 } bias_filler { type: "uniform" min: -1 max: 1 }'


def lstm(streams: int = 1, fields: str = "") -> str:
    return f'type: "Lstm" lstm_param {{ num_output: {D} batch_size: {streams} {FILLERS} {fields} }}'


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


class Literal:
    """One pass of the fork, and its backward pass; `states` are those after the last step."""

    def __init__(
        self, blobs: list[Array], x: Array, begins: Array | None, streams: int, states: tuple[Array, Array]
    ) -> None:
        self.blobs, self.x, self.streams = blobs, x, streams
        self.steps = len(x) // streams
        self.states = states if begins is not None else (np.zeros((streams, D)), np.zeros((streams, D)))
        self.cont = [
            [bool(begins[t + n]) if begins is not None else t > 0 for n in range(streams)]
            for t in range(self.steps)
        ]
        self.h, self.c = [self.states[0]], [self.states[1]]
        self.gates = np.zeros((self.steps, streams, 4, D))
        for t in range(self.steps):
            h, c = np.zeros((streams, D)), np.zeros((streams, D))
            for n in range(streams):
                pre = blobs[0] @ x[t * streams + n] + blobs[2]
                if self.cont[t][n]:
                    pre = pre + blobs[1] @ self.h[t][n]
                for d in range(D):
                    i, o = sigmoid(pre[d]), sigmoid(pre[2 * D + d])
                    f = sigmoid(pre[D + d]) if self.cont[t][n] else 0.0
                    g = tanh(pre[3 * D + d])
                    self.gates[t, n, :, d] = i, f, o, g
                    c[n, d] = f * self.c[t][n, d] + i * g
                    h[n, d] = o * tanh(c[n, d])
            self.h.append(h)
            self.c.append(c)
        self.states = self.h[-1], self.c[-1]
        self.top = np.concatenate(self.h[1:])

    def backward(self, top_diff: Array, threshold: float) -> list[Array]:
        """The diffs of the bottom and of the blobs."""
        dh = top_diff.reshape(self.steps, self.streams, D).copy()
        dc = np.zeros((self.steps, self.streams, D))
        pre = np.zeros((self.steps, self.streams, 4 * D))
        for t in reversed(range(self.steps)):
            for n in range(self.streams):
                cont = self.cont[t][n]
                for d in range(D):
                    i, f, o, g = self.gates[t, n, :, d]
                    th = tanh(self.c[t + 1][n, d])
                    dc[t, n, d] += dh[t, n, d] * o * (1 - th * th)
                    if t > 0 and cont:
                        dc[t - 1, n, d] = dc[t, n, d] * f
                    df = dc[t, n, d] * self.c[t][n, d] if cont else 0.0
                    pre[t, n, d] = dc[t, n, d] * g * i * (1 - i)
                    pre[t, n, D + d] = df * f * (1 - f)
                    pre[t, n, 2 * D + d] = dh[t, n, d] * th * o * (1 - o)
                    pre[t, n, 3 * D + d] = dc[t, n, d] * i * (1 - g * g)
                if threshold > 0:
                    pre[t, n] = np.minimum(np.maximum(pre[t, n], -threshold), threshold)
                if t > 0 and cont:
                    dh[t - 1, n] += self.blobs[1].T @ pre[t, n]
        wi, wh = np.zeros((4 * D, I)), np.zeros((4 * D, D))
        for t in range(self.steps):
            for n in range(self.streams):
                wi += np.outer(pre[t, n], self.x[t * self.streams + n])
                if t > 0 or n == 0:  # whether the sequence goes on or not; of the first states the first only
                    wh += np.outer(pre[t, n], self.h[t][n])
        return [pre.reshape(-1, 4 * D) @ self.blobs[0], wi, wh, pre.sum((0, 1))]


def assert_close(got: Tensor | None, want: Array, what: str = "same arithmetic") -> None:
    rtol, atol, _ = tolerance(what)
    assert got is not None
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=rtol, atol=atol)


def arrays(layer: Layer) -> list[Array]:
    return [blob.detach().double().numpy() for blob in layer.blobs]


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("streams", [1, 3])
def test_passes_are_the_forks(streams: int, flags: bool, threshold: float) -> None:
    """Four passes, the third of another length."""
    text = lstm(streams, f"clipping_threshold: {threshold}")
    layer = build(text, (T * streams, I), *([(T * streams,)] if flags else []))
    states = np.zeros((streams, D)), np.zeros((streams, D))
    for count, steps in enumerate((T, T, 2, 1)):
        rows = steps * streams
        x, d = normal(rows, I, seed=count), normal(rows, D, seed=9)
        begins = (normal(rows, seed=count + 5) > -0.5).float() * 2 if flags else None
        layer.checked_top_shapes([(rows, I), *([(rows,)] if flags else [])])
        for blob in layer.blobs:
            blob.grad = None
        leaf = x.clone().requires_grad_()
        (top,) = run(layer, leaf, *([begins] if begins is not None else []))
        literal = Literal(
            arrays(layer), x.double().numpy(), None if begins is None else begins.numpy(), streams, states
        )
        assert_close(top, literal.top)
        top.backward(d)
        diffs = literal.backward(d.double().numpy(), threshold)
        for got, want in zip([leaf, *layer.blobs], diffs, strict=True):
            assert_close(got.grad, want)
        states = literal.states


def test_flags_matter() -> None:
    """The states live on, and with several streams place t + n is read."""
    layer, x = build(lstm(2), (8, I), (8,)), normal(8, I)
    ones, begins = torch.ones(8), torch.tensor([0.0, 1, 1, 0, 1, 1, 1, 1])
    tops = [run(layer, x, flags)[0] for flags in (ones, ones, begins, ones)]
    assert not torch.equal(tops[0], tops[1])
    unread = begins.clone()
    unread[5:] = 0  # t + n is 4 at most
    run(layer, x, ones)
    again = build(lstm(2), (8, I), (8,))
    for flags in (ones, ones, unread):
        (top,) = run(again, x, flags)
    assert torch.equal(top, tops[2])


def test_gradient_contract_and_dtype() -> None:
    check_contract(lstm(2), normal(8, I))
    check_contract(lstm(2), normal(8, I, 1), torch.zeros(8, 1))
    check_gradient(lstm(2), normal(6, I))  # without flags the derivatives are exact
    assert not build(lstm(), (4, I), (4,)).allows_force_backward(1)


@pytest.mark.parametrize("streams", [1, 3])
def test_onnx_at_several_lengths(streams: int) -> None:
    rows = T * streams
    begins = (normal(rows, seed=7) > -0.5).float()
    begins[:streams] = 0  # so that no pass goes on from the last one
    check_onnx(lstm(streams), normal(rows, I))
    check_onnx(lstm(streams), normal(rows, 1, I))
    check_onnx(lstm(streams), normal(rows, I), begins)


def test_it_is_another_layer_than_caffes() -> None:
    layer = build(
        'type: "LSTM" recurrent_param { num_output: 2 } lstm_param { num_output: 3 }', (3, 1, 4), (3, 1)
    )
    assert isinstance(layer, LSTM) and layer.leftovers == ["lstm_param"]
    with refused("num_output must be positive; got 0"):
        build('type: "Lstm" recurrent_param { num_output: 2 }', (3, 4))


def test_lstm_refuses() -> None:
    with refused("batch_size must be positive; got 0"):
        build(lstm(0), (4, I))
    with refused("Input size should be multiple of batch size; got (4, 5) for a batch_size of 3"):
        build(lstm(3), (4, I))
    with refused("Input size should be multiple of batch size; got (0, 5)"):
        build(lstm(), (0, I))
    with refused("bottom[1] must hold one value for each row of bottom[0], (4, 5); got (2, 2)"):
        build(lstm(2), (4, I), (2, 2))
    with refused("Input size incompatible with inner product parameters.; got 6 values per row of (4, 6)"):
        build(lstm(), (4, I)).checked_top_shapes([(4, 6)])
