"""Reorg beyond the recorded cases. Its gradient is not recorded: the fork's is broken."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run


def reorg(stride: int, reverse: bool = False) -> str:
    return f'type: "Reorg" reorg_param {{ stride: {stride} reverse: {str(reverse).lower()} }}'


def element_by_element(x: NDArray[np.float32], s: int, reverse: bool) -> NDArray[np.float32]:
    """Darknet's order, from the description: one element of memory after the other."""
    n, c, h, w = x.shape
    depth = c // s**2
    shape = (n, depth, h * s, w * s) if reverse else (n, c * s**2, h // s, w // s)
    small, large = x.reshape(n, c, h, w), x.reshape(n, depth, h * s, w * s)
    top_small, top_large = np.zeros_like(small), np.zeros_like(large)
    for image, k, j, i in np.ndindex(n, c, h, w):
        row, column = divmod(k // depth, s)
        place = image, k % depth, j * s + row, i * s + column
        top_large[place] = small[image, k, j, i]
        top_small[image, k, j, i] = large[place]
    return (top_large if reverse else top_small).reshape(shape)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_order_gradient_and_export(stride: int, reverse: bool) -> None:
    x = normal(2, 18 if stride == 3 else 8, 6, 12)
    want = element_by_element(x.numpy(), stride, reverse)
    got = run(build(reorg(stride, reverse), tuple(x.shape)), x)[0]
    np.testing.assert_array_equal(got.numpy(), want)
    check_contract(reorg(stride, reverse), x)
    check_gradient(reorg(stride, reverse), x[:1])
    check_onnx(reorg(stride, reverse), x)


def test_one_after_the_other_is_the_identity() -> None:
    x = normal(1, 8, 4, 6)
    there = run(build(reorg(2), (1, 8, 4, 6)), x)[0]
    memory = there.reshape(1, 8, 4, 6)  # only the memory is inverted, not the shape
    back = run(build(reorg(2, reverse=True), (1, 8, 4, 6)), memory)[0]
    assert torch.equal(back.reshape(x.shape), x)


def test_what_is_refused() -> None:
    with refused("Reorg Layer needs stride param."):
        build('type: "Reorg" reorg_param { reverse: true }', (1, 4, 4, 4))
    with refused("stride must be at least 1; got 0"):
        build(reorg(0), (1, 4, 4, 4))
    with refused("a multiple of 4, height and width of 2; got (1, 4, 5, 4)"):
        build(reorg(2), (1, 4, 5, 4))
    with refused("the number of channels must be a multiple of 4; got (1, 6, 4, 4)"):
        build(reorg(2, reverse=True), (1, 6, 4, 4))
    with refused("bottom[0] must be (N, C, H, W); got (1, 4)"):
        build(reorg(2), (1, 4))
    with refused("does not allow in-place computation"):
        build(f'{reorg(1)} bottom: "x" top: "x"', (1, 4, 4, 4))
