"""Permute, beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run

X = normal(2, 3, 4, 5)


@pytest.mark.parametrize("order", [(), (0, 2, 3, 1), (0, 3), (0, 1, 3)])
def test_axes_move_in_the_order(order: tuple[int, ...]) -> None:
    text = f'type: "Permute" permute_param {{ {" ".join(f"order: {axis}" for axis in order)} }}'
    rest = [axis for axis in range(4) if axis not in order]
    (top,) = run(build(text, X.shape), X)
    assert torch.equal(top, X.permute(*order, *rest)) and top.is_contiguous()
    check_contract(text, X)
    check_gradient(text, X)
    check_onnx(text, X)


def test_the_first_axis_may_move() -> None:
    (top,) = run(build('type: "Permute" permute_param { order: 1 }', (2, 3)), normal(2, 3))
    assert top.shape == (3, 2)


def test_orders_that_are_refused() -> None:
    with refused("order should be less than the input dimension.; got [4] for 4 axes"):
        build('type: "Permute" permute_param { order: 4 }', X.shape)
    with refused("there are duplicate orders; got [1, 1]"):
        build('type: "Permute" permute_param { order: 1 order: 1 }', X.shape)


def test_a_natural_order_shares_the_bottoms_memory() -> None:
    assert build('type: "Permute" permute_param { order: 0 order: 1 }', X.shape).shares_memory
    assert not build('type: "Permute" permute_param { order: 1 }', X.shape).shares_memory
