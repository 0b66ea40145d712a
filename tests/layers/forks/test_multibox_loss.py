"""MultiBoxLoss against loops over single boxes (support/ssd_reference.py), beyond the recorded cases.

What is not recorded: all but SMOOTH_L1, MAX_NEGATIVE, CENTER_SIZE with share_location.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import ssd_reference
import torch
from single_layer import build, check_contract, check_gradient, refused, run
from ssd_inputs import Inputs, random_inputs
from tolerances import tolerance
from torch import Tensor

from imae.layers.layer import Layer
from imae.prototxt.caffe_pb2 import MultiBoxLossParameter

ENUMS = ("loc_loss_type", "conf_loss_type", "match_type", "code_type", "mining_type")
DEFAULTS = {
    field.name: field.default_value
    for field in MultiBoxLossParameter.DESCRIPTOR.fields
    if field.message_type is None and field.enum_type is None and field.name != "do_neg_mining"
}
DEFAULTS |= {
    "num_classes": 3, "loc_loss_type": "SMOOTH_L1", "conf_loss_type": "SOFTMAX",
    "match_type": "PER_PREDICTION", "code_type": "CENTER_SIZE", "mining_type": "MAX_NEGATIVE",
    "normalization": "VALID",
}  # fmt: skip
NO_MINING: dict[str, Any] = {"mining_type": "NONE"}
CLASSES_APART = NO_MINING | {"share_location": False}
NMS = {"nms_threshold": 0.3, "nms_top_k": 20}


def text(options: dict[str, Any]) -> str:
    words = []
    for name, value in options.items():
        if name not in ("normalization", "nms_threshold", "nms_top_k"):
            words.append(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")
    if options.get("nms_threshold"):
        top_k = options["nms_top_k"]
        words.append(f"nms_param {{ nms_threshold: {options['nms_threshold']} top_k: {top_k} }}")
    fields = " ".join(words)
    loss = f"loss_param {{ normalization: {options['normalization']} }}"
    return f'type: "MultiBoxLoss" {loss} multibox_loss_param {{ {fields} }}'


def inputs_for(options: dict[str, Any], seed: int = 0) -> Inputs:
    classes = options["num_classes"]
    inputs = random_inputs(3, 24, classes, 1 if options["share_location"] else classes, 7, seed=seed)
    truth = inputs.truth
    if options["background_label_id"]:  # the background is 2, so labels are 0 and 1
        truth = truth.clone()
        truth[..., 1] -= 1
    return inputs._replace(truth=truth)


def gradients(layer: Layer, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Those of loc and conf."""
    loc, conf = (bottom.clone().requires_grad_() for bottom in inputs[:2])
    loc_diff, conf_diff = torch.autograd.grad(run(layer, loc, conf, *inputs[2:])[0], [loc, conf])
    return loc_diff, conf_diff


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loc_loss_type": "L2", "loc_weight": 2.5},
        {"conf_loss_type": "LOGISTIC"},
        {"conf_loss_type": "LOGISTIC", "background_label_id": 2},
        {"background_label_id": 2},
        {"match_type": "BIPARTITE"},
        {"overlap_threshold": 0.25, "neg_overlap": 0.2, "neg_pos_ratio": 1.5},
        {"code_type": "CORNER"},
        {"code_type": "CORNER_SIZE"},
        {"encode_variance_in_target": True},
        {"encode_variance_in_target": True, "code_type": "CORNER", "use_prior_for_matching": False},
        {"use_prior_for_matching": False},
        {"use_prior_for_matching": False, "bp_inside": True, "overlap_threshold": 0.1},
        {"bp_inside": True, "overlap_threshold": 0.1},
        {"use_difficult_gt": False},
        {"ignore_cross_boundary_bbox": True, "overlap_threshold": 0.1},
        {"mining_type": "HARD_EXAMPLE", "sample_size": 6, "overlap_threshold": 0.2},
        {"mining_type": "HARD_EXAMPLE", "sample_size": 6, "conf_loss_type": "LOGISTIC", **NMS},
        {"mining_type": "HARD_EXAMPLE", "sample_size": 64, "ignore_cross_boundary_bbox": True},
        {"neg_pos_ratio": 9.0, **NMS},
        {"neg_pos_ratio": 9.0, "use_prior_for_nms": True, **NMS},
        {"neg_pos_ratio": 9.0, "nms_threshold": 0.3, "nms_top_k": 0},
        {"normalization": "FULL"},
        {"normalization": "BATCH_SIZE"},
        {"normalization": "NONE"},
        NO_MINING,
        NO_MINING | {"conf_loss_type": "LOGISTIC"},
        NO_MINING | {"num_classes": 2, "map_object_to_agnostic": True},
        NO_MINING | {"num_classes": 2, "map_object_to_agnostic": True, "conf_loss_type": "LOGISTIC"},
        CLASSES_APART,
        CLASSES_APART | {"conf_loss_type": "LOGISTIC", "overlap_threshold": 0.1},
        CLASSES_APART | {"use_prior_for_matching": False, "overlap_threshold": 0.1},
        CLASSES_APART | {"use_prior_for_matching": False, "ignore_cross_boundary_bbox": True},
        CLASSES_APART | {"background_label_id": 2, "bp_inside": True, "loc_loss_type": "L2"},
    ],
    ids=str,
)
def test_loss_is_that_of_the_loops(changes: dict[str, Any], seed: int) -> None:
    options = DEFAULTS | changes
    inputs = inputs_for(options, seed)
    layer = build(text(options), *(tuple(bottom.shape) for bottom in inputs)).double()
    (loss,) = run(layer, *inputs)
    want = ssd_reference.multibox_loss(options, *(bottom.numpy() for bottom in inputs))
    rtol, _, _ = tolerance("formula", "float64")
    assert want != 0
    np.testing.assert_allclose(float(loss), want, rtol=10 * rtol)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conf_loss_type": "LOGISTIC", "loc_loss_type": "L2"},
        {"bp_inside": True, "overlap_threshold": 0.1},
        {"encode_variance_in_target": True, "mining_type": "HARD_EXAMPLE", "sample_size": 9},
        NO_MINING,
        CLASSES_APART | {"conf_loss_type": "LOGISTIC"},
    ],
    ids=str,
)
def test_gradient_is_the_derivative(changes: dict[str, Any]) -> None:
    options = DEFAULTS | changes
    inputs = random_inputs(2, 10, 3, 1 if options["share_location"] else 3)
    check_gradient(text(options), *inputs, constant=(2, 3))


