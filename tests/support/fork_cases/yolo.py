"""Reorg and YOLO's detections and losses."""

from case_types import Case, Change, within
from single_layer import normal

TWO_BOXES = normal(2, 2 * 7, 3, 3)
BIASES = "biases: 1 biases: 2 biases: 3 biases: 1.5"
MAP = Change([3], refusal="must be (N, ")

CASES = {
    "Reorg": Case("reorg_param { stride: 2 }", (normal(2, 4, 4, 4),)),
    "YoloDetectionOutput": Case(
        f"yolo_detection_output_param {{ num_classes: 2 num_box: 2 {BIASES} }}", (TWO_BOXES,), ()
    ),
    "Yolov3DetectionOutput": Case(
        "yolov3_detection_output_param { num_classes: 2 num_box: 2 mask_group_num: 1 mask: 0 mask: 1 "
        f"anchors_scale: 1 {BIASES} }}",
        (TWO_BOXES,),
        (),
    ),
}
CHANGES = {
    "reorg_param.stride": Change([1]),
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
ACCEPTED = {f"yolo_detection_output_param.{name}": OF_THE_MAP for name in ("side", "coords")}
