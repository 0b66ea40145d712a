"""YoloDetectionOutput and Yolov3DetectionOutput against slow references: nothing is recorded."""

import numpy as np
import pytest
import torch
import yolo_reference
from numpy.typing import NDArray
from single_layer import build, check_contract, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.converters.export_onnx import export_net
from imae.converters.graph import Graph
from imae.files.errors import ExportError
from imae.net.net import Net
from imae.prototxt.text import parse_net

BIASES = (1.08, 1.19, 3.42, 2.41, 0.63, 1.38)
PIXELS = (10.0, 14.0, 23.0, 27.0, 37.0, 58.0, 81.0, 52.0)
CLASSES = 4


def list_of(name: str, values: object) -> str:
    return " ".join(f"{name}: {value}" for value in values)  # type: ignore[attr-defined]


def version_2(fields: str = "confidence_threshold: 0.3") -> str:
    return (
        f'type: "YoloDetectionOutput" yolo_detection_output_param {{ num_classes: {CLASSES} num_box: 3 '
        f"{list_of('biases', BIASES)} {fields} }}"
    )


def version_3(fields: str = "confidence_threshold: 0.3", groups: int = 2) -> str:
    mask, scales = ((2, 3, 0, 1), (16, 8)) if groups == 2 else ((2, 3), (16,))
    return (
        f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ num_classes: {CLASSES} num_box: 2 '
        f"mask_group_num: {groups} {list_of('biases', PIXELS)} {list_of('mask', mask)} "
        f"{list_of('anchors_scale', scales)} {fields} }}"
    )


def maps_2(images: int = 2, count: int = 2, scale: float = 1.5) -> tuple[Tensor, ...]:
    sides = (5, 4)[:count]
    return tuple(scale * normal(images, 3 * (5 + CLASSES), side, side, seed=side) for side in sides)


def maps_3(images: int = 2, count: int = 2, scale: float = 1.5) -> tuple[Tensor, ...]:
    sizes = ((3, 4), (6, 8))[:count]
    return tuple(scale * normal(images, 2 * (5 + CLASSES), *size, seed=size[0]) for size in sizes)


def arrays(maps: tuple[Tensor, ...]) -> list[NDArray[np.float64]]:
    return [x.double().numpy() for x in maps]


def assert_rows(got: Tensor, want: NDArray[np.float64]) -> None:
    rtol, atol, _ = tolerance("same arithmetic")
    assert got.shape == want.shape
    np.testing.assert_allclose(got.double().numpy(), want, rtol=rtol, atol=atol)


SETTINGS = [(0.3, 0.45), (0.01, 0.45), (0.3, 0.0), (0.3, 1.5), (0.999, 0.45)]


@pytest.mark.parametrize("confidence, threshold", SETTINGS)
@pytest.mark.parametrize("images, count", [(1, 1), (2, 2)])
def test_version_2(confidence: float, threshold: float, images: int, count: int) -> None:
    maps = maps_2(images, count)
    layer = build(
        version_2(f"confidence_threshold: {confidence} nms_threshold: {threshold}"),
        *(tuple(x.shape) for x in maps),
    )
    want = yolo_reference.detections_v2(arrays(maps), BIASES, CLASSES, confidence, threshold)
    assert_rows(run(layer, *maps)[0], want)


@pytest.mark.parametrize("confidence, threshold", SETTINGS)
@pytest.mark.parametrize("images, count", [(1, 1), (2, 2)])
def test_version_3(confidence: float, threshold: float, images: int, count: int) -> None:
    maps = maps_3(images, count)
    layer = build(
        version_3(f"confidence_threshold: {confidence} nms_threshold: {threshold}", count),
        *(tuple(x.shape) for x in maps),
    )
    masks, scales = ((2, 3), (0, 1))[:count], (16, 8)[:count]
    want = yolo_reference.detections_v3(arrays(maps), PIXELS, masks, scales, CLASSES, confidence, threshold)
    assert_rows(run(layer, *maps)[0], want)