def test_contract() -> None:
    check_contract(text(DEFAULTS), *random_inputs(dtype=torch.float32))


def test_a_part_without_a_gradient_is_left_out_of_the_loss() -> None:
    inputs = random_inputs()
    shapes = [tuple(bottom.shape) for bottom in inputs]
    flags = "propagate_down: {} propagate_down: {} propagate_down: false propagate_down: false "
    whole, loc, conf, none = (
        float(run(build(flags.format(*words) + text(DEFAULTS), *shapes).double(), *inputs)[0])
        for words in (("true", "true"), ("true", "false"), ("false", "true"), ("false", "false"))
    )
    assert none == 0 and loc > 0 and conf > 0
    np.testing.assert_allclose(loc + conf, whole, rtol=tolerance("formula", "float64").rtol)


def test_a_batch_without_truths() -> None:
    """With mining nothing counts; without it all priors are background."""
    inputs = random_inputs()
    empty = inputs._replace(truth=torch.full_like(inputs.truth, -1))
    shapes = [tuple(bottom.shape) for bottom in inputs]
    layer = build(text(DEFAULTS), *shapes).double()
    assert float(run(layer, *empty)[0]) == 0
    loc, conf = gradients(layer, empty)
    assert not loc.any() and not conf.any()
    layer = build(text(DEFAULTS | NO_MINING), *shapes).double()
    want = ssd_reference.multibox_loss(DEFAULTS | NO_MINING, *(bottom.numpy() for bottom in empty))
    np.testing.assert_allclose(float(run(layer, *empty)[0]), want, rtol=tolerance("gradient", "float64").rtol)


@pytest.mark.parametrize("changes", [{}, NO_MINING, {"conf_loss_type": "LOGISTIC"}], ids=str)
def test_nothing_to_learn_from(changes: dict[str, Any]) -> None:
    """No image, no prior, no row of truths."""
    loc, conf, prior, truth = random_inputs()
    for bottoms in (
        (loc[:0], conf[:0], prior, truth),
        (loc[:, :0], conf[:, :0], prior[..., :0], truth),
        (loc, conf, prior, truth[:, :, :0]),
    ):
        layer = build(text(DEFAULTS | changes), *(tuple(bottom.shape) for bottom in bottoms)).double()
        (loss,) = run(layer, *bottoms)
        assert (loss > 0) == bool(changes == NO_MINING and len(bottoms[0]) and bottoms[0].numel())


def test_each_pass_makes_its_own_matches() -> None:
    first, second = random_inputs(seed=1), random_inputs(seed=2)
    layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in first)).double()
    want = run(layer, *second)[0]
    run(layer, *first)
    assert torch.equal(run(layer, *second)[0], want)


