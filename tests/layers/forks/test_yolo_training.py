"""Small nets learn to find squares: the losses of YOLO, and the detection outputs that read the same map."""

from pathlib import Path

import numpy as np
import pytest
import yolo_reference
from numpy.typing import NDArray

import imae.pycaffe as caffe

IMAGES, SIZE, CELLS = 16, 32, 4
BIASES = " ".join(f"biases: {size} biases: {size}" for size in (1, 2, 4, 5, 6))
PIXELS = "biases: 6 biases: 6 biases: 12 biases: 12"
LAYERS = {
    "RegionLoss": f"region_loss_param {{ num_class: 2 num: 5 coord_scale: 1 object_scale: 5 {BIASES} }}",
    "YoloDetectionOutput": f"yolo_detection_output_param {{ num_classes: 2 {BIASES} "
    "confidence_threshold: 0.3 }",
    "Yolov3": f"yolov3_param {{ num_class: 2 num: 2 anchors_scale: 8 {PIXELS} mask: 0 mask: 1 thresh: 0.6 "
    "label_smooth_eps: 0 coord_scale: 1 }",
    "Yolov3DetectionOutput": "yolov3_detection_output_param { num_classes: 2 num_box: 2 mask_group_num: 1 "
    f"anchors_scale: 8 {PIXELS} mask: 0 mask: 1 confidence_threshold: 0.3 }}",
}
NET = """
    name: "squares"
    layer {{ name: "in" type: "Input" top: "data" top: "label" input_param {{
             shape {{ dim: {images} dim: 3 dim: {size} dim: {size} }}
             shape {{ dim: {images} dim: 1 dim: 3 dim: 5 }} }} }}
    {layers}
    layer {{ name: "map" type: "Convolution" bottom: "{last}" top: "map" convolution_param {{
             num_output: {channels} kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "loss" type: "{loss}" bottom: "map" bottom: "label" top: "loss" {of_loss}
             include {{ phase: TRAIN }} }}
    layer {{ name: "silence" type: "Silence" bottom: "label" include {{ phase: TEST }} }}
    layer {{ name: "found" type: "{output}" bottom: "map" top: "found" {of_output}
             include {{ phase: TEST }} }}
"""


def squares() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images of one square each, red or green, on grey noise; the labels (N, 1, 3, 5)."""
    generator = np.random.default_rng(0)
    images = generator.normal(0, 0.1, (IMAGES, 3, SIZE, SIZE)).astype(np.float32)
    labels = np.zeros((IMAGES, 1, 3, 5), np.float32)
    for image, label in zip(images, labels, strict=True):
        kind, side = generator.integers(2), int(generator.choice([6, 12]))
        x, y = generator.integers(0, SIZE - side, 2)
        image[kind, y : y + side, x : x + side] += 1
        label[0, 0] = kind, (x + side / 2) / SIZE, (y + side / 2) / SIZE, side / SIZE, side / SIZE
    return images, labels


def net_text(loss: str, output: str, channels: int) -> str:
    layers, last = "", "data"
    for index, outputs in enumerate((16, 32, 32)):
        layers += f"""
            layer {{ name: "conv{index}" type: "Convolution" bottom: "{last}" top: "conv{index}"
                     convolution_param {{ num_output: {outputs} kernel_size: 3 stride: 2 pad: 1
                                          weight_filler {{ type: "msra" }} }} }}
            layer {{ name: "relu{index}" type: "ReLU6" bottom: "conv{index}" top: "conv{index}" }}"""
        last = f"conv{index}"
    return NET.format(
        images=IMAGES, size=SIZE, layers=layers, last=last, channels=channels,
        loss=loss, output=output, of_loss=LAYERS[loss], of_output=LAYERS[output],
    )  # fmt: skip


@pytest.mark.parametrize("loss, output, channels", [
    ("RegionLoss", "YoloDetectionOutput", 5 * 7),
    ("Yolov3", "Yolov3DetectionOutput", 2 * 7),
])  # fmt: skip
def test_a_net_learns_to_find_squares(
    loss: str, output: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(net_text(loss, output, channels))
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" type: "Adam" base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" random_seed: 1 '
        'snapshot_prefix: "squares" snapshot_after_train: false'
    )
    images, labels = squares()
    solver = caffe.get_solver("solver.prototxt")
    solver.net.blobs["data"].data[...], solver.net.blobs["label"].data[...] = images, labels
    losses = []
    for _ in range(150):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 5
    solver.net.save("squares.caffemodel")
    net = caffe.Net("net.prototxt", caffe.TEST, weights="squares.caffemodel")
    right = 0
    for image, label in zip(images, labels[:, 0, 0].tolist(), strict=True):
        net.blobs["data"].reshape(1, 3, SIZE, SIZE)
        net.blobs["label"].reshape(1, 1, 3, 5)
        net.blobs["data"].data[...] = image
        _, name, score, *corners = net.forward()["found"][0, 0, 0].tolist()
        left, top, right_end, bottom = corners
        box = ((left + right_end) / 2, (top + bottom) / 2, right_end - left, bottom - top)
        truth = (label[1], label[2], label[3], label[4])
        right += name == label[0] + 1 and score > 0.3 and yolo_reference.iou(box, truth) > 0.5
    assert right >= IMAGES * 3 / 4