@pytest.mark.parametrize("text, maps", [(version_2(), maps_2()), (version_3(), maps_3())])
def test_the_references_remove_boxes_and_keep_some(text: str, maps: tuple[Tensor, ...]) -> None:
    shapes = [tuple(x.shape) for x in maps]
    every = run(build(text.replace("_threshold: 0.3", "_threshold: 0.3 nms_threshold: 2"), *shapes), *maps)[0]
    kept = run(build(text, *shapes), *maps)[0]
    assert 5 < kept.shape[2] < every.shape[2] - 5
    assert set(kept[0, 0, :, 1].tolist()) <= {1.0, 2.0, 3.0, 4.0} and len(set(kept[0, 0, :, 1].tolist())) > 1
    assert torch.equal(kept[0, 0, :, 2], kept[0, 0, :, 2].sort(descending=True).values)


@pytest.mark.parametrize("text, maps", [(version_2(), maps_2()), (version_3(), maps_3())])
def test_without_a_box_there_is_a_row_for_each_image(text: str, maps: tuple[Tensor, ...]) -> None:
    layer = build(text, *(tuple(x.shape) for x in maps))
    low = [x - 20 for x in maps]
    rows = run(layer, *low)[0]
    assert rows.tolist() == [[[[0] + [-1] * 6, [1] + [-1] * 6]]]


@pytest.mark.parametrize("text, maps", [(version_2(), maps_2(1)), (version_3(), maps_3(1))])
def test_contract(text: str, maps: tuple[Tensor, ...]) -> None:
    layer = build(text, *(tuple(x.shape) for x in maps))
    assert layer.checked_top_shapes([tuple(x.shape) for x in maps]) == [(1, 1, 1, 7)]
    low = [x - 20 for x in maps]  # the one row that the announced shape has
    check_contract(text, *low)
    double = run(layer, *(x.double() for x in maps))[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), run(layer, *maps)[0])
    leaf = maps[0].clone().requires_grad_()
    assert not run(layer, leaf, *maps[1:])[0].requires_grad
    assert not layer.allows_force_backward(0) and not layer.capturable


@pytest.mark.parametrize("text, maps", [
    (version_2(), maps_2()),
    (version_2("confidence_threshold: 0.05"), maps_2(1, 1)),
    (version_3(), maps_3()),
    (version_3("confidence_threshold: 0.02", 1), maps_3(1, 1)),
])  # fmt: skip
def test_onnx_runtime_finds_the_same_boxes(text: str, maps: tuple[Tensor, ...]) -> None:
    check_onnx(text, *maps)
    check_onnx(text, *(x - 20 for x in maps), opsets=(13, 22))


def test_a_threshold_for_scores_counts_as_in_the_fork() -> None:
    """A score that equals the threshold: version 2 keeps it, version 3 does not; ONNX Runtime likewise."""
    # Logistic function of 0 is 0.5 in any precision; the other class has a softmax of 0.
    two = torch.zeros(1, 3 * 9, 2, 2)
    two[:, 6::9] = two[:, 7::9] = two[:, 8::9] = -200
    text = version_2("confidence_threshold: 0.5 nms_threshold: 0.9")
    assert run(build(text, (1, 27, 2, 2)), two)[0][0, 0, 0, 2] == 0.5
    check_onnx(text, two, opsets=(17,))
    three = torch.zeros(1, 2 * 9, 2, 2)
    assert run(build(version_3("confidence_threshold: 0.25", 1), (1, 18, 2, 2)), three)[0][0, 0, 0, 1] == -1
    assert run(build(version_3("confidence_threshold: 0.24", 1), (1, 18, 2, 2)), three)[0][0, 0, 0, 1] == 1
    check_onnx(version_3("confidence_threshold: 0.25", 1), three, opsets=(17,))


def test_a_net_with_detections_is_exported() -> None:
    net = Net(parse_net(f"""
        name: "net" layer {{ name: "x" type: "Input" top: "x"
                             input_param {{ shape {{ dim: 1 dim: 18 dim: 3 dim: 4 }} }} }}
        layer {{ name: "out" bottom: "x" top: "out" {version_3(groups=1)} }}
    """))  # fmt: skip
    exported = export_net(net)
    assert exported.batch_sizes == (1, 3)
    rtol, _, _ = tolerance("onnx")
    assert exported.difference < rtol * exported.largest
    (shape,) = [output.type.tensor_type.shape.dim for output in exported.model.graph.output]
    assert [axis.dim_param or axis.dim_value for axis in shape] == [1, 1, "size of out", 7]


