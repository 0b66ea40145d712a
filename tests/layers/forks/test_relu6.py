"""ReLU6 beyond the recorded case: the borders, negative_slope, in-place."""

from math import inf, nan

import torch
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, overwritten, run

PLAIN, LEAKY = 'type: "ReLU6"', 'type: "ReLU6" relu6_param { negative_slope: 0.25 }'
X = normal(2, 3, 4, 5) * 6
BORDERS = torch.tensor([-inf, -4.0, 0.0, 3.0, 6.0, 7.0, inf, nan])


def test_contract_gradient_and_export() -> None:
    for text in (PLAIN, LEAKY):
        check_contract(text, X)
        check_gradient(text, X)
        check_onnx(text, X)


def test_values_and_gradients_at_the_borders() -> None:
    plain, leaky = build(PLAIN, (8,)), build(LEAKY, (8,))
    expect = {
        plain: ([0, 0, 0, 3, 6, 6, 6, nan], [0, 0, 0, 1, 0, 0, 0]),
        leaky: ([-inf, -1, 0, 3, 6, 6, 6, nan], [0.25, 0.25, 0.25, 1, 0, 0, 0]),
    }
    for layer, (tops, gradients) in expect.items():
        torch.testing.assert_close(run(layer, BORDERS)[0], torch.tensor(tops), equal_nan=True)
        diff = diffs(layer, BORDERS)[0]
        assert diff is not None
        torch.testing.assert_close(diff[:-1], torch.tensor(gradients, dtype=torch.float32))


def test_in_place_the_backward_pass_reads_what_a_later_layer_has_written() -> None:
    # Caffe's memory holds 0.5 y - 0.25, of which the fork asks whether it is between 0 and 6.
    x, diff = torch.tensor([-1.0, 0.25, 2.0, 5.0, 9.0]), torch.ones(5)
    for stepwise in (False, True):
        got, memory = overwritten(PLAIN, True, stepwise, x, diff)
        torch.testing.assert_close(memory, torch.tensor([-0.25, -0.125, 0.75, 2.25, 2.75]))
        torch.testing.assert_close(got, ((memory > 0) & (memory < 6)).float())
