"""A small SSD and what it learns from: bright rectangles of two colours on noise, 64 x 64 pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from imae.converters.lmdb_writer import write_lmdb
from imae.prototxt.caffe_pb2 import AnnotatedDatum

SIDE = 64
COLOURS = ((40, 60, 230), (60, 220, 50))  # BGR, of class 1 and class 2
# The feature maps: name, sides of their priors in pixels.
MAPS = (("map8", 16), ("map4", 28))
PRIORS, CLASSES = 3, 3  # ratios 1, 2, 1/2; the background is class 0


def record(rng: np.random.Generator) -> AnnotatedDatum:
    """One or two rectangles that do not overlap."""
    image = rng.integers(0, 140, (SIDE, SIDE, 3), np.uint8)
    made = AnnotatedDatum(type=AnnotatedDatum.BBOX)
    left = rng.permutation(2)
    for half in left[: rng.integers(1, 3)].tolist():
        label = int(rng.integers(2))
        width, height = rng.integers(12, 31, 2).tolist()
        x = half * SIDE // 2 + int(rng.integers(0, SIDE // 2 - width + 1))
        y = int(rng.integers(0, SIDE - height + 1))
        image[y : y + height, x : x + width] = np.clip(
            np.array(COLOURS[label]) + rng.integers(-25, 26, (height, width, 3)), 0, 255
        )
        group = next((g for g in made.annotation_group if g.group_label == label + 1), None)
        group = group or made.annotation_group.add(group_label=label + 1)
        box = group.annotation.add(instance_id=len(group.annotation)).bbox
        box.xmin, box.ymin = x / SIDE, y / SIDE
        box.xmax, box.ymax = (x + width) / SIDE, (y + height) / SIDE
    datum = made.datum
    datum.data, datum.encoded = bytes(cv2.imencode(".png", image)[1]), True
    datum.channels, datum.height, datum.width, datum.label = 3, SIDE, SIDE, -1
    return made


def write_database(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    write_lmdb(path, ((b"%08d" % index, record(rng)) for index in range(count)), count)


def data(phase: str, batch: int, more: str, annotated: str = "") -> str:
    return f"""
layer {{ name: "data" type: "AnnotatedData" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ mean_value: 80 scale: 0.0125 {more}
    resize_param {{ prob: 1 resize_mode: WARP height: {SIDE} width: {SIDE} interp_mode: LINEAR }}
    emit_constraint {{ emit_type: CENTER }} }}
  data_param {{ source: "{phase.lower()}_lmdb" batch_size: {batch} backend: LMDB }}
  annotated_data_param {{ {annotated} label_map_file: "labelmap.prototxt" }} }}"""


def convolution(name: str, bottom: str, outputs: int, stride: int, relu: bool = True) -> str:
    rectified = f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}'
    return f"""
layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
  convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 stride: {stride}
    weight_filler {{ type: "msra" }} }} }}
{rectified if relu else ""}"""


def head(name: str, side: int) -> str:
    """The predictions of a feature map, and its priors."""
    text = ""
    for kind, values in (("loc", 4), ("conf", CLASSES)):
        layer = f"{name}_{kind}"
        text += convolution(layer, name, PRIORS * values, 1, relu=False)
        text += f"""
layer {{ name: "{layer}_perm" type: "Permute" bottom: "{layer}" top: "{layer}_perm"
  permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "{layer}_flat" type: "Flatten" bottom: "{layer}_perm" top: "{layer}_flat" }}"""
    return (
        text
        + f"""
layer {{ name: "{name}_priors" type: "PriorBox" bottom: "{name}" bottom: "data" top: "{name}_priors"
  prior_box_param {{ min_size: {side} aspect_ratio: 2 flip: true clip: false
    variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 }} }}"""
    )


def concat(kind: str, axis: int) -> str:
    bottoms = " ".join(f'bottom: "{name}_{kind}"' for name, _ in MAPS)
    top = kind.removesuffix("_flat")
    return (
        f'layer {{ name: "{top}" type: "Concat" {bottoms} top: "{top}" concat_param {{ axis: {axis} }} }}\n'
    )


SAMPLERS = "batch_sampler { max_sample: 1 max_trials: 1 }" + "".join(
    f"""batch_sampler {{ sampler {{ min_scale: 0.6 min_aspect_ratio: 0.75 max_aspect_ratio: 1.33 }}
        sample_constraint {{ min_jaccard_overlap: {overlap} }} max_sample: 1 max_trials: 10 }}"""
    for overlap in (0.1, 0.3)
)
NET = "".join((
    'name: "small_ssd"',
    data("TRAIN", 16, "mirror: true expand_param { prob: 0.2 max_expand_ratio: 1.3 }", SAMPLERS),
    data("TEST", 16, ""),
    convolution("conv1", "data", 16, 2),
    convolution("conv2", "conv1", 24, 2),
    convolution("map8", "conv2", 32, 2),
    convolution("map4", "map8", 32, 2),
    *(head(*pair) for pair in MAPS),
    "\n", concat("loc_flat", 1), concat("conf_flat", 1), concat("priors", 2),
    f"""
layer {{ name: "loss" type: "MultiBoxLoss" bottom: "loc" bottom: "conf" bottom: "priors" bottom: "label"
  top: "loss" include {{ phase: TRAIN }} propagate_down: true propagate_down: true propagate_down: false
  propagate_down: false loss_param {{ normalization: VALID }}
  multibox_loss_param {{ num_classes: {CLASSES} overlap_threshold: 0.45 code_type: CENTER_SIZE
    mining_type: MAX_NEGATIVE neg_pos_ratio: 3 neg_overlap: 0.45 }} }}
layer {{ name: "conf_rows" type: "Reshape" bottom: "conf" top: "conf_rows" include {{ phase: TEST }}
  reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "conf_rows" top: "prob" include {{ phase: TEST }}
  softmax_param {{ axis: 2 }} }}
layer {{ name: "prob_flat" type: "Flatten" bottom: "prob" top: "prob_flat" include {{ phase: TEST }} }}
layer {{ name: "detections" type: "DetectionOutput" bottom: "loc" bottom: "prob_flat" bottom: "priors"
  top: "detections" include {{ phase: TEST }}
  detection_output_param {{ num_classes: {CLASSES} code_type: CENTER_SIZE keep_top_k: 20
    confidence_threshold: 0.05 nms_param {{ nms_threshold: 0.45 top_k: 50 }} }} }}
layer {{ name: "evaluation" type: "DetectionEvaluate" bottom: "detections" bottom: "label" top: "evaluation"
  include {{ phase: TEST }} detection_evaluate_param {{ num_classes: {CLASSES} overlap_threshold: 0.5 }} }}
""",
))  # fmt: skip
SOLVER = """net: "net.prototxt" type: "Adam" base_lr: 0.002 lr_policy: "step" gamma: 0.2 stepsize: 100
momentum: 0.9 max_iter: 120 display: 40 random_seed: 3 snapshot_prefix: "ssd"
test_iter: 4 test_interval: 60 eval_type: "detection" ap_version: "11point" show_per_class_result: true
"""


def write_all(folder: Path) -> None:
    """The databases, the label map, the net and the solver."""
    write_database(folder / "train_lmdb", 160, 0)
    write_database(folder / "test_lmdb", 64, 1)
    (folder / "labelmap.prototxt").write_text(
        "".join(
            f'item {{ name: "{name}" label: {label} }}' for label, name in enumerate(("none", "red", "green"))
        )
    )
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
