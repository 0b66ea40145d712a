"""SSD's layers, and Intel's PriorBoxClustered."""

from __future__ import annotations

import torch
from case_types import Case, Change, within
from single_layer import normal
from ssd_inputs import probabilities, random_inputs
from torch import Tensor

X = normal(2, 3, 4, 6)
IMAGE = normal(2, 3, 40, 60)


def as_floats(classes: int, loc_classes: int = 1) -> tuple[Tensor, ...]:
    return tuple(random_inputs(classes=classes, loc_classes=loc_classes, truths=7, dtype=torch.float32))


LOSS = as_floats(3)
OUTPUT = (LOSS[0], probabilities(LOSS[1], 3), LOSS[2])
DETECTIONS = torch.tensor(
    [[0, 1, 0.9, 0.1, 0.1, 0.5, 0.5], [0, 1, 0.8, 0.12, 0.1, 0.5, 0.6], [0, 2, 0.7, 0.5, 0.5, 0.9, 0.8],
     [1, 1, 0.6, 0.2, 0.1, 0.7, 0.9], [1, 2, 0.5, 0.3, 0.3, 0.6, 0.6]]
).reshape(1, 1, 5, 7)  # fmt: skip
TRUTHS = torch.tensor(
    [[0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0], [0, 1, 0, 0.1, 0.2, 0.5, 0.7, 1], [0, 2, 0, 0.45, 0.5, 0.9, 0.85, 1],
     [1, 1, 0, 0.2, 0.2, 0.9, 0.9, 0], [1, 2, 0, 0.3, 0.35, 0.55, 0.6, 0]]
).reshape(1, 1, 5, 8)  # fmt: skip

CASES = {
    "DetectionEvaluate": Case("detection_evaluate_param { num_classes: 3 }", (DETECTIONS, TRUTHS), ()),
    "DetectionOutput": Case(
        "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.45 } code_type: CENTER_SIZE }",
        OUTPUT,
        (),
    ),
    "MultiBoxLoss": Case(
        """propagate_down: true propagate_down: true propagate_down: false propagate_down: false
        multibox_loss_param { num_classes: 3 code_type: CENTER_SIZE overlap_threshold: 0.3 }""",
        LOSS,
        (0, 1),
    ),
    "Normalize": Case("norm_param { channel_shared: false }", (X,)),
    "Permute": Case("permute_param { order: 0 order: 2 }", (X,)),
    "PriorBox": Case("prior_box_param { min_size: 12 max_size: 20 aspect_ratio: 2 }", (X, IMAGE), ()),
    "PriorBoxClustered": Case("prior_box_param { width: 12.5 height: 7.5 }", (X, IMAGE), ()),
    "SmoothL1Loss": Case("", (X, X * 3), (0, 1)),
}
NORMALIZATION = "loss_param.normalization loss_param.normalize"
SHARED = {
    "MultiBoxLoss": f"multibox_loss_param {NORMALIZATION}",
    "Normalize": "norm_param",
    "PriorBoxClustered": "prior_box_param",
}

