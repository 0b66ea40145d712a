"""SSD's SmoothL1Loss, beyond the recorded case."""

from __future__ import annotations

import numpy as np
from single_layer import build, check_contract, check_gradient, normal, refused, run
from tolerances import tolerance

A, B = normal(3, 4, 2), normal(3, 4, 2, seed=1) * 2
TEXT = 'type: "SmoothL1Loss"'


def test_formula() -> None:
    d = np.abs((A - B).numpy())
    want = np.where(d < 1, 0.5 * d * d, d - 0.5).sum() / 3
    (top,) = run(build(TEXT, A.shape, B.shape), A, B)
    np.testing.assert_allclose(float(top), want, rtol=tolerance("same arithmetic").rtol)
    check_contract(TEXT, A, B)
    check_gradient(TEXT, A, B)


def test_a_sigma_that_is_no_number_is_refused() -> None:
    for sigma in ("nan", "inf"):
        with refused(f"smooth_l1_loss_param.sigma must be a number; got {sigma}"):
            build(TEXT + f"smooth_l1_loss_param {{ sigma: {sigma} }}", (3, 4), (3, 4))


def test_bottoms_that_are_refused() -> None:
    with refused("the bottoms must have one shape; got (3, 4) and (3, 5)"):
        build(TEXT, (3, 4), (3, 5))
    with refused("The data and label should have the same first dimension"):
        build(TEXT, (3, 4), (2, 4))
    with refused("SmoothL1Loss Layer takes 2 bottom blob(s) as input.; got 3"):
        build(TEXT, (3, 4), (3, 4), (3, 4))
    assert build(TEXT, (3, 4), (3, 4, 1, 1)).allows_force_backward(1)