def test_equal_losses_and_overlaps_choose_the_lower_prior() -> None:
    box = [0.2, 0.2, 0.6, 0.6]
    prior = torch.tensor([box] * 4 + [[0.7, 0.7, 0.9, 0.9]] * 4 + [[0.1, 0.1, 0.2, 0.2]] * 8).double()
    prior = prior.reshape(2, 8, 4)
    truth = torch.tensor([0, 1, 0, *box, 0]).double().reshape(1, 1, 1, 8)
    inputs = (torch.ones(1, 32).double(), torch.zeros(1, 24).double(), prior.reshape(1, 2, 32), truth)
    options = DEFAULTS | {"match_type": "BIPARTITE", "neg_pos_ratio": 2.0}
    layer = build(text(options), *(tuple(bottom.shape) for bottom in inputs)).double()
    loc, conf = gradients(layer, Inputs(*inputs))
    assert loc.reshape(8, 4).any(1).tolist() == [True] + [False] * 7
    assert conf.reshape(8, 3).any(1).tolist() == [True, False, False, False, True, True, False, False]


def test_a_gradient_for_priors_or_truths_is_refused_in_the_backward_pass() -> None:
    inputs = random_inputs()
    for index, message in ((2, "cannot backpropagate to prior inputs"), (3, "to label inputs")):
        leaves = [bottom.clone().requires_grad_(place in (0, index)) for place, bottom in enumerate(inputs)]
        layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in inputs)).double()
        (loss,) = run(layer, *leaves)
        with refused(message):
            loss.backward()


def test_do_neg_mining_is_deprecated(caplog: pytest.LogCaptureFixture) -> None:
    shapes = [tuple(bottom.shape) for bottom in random_inputs()]
    build(text(DEFAULTS | {"do_neg_mining": True}), *shapes)
    assert "do_neg_mining is deprecated, use mining_type instead." in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    with refused("do_neg_mining contradicts mining_type"):
        build(text(DEFAULTS | {"do_neg_mining": False}), *shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "Must provide num_classes"),
        ({"share_location": False}, "Currently only support negative mining if share_location is true."),
        ({"background_label_id": 3}, "background_label_id should be within [0, num_classes) for Softmax."),
        (
            {"background_label_id": 3, "conf_loss_type": "LOGISTIC"},
            "background_label_id must be below num_classes; got 3",
        ),
        ({"map_object_to_agnostic": True}, "map_object_to_agnostic needs num_classes: 2"),
        ({"mining_type": "HARD_EXAMPLE", "sample_size": 0}, "sample_size must be larger than 0; got 0"),
        ({"num_classes": 4}, "Number of priors must match number of confidence predictions."),
        (CLASSES_APART, "Number of priors must match number of location predictions."),
    ],
)
def test_what_is_refused_at_the_start(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        build(text(DEFAULTS | changes), *(tuple(bottom.shape) for bottom in random_inputs()))


def test_truths_of_another_shape() -> None:
    loc, conf, prior, _ = (tuple(bottom.shape) for bottom in random_inputs())
    with refused("bottom[3] must be truths (1, 1, G, 8); got (1, 1, 5, 7)"):
        build(text(DEFAULTS), loc, conf, prior, (1, 1, 5, 7))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 0, 0.1, 0.1, 0.5, 0.5, 0], "Found background label in the dataset.; it is 0"),
        ([0, 3, 0, 0.1, 0.1, 0.5, 0.5, 0], "label 3 is out of range: there are 3 classes"),
        ([0, -2, 0, 0.1, 0.1, 0.5, 0.5, 0], "label -2 is out of range"),
    ],
)
def test_a_wrong_label(row: list[float], message: str) -> None:
    inputs = random_inputs()
    layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in inputs)).double()
    inputs.truth[0, 0, 0] = torch.tensor(row)
    with refused(message):
        run(layer, *inputs)


def test_priors_that_their_code_cannot_use() -> None:
    inputs = random_inputs()
    inputs.prior[0, 1, :] = 0
    layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in inputs)).double()
    with refused("a prior that is matched has a variance that is not larger than 0"):
        run(layer, *inputs)
    inputs.prior[0, 0, 2] = inputs.prior[0, 0, 0]
    options = DEFAULTS | {"use_prior_for_matching": False}
    layer = build(text(options), *(tuple(bottom.shape) for bottom in inputs)).double()
    with refused("a prior has no width or no height"):
        run(layer, *inputs)


def test_ssd300_runs_in_a_moment() -> None:
    """8,732 priors, 21 classes, a batch of 32: no loop over priors would end."""
    inputs = random_inputs(32, 8732, 21, truths=320, dtype=torch.float32)
    layer = build(text(DEFAULTS | {"num_classes": 21}), *(tuple(bottom.shape) for bottom in inputs))
    loc, conf = gradients(layer, Inputs(*inputs))
    assert loc.isfinite().all() and conf.isfinite().all() and loc.any() and conf.any()
