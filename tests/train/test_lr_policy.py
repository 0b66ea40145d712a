"""Learning-rate policies: Caffe's rates bit by bit, the moving of current_step, messages."""

from __future__ import annotations

import json
import math
import re

import pytest
from reference import CASES

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter
from imae.prototxt.text import parse_solver
from imae.train.lr_policy import POLICIES, advance_step, learning_rate

FORKS_POLICIES = {"plateau", "multifixed"}  # not Caffe's: test_fork_solvers.py
RATES = json.loads((CASES / "lr_policies" / "rates.json").read_text(encoding="utf-8"))


def rates(param: SolverParameter, count: int) -> list[float]:
    found, step = [], 0
    for iteration in range(count):
        step = advance_step(param, iteration, step)
        found.append(learning_rate(param, iteration, step))
    return found


def test_every_policy_has_a_case() -> None:
    assert set(RATES) == set(POLICIES) - FORKS_POLICIES


@pytest.mark.parametrize("policy", RATES)
def test_rates_are_caffes_bit_by_bit(policy: str) -> None:
    want = RATES[policy]["rates"]
    assert len(want) >= 20
    assert rates(parse_solver(RATES[policy]["solver"]), len(want)) == want


def test_multistep_moves_one_step_an_iteration() -> None:
    param = parse_solver(
        'lr_policy: "multistep" base_lr: 1 gamma: 0.5 stepvalue: 2 stepvalue: 2 stepvalue: 3'
    )
    assert rates(param, 7) == [1, 1, 0.5, 0.25, 0.125, 0.125, 0.125]


def test_step_depends_on_the_iteration_alone() -> None:
    param = parse_solver('lr_policy: "step" base_lr: 1 gamma: 0.5 stepsize: 10')
    assert [advance_step(param, iteration, 77) for iteration in (0, 9, 10, 39)] == [0, 0, 1, 3]


def test_poly_beyond_max_iter() -> None:
    param = parse_solver('lr_policy: "poly" base_lr: 1 power: 0.5 max_iter: 4')
    assert learning_rate(param, 4, 0) == 0
    assert math.isnan(learning_rate(param, 5, 0))


def test_no_base_lr_is_rate_0() -> None:
    assert rates(parse_solver('lr_policy: "fixed"'), 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'lr_policy: "cosine"',
            "Unknown learning rate policy: cosine (known policies: fixed, step, exp, inv, ",
        ),
        (
            'lr_policy: "multistp"',
            "Unknown learning rate policy: multistp; did you mean 'multistep'? (known ",
        ),
        ("", "Unknown learning rate policy:  (known policies: "),
        ('lr_policy: "step"', "lr_policy 'step': stepsize must be greater than 0, got 0"),
        (
            'lr_policy: "sigmoid" gamma: 1 stepsize: -2',
            "lr_policy 'sigmoid': stepsize must be greater than 0, got -2",
        ),
        (
            'lr_policy: "sigmoid" gamma: -1 stepsize: 2',
            "lr_policy 'sigmoid': gamma must be at least 0, got -1",
        ),
        ('lr_policy: "exp" gamma: -0.5', "lr_policy 'exp': gamma must be at least 0, got -0.5"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(PrototxtError, match=re.escape(message)):
        learning_rate(parse_solver(text), 0, 0)
