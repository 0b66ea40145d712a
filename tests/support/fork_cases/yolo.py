"""Reorg, and YOLO's detections, losses and evaluation."""

import torch
from case_types import Case, Change, within
from single_layer import normal

TWO_BOXES = normal(2, 2 * 7, 3, 3)
BIASES = "biases: 1 biases: 2 biases: 3 biases: 1.5"
FIVE_BOXES = normal(2, 5 * 7, 4, 4)
TEN_BIASES = " ".join(f"biases: {bias}" for bias in (1, 2, 3, 1.5, 2, 2, 4, 2, 0.5, 0.6))
OF_IMAGES = torch.tensor([[0, 0.3, 0.4, 0.5, 0.3], [1, 0.6, 0.7, 0.4, 0.6]]).expand(2, 1, 2, 5)
OF_A_BATCH = torch.tensor([
    [0, 1, 0, 0.1, 0.2, 0.6, 0.4, 0], [1, 2, 0, 0.5, 0.4, 0.8, 0.9, 0], [1, 1, 0, 0.1, 0.4, 0.3, 0.9, 0]
]).view(1, 1, 3, 8)  # fmt: skip
MAP = Change([3], refusal="must be (N, ")

CASES = {
    "EvalDetection": Case(
        f"eval_detection_param {{ num_class: 2 side: 4 num_object: 5 nms: 0.6 {TEN_BIASES} }}",
        (FIVE_BOXES, OF_A_BATCH),
        (),
    ),
    "Reorg": Case("reorg_param { stride: 2 }", (normal(2, 4, 4, 4),)),
    "RegionLoss": Case(f"region_loss_param {{ num_class: 2 {TEN_BIASES} }}", (FIVE_BOXES, OF_IMAGES)),
    "RegionLoss:Intel": Case(
        f"region_loss_param {{ num_class: 2 side: 4 {TEN_BIASES} }}", (FIVE_BOXES, OF_A_BATCH)
    ),
    "YoloDetectionOutput": Case(
        f"yolo_detection_output_param {{ num_classes: 2 num_box: 2 {BIASES} }}", (TWO_BOXES,), ()
    ),
    "Yolov3": Case(
        "yolov3_param { num_class: 2 num: 2 mask: 0 mask: 1 anchors_scale: 1 "
        "biases: 1 biases: 2 biases: 3 biases: 1.5 biases: 2 biases: 2.5 biases: 1.5 biases: 2 }",
        (normal(2, 2 * 7, 4, 4), OF_IMAGES),
    ),
    "Yolov3DetectionOutput": Case(
        "yolov3_detection_output_param { num_classes: 2 num_box: 2 mask_group_num: 1 mask: 0 mask: 1 "
        f"anchors_scale: 1 {BIASES} }}",
        (TWO_BOXES,),
        (),
    ),
}
CHANGES = {
    **within("eval_detection_param", {
        "side": Change([5], refusal="side must be height and width of bottom[0]"),
        "num_class": MAP,
        "num_object": Change([2], refusal="num_object must be 5"),
        "threshold": Change([0.01]),
        "sqrt": Change([], leftover=True),
        "constriant": Change([], leftover=True),
        "nms": Change([-1, 0.1]),
        "biases": Change([[1.1, 2.1, 3, 2, 2, 2.5, 4, 3, 0.6, 0.7]]),
    }),
    "reorg_param.stride": Change([1]),
    **within("region_loss_param", {
        "num_class": MAP,
        "num": MAP._replace(values=[4]),
        "coords": Change([5], refusal="coords must be 4"),
        "bias_match": Change([0]),
        "rescore": Change([0]),
        "thresh": Change([0.001]),
        "biases": Change([[1.1, 2.1, 3, 2, 2, 2.5, 4, 3, 0.6, 0.7]]),
        "softmax_tree": Change([], refusal="softmax_tree is not supported"),
        "class_map": Change([], refusal="class_map is not supported"),
        **dict.fromkeys(("softmax", "jitter", "absolute", "random"), Change([], leftover=True)),
    }),
    "RegionLoss:Intel region_loss_param.side": Change([5], refusal="side must be that of bottom[0]"),
    **within("yolov3_param", {
        "num_class": MAP,
        "num": Change([1], refusal="must be (N, "),
        "object_scale": Change([2], {"use_logic_gradient": True}),
        "noobject_scale": Change([], leftover=True),
        "thresh": Change([0.001]),
        "biases": Change([[1.1, 2.2, 3, 1.6, 2, 2.5, 1.5, 2]]),
        "mask": Change([[1, 0]]),
        "iou_thresh": Change([0.95]),
        "iou_normalizer": Change([], {"iou_loss": "GIOU"}),
        "accumulate": Change([], {"iou_loss": "GIOU", "mask": [1, 0]}),  # a mask that assigns boxes twice
        "max_delta": Change([0.01], {"iou_loss": "GIOU"}),
    }),
    **within("yolo_detection_output_param", {
        "num_classes": MAP,
        "num_box": MAP._replace(values=[1]),
        "biases": Change([[1, 2, 3, 1]]),
        "label_map_file": Change([], leftover=True),
    }),
    **within("yolov3_detection_output_param", {
        "num_classes": MAP,
        "num_box": MAP._replace(values=[1]),
        "mask_group_num": Change([2], refusal="must be the number of bottoms"),
        "mask": Change([[1, 0]]),
        "anchors_scale": Change([[2]]),
        "biases": Change([[1, 2, 3, 1]]),
        "gaussian_box": Change([True], refusal="gaussian_box is not supported"),
    }),
}  # fmt: skip
OF_THE_MAP = "the map's own number counts; another one is noted when the layer is set up"
ACCEPTED = {
    **{f"yolo_detection_output_param.{name}": OF_THE_MAP for name in ("side", "coords")},
    "RegionLoss region_loss_param.side": OF_THE_MAP,
    "yolov3_param.side": OF_THE_MAP,
    "RegionLoss:Intel region_loss_param.rescore": "only eric612's reads it; it is noted with Intel's label",
}