SIZES = {
    "img_h": Change([80], {"img_h": 40, "img_w": 60}),
    "img_w": Change([80], {"img_h": 40, "img_w": 60}),
    "step_h": Change([8.0], {"step_h": 7.0, "step_w": 7.0}),
    "step_w": Change([8.0], {"step_h": 7.0, "step_w": 7.0}),
    "img_size": Change([80]),
    "step": Change([7.0]),
    "variance": Change([[0.2], [0.1, 0.2, 0.3, 0.4]]),
}
NOT_ABOUT_BOXES = ("prob", "pad_mode", "pad_value", "interp_mode")
PADDED = {"resize_mode": "FIT_LARGE_SIZE_AND_PAD", "height": 30, "width": 30}
SCALED = {"resize_mode": "FIT_SMALL_SIZE", "height": 9, "width": 9, "height_scale": 3, "width_scale": 3}
RESIZE = {
    **{name: Change([], {"height": 9, "width": 9}, leftover=True) for name in NOT_ABOUT_BOXES},
    "pad_value": Change([[1.0]], {"height": 9, "width": 9}, leftover=True),
    "resize_mode": Change(["FIT_LARGE_SIZE_AND_PAD"], {"height": 9, "width": 9}),
    "height": Change([60], PADDED),
    "width": Change([60], PADDED),
    "height_scale": Change([30], SCALED),
    "width_scale": Change([30], SCALED),
}
# Two passes over two images: files are written once, or with nine_sizes never.
SAVED = {
    "output_directory": ".", "output_name_prefix": "p_", "output_format": "VOC", "label_map_file": "cat_map",
    "name_size_file": "sizes",
}  # fmt: skip
SAVE = {
    "output_directory": Change(["sub"], SAVED),
    "output_name_prefix": Change(["q_"], SAVED),
    "output_format": Change(["COCO", "ILSVRC"], SAVED),
    "label_map_file": Change(["bird_map"], SAVED),
    "name_size_file": Change(["nine_sizes"], SAVED),
    "num_test_image": Change([4], {**SAVED, "name_size_file": "nine_sizes"}),
    **{
        path: change._replace(given={**SAVED, **change.given})
        for path, change in within("resize_param", RESIZE).items()
    },
}
NMS = {"nms_param.nms_threshold": 0.3, "nms_param.top_k": 20, "neg_pos_ratio": 9}
CHANGES = {
    "Normalize normalize_param": Change([], refusal="NormFace's (happynear/caffe-windows), another layer"),
    "norm_param.channel_shared": Change([True]),
    "permute_param.order": Change([[0, 3], [1, 0]]),
    **within("prior_box_param", {
        **SIZES,
        "min_size": Change([[10], [10, 12]], {"max_size": None}),
        "max_size": Change([[19]]),
        "aspect_ratio": Change([[3], [2, 3]]),
        "width": Change([], refusal="width and height are PriorBoxClustered's"),
        "height": Change([], refusal="width and height are PriorBoxClustered's"),
    }),
    **{f"PriorBoxClustered prior_box_param.{name}": Change([], leftover=True)
       for name in ("min_size", "max_size", "aspect_ratio", "flip")},
    "PriorBoxClustered prior_box_param.width": Change([[13]]),
    "PriorBoxClustered prior_box_param.height": Change([[13]]),
    **within("multibox_loss_param", {
        "num_classes": Change([4], refusal="must match number of confidence predictions"),
        "share_location": Change([], refusal="Currently only support negative mining"),
        "background_label_id": Change([1], refusal="Found background label in the dataset."),
        "do_neg_mining": Change([False], refusal="do_neg_mining contradicts mining_type"),
        "code_type": Change(["CORNER", "CORNER_SIZE"]),
        "map_object_to_agnostic": Change([], refusal="map_object_to_agnostic needs num_classes"),
        "neg_pos_ratio": Change([0.25]),
        "neg_overlap": Change([0.1], {"neg_pos_ratio": 9}),
        "nms_param.nms_threshold": Change([0.9], NMS),
        "nms_param.top_k": Change([1], NMS),
        "nms_param.eta": Change([0.5], NMS, leftover=True),
        "mining_type": Change(["NONE", "HARD_EXAMPLE"], {"sample_size": 5}),
        "sample_size": Change([5], {"mining_type": "HARD_EXAMPLE"}),
        "use_prior_for_nms": Change([], NMS),
    }),
    "MultiBoxLoss loss_param.normalization": Change(["FULL", "BATCH_SIZE", "NONE"]),
    **within("detection_output_param", {
        "num_classes": Change([4], refusal="must match number of confidence predictions"),
        "share_location": Change([], refusal="must match number of location predictions"),
        "code_type": Change(["CORNER", "CORNER_SIZE"]),
        "nms_param.nms_threshold": Change([0.2]),
        "nms_param.eta": Change([0.5], {"nms_param.nms_threshold": 0.9}),
        **within("save_output_param", SAVE),
    }),
    **within("detection_evaluate_param", {
        "num_classes": Change([4]),
        "background_label_id": Change([1], refusal="Found background label"),
        "name_size_file": Change(["sizes"], {"overlap_threshold": 0.8}),
        **{
            path: change._replace(given={
                "name_size_file": "sizes", "overlap_threshold": 0.8, **change.given
            })
            for path, change in within("resize_param", RESIZE).items()
        },
    }),
}  # fmt: skip
NO_WINDOW = "no window shows the detections: a warning says so"
ACCEPTED = {
    f"detection_output_param.{field}": NO_WINDOW
    for field in ("visualize", "visualize_threshold", "save_file")
}
