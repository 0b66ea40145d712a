"""Layers of face recognition: SphereFace, caffe-face, caffe-windows (NormFace, AM-Softmax)."""

import torch
from case_types import Case, Change, within
from single_layer import normal

X, FEATURES = normal(2, 3, 4, 6), normal(5, 7)
LABELS = torch.tensor([0.0, 3, 1, 3, 2])
FILLED = '{ type: "uniform" }'

CASES = {
    "MarginInnerProduct": Case(
        f'top: "top" top: "lambda" margin_inner_product_param {{ num_output: 4 weight_filler {FILLED} }}',
        (FEATURES, LABELS),
    ),
    "CenterLoss": Case(f"center_loss_param {{ num_output: 4 center_filler {FILLED} }}", (FEATURES, LABELS)),
    "Flip": Case("", (X,)),
    "ChannelScale": Case("", (X, normal(2, 1, 4, 6, seed=1)), (0, 1)),
    "LabelSpecificAdd": Case("phase: TRAIN", (FEATURES, LABELS)),
    "TripletLoss": Case("", (FEATURES, normal(5, 7, seed=1), normal(5, 7, seed=2)), (0, 1, 2)),
    "Normalize:NormFace": Case("normalize_param {}", (X,)),
    "InnerDistance": Case(
        f"inner_distance_param {{ num_output: 4 weight_filler {FILLED} }}",
        (normal(5, 6, 1),),
    ),
}

SHARED = {"Normalize:NormFace": "normalize_param norm_param"}

# A lambda that the number of passes changes.
ANNEALED = {"type": "DOUBLE", "gamma": 0.5}
BIASED = {"bias_base": 0.1, "bias_gamma": 0.5, "bias_max": 5.0}
GLOBAL = {"global_scale": True}
CHANGES = {
    **within("margin_inner_product_param", {
        "num_output": Change([5]),
        "axis": Change([0], refusal="Number of labels must match number of predictions"),
        "base": Change([2.0], ANNEALED),
        "gamma": Change([1.0], ANNEALED),
        "power": Change([2.0], ANNEALED),
        "iteration": Change([3], ANNEALED),
        "lambda_min": Change([0.9], ANNEALED),
    }),
    "normalize_param.normalize_type": Change(["L1"]),
    "Normalize:NormFace normalize_param.bp_norm": Change([True], {"top": ["y", "norm"]}),
    "Normalize:NormFace norm_param": Change([], refusal="norm_param is for SSD's Normalize"),
    "center_loss_param.num_output": Change([5]),
    "center_loss_param.axis": Change([0], refusal="axis 0 must be the first after the batch"),
    **within("channel_scale_param", {
        "max_global_scale": Change([-2.0], {**GLOBAL, "min_global_scale": -3.0}),
        "min_global_scale": Change([0.5], GLOBAL),
        "init_global_scale": Change([0.5], GLOBAL, leftover=True),
    }),
    **within("label_specific_add_param", {
        "transform_test": Change([True], leftover=True),
        "bias_base": Change([0.5], {"bias_max": 5.0}),
        "bias_gamma": Change([1.0], BIASED),
        "bias_power": Change([2.0], BIASED),
        "bias_min": Change([0.9], BIASED),
        "bias_max": Change([0.2], BIASED),
        "iteration": Change([3], BIASED),
    }),
    "inner_distance_param.axis": Change([2]),
    "inner_distance_param.bias_term": Change([False], leftover=True),
    "inner_distance_param.bias_filler": Change([], leftover=True),
    "inner_distance_param.distance_type": Change(["L1"]),
    "inner_distance_param.update_center_only": Change([True], refusal="update_center_only needs 3 bottoms"),
}  # fmt: skip