@pytest.mark.parametrize("threshold", [0, 1])
def test_what_no_operator_can_do_is_not_exported(threshold: int) -> None:
    layer = build(version_3(f"nms_threshold: {threshold}", 1), (1, 18, 3, 4))
    with pytest.raises(ExportError, match="nms_threshold must be above 0 and below 1 in ONNX; got"):
        layer.to_onnx(Graph(17, {"bottom0": (1, 18, 3, 4)}), ["bottom0"], ["top0"])


def test_what_version_2_refuses() -> None:
    shape = (1, 27, 3, 3)
    with refused("Must specify num_classes"):
        build('type: "YoloDetectionOutput"', shape)
    with refused("num_box must be at least 1; got 0"):
        build('type: "YoloDetectionOutput" yolo_detection_output_param { num_classes: 1 num_box: 0 }', shape)
    many = f"num_classes: 1 num_box: {2**31 - 1}"
    with refused(f"{2 * (2**31 - 1)} numbers or more; got 0"):
        build(f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {many} }}', shape)
    biases = " ".join(["biases: 1"] * 10)
    with refused("bottom[0] must be (N, 30, H, W)"):
        build(f'type: "YoloDetectionOutput" yolo_detection_output_param {{ num_classes: 1 {biases} }}', ())
    with refused("biases must have a width and a height for each anchor, 10 numbers or more; got 0"):
        build('type: "YoloDetectionOutput" yolo_detection_output_param { num_classes: 1 }', shape)
    with refused("bottom[0] must be (N, 27, H, W), for 3 boxes of 4 coordinates, an object and 4 classes"):
        build(version_2(), (1, 26, 3, 3))
    with refused("bottom[0] must be as high as it is wide; got (1, 27, 3, 4)"):
        build(version_2(), (1, 27, 3, 4))
    with refused("both bottoms must have as many images; got 1 and 2"):
        build(version_2(), shape, (2, 27, 3, 3))
    with refused("takes at most 2 bottom blob(s) as input"):
        build(version_2(), shape, shape, shape)


def test_version_2_notes_what_it_does_not_use() -> None:
    layer = build(version_2('side: 13 coords: 5 label_map_file: "labelmap.prototxt"'), (1, 27, 3, 3))
    names = [f"yolo_detection_output_param.{name}" for name in ("label_map_file", "side", "coords")]
    assert layer.leftovers == names
    assert build(version_2("side: 3 coords: 4"), (1, 27, 3, 3)).leftovers == []


def test_what_version_3_refuses() -> None:
    def three(fields: str) -> str:
        return f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {fields} }}'

    shape = (1, 18, 3, 3)
    with refused("Must specify num_classes"):
        build(three("num_box: 3"), shape)
    with refused("mask_group_num must be at least 1; got 0"):
        build(three("num_classes: 1 mask_group_num: 0"), shape)
    with refused("gaussian_box is not supported"):
        build(three("num_classes: 1 gaussian_box: true"), shape)
    with refused("mask_group_num must be the number of bottoms, 1; got 2"):
        build(version_3(), shape)
    with refused("anchors_scale must be given for each bottom, 1; got 0"):
        build(three("num_classes: 4 mask_group_num: 1"), shape)
    with refused("mask must have num_box, 3, numbers for each of 1 bottoms; got 2"):
        build(three("num_classes: 4 mask_group_num: 1 anchors_scale: 8 mask: 0 mask: 1"), shape)
    with refused("biases must have a width and a height for each anchor, 8 numbers or more; got 2"):
        fields = "num_classes: 4 num_box: 2 mask_group_num: 1 anchors_scale: 8 mask: 0 mask: 3"
        build(three(f"{fields} biases: 1 biases: 2"), shape)
    with refused("bottom[1] must be (N, 18, H, W)"):
        build(version_3(), shape, (1, 19, 3, 3))
    with refused("all bottoms must have as many images; got 1 and 2"):
        build(version_3(), shape, (2, 18, 3, 3))


def test_no_gradient_goes_through_the_detections() -> None:
    layer = build(version_2(), (1, 27, 3, 3))
    with pytest.raises(RuntimeError, match="does not require grad"):
        diffs(layer, normal(1, 27, 3, 3))
