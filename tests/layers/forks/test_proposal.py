"""Proposal of PVANET, mini-caffe and caffe-windows, and in place of py-faster-rcnn's Python layer.

Nothing is recorded: the reference is `expected`, written from the description of the forks' sources, box by
box.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_onnx, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.converters.check_onnx import Check, _compare_rows
from imae.converters.export_onnx import ExportOptions, export_net
from imae.files.errors import ExportError, LayerError
from imae.layers.forks.proposal import Proposal, ProposalLayer, RegionProposals
from imae.layers.registry import _python_layers, class_of, python_layer_class
from imae.layers.utility.python import Python
from imae.net.net import Net
from imae.prototxt import LayerParameter
from imae.prototxt.python_layers import BUILT_IN, no_python_layers
from imae.prototxt.text import parse_net

TOPS = 'top: "rois" top: "scores"'
PROPOSAL = f'type: "Proposal" {TOPS} proposal_param {{ %s }}'
PYTHON = f"""type: "Python" {TOPS} phase: TEST
    python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "%s" }}"""
STRIDE_16 = PYTHON % "'feat_stride': 16"
PVANET = PROPOSAL % (
    "ratio: 0.5 ratio: 1 ratio: 2 scale: 2 scale: 4 feat_stride: 8 min_size: 9 pre_nms_topn: 300 "
    "nms_thresh: 0.6 post_nms_topn: %s"
)
WINDOWS = PROPOSAL % (
    "ratio: 0.667 ratio: 1.5 scale: 20 scale: 45 base_size: 12 feat_stride: 8 min_size: 9 pre_nms_topn: 150 "
    "post_nms_topn: 30 nms_thresh: 0.4 source: CAFFE_WINDOWS"
)
# For scales 8, 16 and 32, as the authors of Faster R-CNN print them from Matlab, which counts from 1.
THEIR_ANCHORS = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
]  # fmt: skip


def bottoms(anchors: int, height: int, width: int, info: Sequence[float], images: int = 1) -> list[Tensor]:
    scores = torch.sigmoid(normal(images, 2 * anchors, height, width))
    return [
        scores,
        0.4 * normal(images, 4 * anchors, height, width, seed=1),
        torch.tensor([info] * images, dtype=torch.float32),
    ]


def expected(layer: RegionProposals, scores: Tensor, deltas: Tensor, info: Tensor) -> list[list[float]]:
    """Rows of image, x1, y1, x2, y2 and score."""
    rows = []
    height, width, scale_y, *rest = info[0].tolist()
    scale_x = rest[0] if rest and isinstance(layer, Proposal) else scale_y
    count = len(layer.anchors)
    for image in range(len(scores)):
        boxes = []
        for y in range(scores.shape[2]):
            for x in range(scores.shape[3]):
                for anchor, (left, top, right, bottom) in enumerate(layer.anchors.tolist()):
                    w, h = right - left + 1, bottom - top + 1
                    dx, dy, dw, dh = deltas[image, 4 * anchor : 4 * anchor + 4, y, x].tolist()
                    centre_x = x * layer.feat_stride + left + w / 2 + dx * w
                    centre_y = y * layer.feat_stride + top + h / 2 + dy * h
                    w, h = w * math.exp(dw), h * math.exp(dh)
                    box = [
                        min(max(centre_x - w / 2, 0), width - 1),
                        min(max(centre_y - h / 2, 0), height - 1),
                        min(max(centre_x + w / 2, 0), width - 1),
                        min(max(centre_y + h / 2, 0), height - 1),
                    ]
                    score = float(scores[image, count + anchor, y, x])
                    small = (
                        box[2] - box[0] + 1 < layer.min_size * scale_x
                        or box[3] - box[1] + 1 < layer.min_size * scale_y
                    )
                    if not small:
                        boxes.append([*box, score])
                    elif not layer.leaves_out:
                        boxes.append([*box, 0.0])
        boxes = sorted(boxes, key=lambda box: -box[4])[: layer.pre_nms_topn]  # stable
        taken: list[list[float]] = []
        for box in boxes:
            if len(taken) < layer.post_nms_topn and all(
                overlap(box, other) <= layer.nms_thresh for other in taken
            ):
                taken.append(box)
        rows += [[float(image), *box] for box in taken]
    return rows


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    both = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return w * h / (both - w * h)


CASES = {
    "mini-caffe": (PVANET % "40", bottoms(6, 7, 9, [56, 72, 1.5])),
    "PVANET": (PVANET % "40 source: PVANET", bottoms(6, 7, 9, [56, 72, 1.5, 2.5, 1, 1])),
    "few boxes": (PVANET % "500", bottoms(6, 2, 3, [16, 24, 1])),
    "caffe-windows": (WINDOWS, bottoms(4, 6, 5, [48, 40, 1.5, 1.25], images=2)),
    "py-faster-rcnn": (STRIDE_16, bottoms(9, 5, 8, [80, 128, 1.6])),
    "py-faster-rcnn, four scales": (
        PYTHON % "'feat_stride': 16 \\n'scales': !!python/tuple [4, 8, 16, 32]",
        bottoms(12, 5, 8, [75, 120, 0.5]),
    ),
    "PVANET's copy of py-faster-rcnn": (
        PYTHON % "{'feat_stride': 16, 'ratios': [0.333, 0.667, 3], 'scales': [2, 5]}",
        bottoms(6, 5, 8, [80, 128, 1.6, 1, 1, 1]),
    ),
    "training": (STRIDE_16.replace("phase: TEST", "phase: TRAIN"), bottoms(9, 12, 8, [192, 128, 1])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_rois_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    text, values = CASES[name]
    layer = build(text, *(tuple(value.shape) for value in values))
    assert isinstance(layer, RegionProposals)
    rois, scores = run(layer, *(value.to(dtype) for value in values))
    want = np.array(expected(layer, *values))
    assert len(want) > 10
    rtol, atol, _ = tolerance("same arithmetic")
    assert rois.dtype == scores.dtype == dtype
    assert scores.shape == ((len(want), 1) if isinstance(layer, ProposalLayer) else (len(want),))
    got = torch.cat([rois, scores.reshape(-1, 1)], 1).numpy()
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * np.abs(want).max())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("caffe-windows", "training")])
def test_onnx_gives_the_same_rois(name: str) -> None:
    text, values = CASES[name]
    check_onnx(text, *values, one_batch=True)


def test_onnx_gives_the_same_rois_of_caffe_windows() -> None:
    check_onnx(WINDOWS, *bottoms(4, 6, 5, [48, 40, 1.5, 1.25]), one_batch=True)
    with pytest.raises(ExportError, match="for one image only"):
        check_onnx(WINDOWS, *bottoms(4, 6, 5, [48, 40, 1.5, 1.25], images=2))


def test_onnx_keeps_the_order_of_equal_scores() -> None:
    scores, deltas, info = bottoms(9, 4, 6, [64, 96, 1])
    check_onnx(STRIDE_16, (scores * 4).round() / 4, deltas, info, one_batch=True)


def test_no_box_is_large_enough() -> None:
    values = bottoms(9, 5, 8, [80, 128, 9])
    layer = build(STRIDE_16, *(tuple(value.shape) for value in values))
    rois, scores = run(layer, *values)
    assert rois.shape == (0, 5)
    assert scores.shape == (0, 1)
    check_onnx(STRIDE_16, *values, one_batch=True)


def anchors(text: str, count: int, numbers: int) -> NDArray[np.floating]:
    layer = build(text, (1, 2 * count, 2, 3), (1, 4 * count, 2, 3), (1, numbers))
    assert isinstance(layer, RegionProposals)
    return layer.anchors


def test_anchors_are_the_authors_own() -> None:
    assert (anchors(STRIDE_16, 9, 3) + 1).tolist() == THEIR_ANCHORS
    by_field = PROPOSAL % "ratio: 0.5 ratio: 1 ratio: 2 scale: 8 scale: 16 scale: 32"
    assert (anchors(by_field, 9, 3) + 1).tolist() == THEIR_ANCHORS


def test_halves_are_rounded_as_each_source_does() -> None:
    """Ratio 1.5 of a base of 8: the width is 7 and the height 10.5, which C rounds to 11."""
    assert anchors(PROPOSAL % "ratio: 1.5 scale: 2 base_size: 8", 1, 3).tolist() == [[-3, -7, 10, 14]]


def test_scales_of_caffe_windows_are_pixels() -> None:
    """Ratio 0.25: twice as wide; an area of 40 x 40."""
    text = PROPOSAL % "ratio: 0.25 scale: 40 source: CAFFE_WINDOWS"
    assert anchors(text, 1, 4).tolist() == [[-32, -2, 47, 17]]


@pytest.mark.parametrize(
    "param_str",
    [
        "'feat_stride': 16 \\n'scales': !!python/tuple [4, 8]",
        "feat_stride: 16\\nscales: [4, 8]",
        "{'feat_stride': 16, 'scales': (4, 8)}",
        "feat_stride: 16\\nscales:\\n- 4\\n- 8",
        "{'scales': (4, 8.0,), 'feat_stride': 1.6e1}",
        '{\\"feat_stride\\": 16, \\"scales\\": [4, 8]}',
    ],
)
def test_forms_of_param_str(param_str: str) -> None:
    layer = build(PYTHON % param_str, (1, 12, 2, 3), (1, 24, 2, 3), (1, 3))
    assert isinstance(layer, ProposalLayer)
    assert layer.feat_stride == 16
    assert len(layer.anchors) == 6


@pytest.mark.parametrize(
    ("param_str", "message"),
    [
        ("", "must give feat_stride"),
        ("'feat_stride': 1.5", "a whole number above 0"),
        ("'feat_stride': [16, 8]", "a whole number above 0"),
        ("'feat_stride': 16 'sizes': [1]", "unknown field 'sizes'"),
        ("'feat_stride': 16 'scales': []", "scales must have values"),
        ("'feat_stride': 16 'scales': [-1]", "all above 0; got [-1.0]"),
        ("'feat_stride': __import__('os')", "must be like \"'feat_stride': 16\""),
        ("'feat_stride': 16 'scales': !!python/object [8]", "cannot read"),
        ("16", "cannot read '16'"),
        ("'feat_stride': 1e999", "a whole number above 0"),
        ("'feat_stride': 16 'scales': [1e999]", "scales must have values, all above 0; got [inf]"),
        ("'feat_stride': 16, RPN_MIN_SIZE: [1, 2]", "RPN_MIN_SIZE must have 1 numbers; got [1.0, 2.0]"),
        ("'feat_stride': 16, RPN_NORMALIZE_STDS: 0.1", "RPN_NORMALIZE_STDS must have 4 numbers; got [0.1]"),
    ],
)
def test_bad_param_str(param_str: str, message: str) -> None:
    with refused(message):
        build(PYTHON % param_str, (1, 18, 2, 3), (1, 36, 2, 3), (1, 3))


CONFIGURED = (
    "'feat_stride': 16, RPN_PRE_NMS_TOP_N: %d, RPN_POST_NMS_TOP_N: %d, RPN_NMS_THRESH: 0.5, "
    "RPN_MIN_SIZE: 15, RPN_NORMALIZE_STDS: [0.1, 0.2, 0.3, 0.4], RPN_NORMALIZE_MEANS: [0.5, 0, -0.5, 0.25]"
)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("counts", [(200, 4), (-1, 0)])
def test_the_configuration_in_param_str(counts: tuple[int, int], phase: str) -> None:
    """What R-FCN's files of configuration set; predictions are normalised in TRAIN alone."""
    scores, deltas, info = bottoms(9, 5, 8, [80, 128, 1.6])
    text = PYTHON.replace("phase: TEST", f"phase: {phase}") % (CONFIGURED % counts)
    layer = build(text, scores.shape, deltas.shape, info.shape)
    assert isinstance(layer, ProposalLayer)
    assert (layer.nms_thresh, layer.min_size) == (0.5, 15)
    rois, _ = run(layer, scores, deltas, info)
    if phase == "TRAIN":
        stds, means = (
            torch.tensor(values).repeat(9).view(1, 36, 1, 1) for values in (layer.stds, layer.means)
        )
        assert means[0, 2] == -0.5
        deltas = deltas * stds + means
    want = np.array(expected(layer, scores, deltas, info))[:, :5]
    assert len(want) == 4 if counts[1] else len(want) > 4
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(rois.numpy(), want, rtol=rtol, atol=atol * want.max())


FIELDS = "ratio: 1 scale: 8 "
FOUR = (1, 2, 2, 3), (1, 4, 2, 3), (1, 4)


def test_four_numbers_of_the_image_are_two_sources(caplog: pytest.LogCaptureFixture) -> None:
    with refused("give proposal_param { source: PVANET } or { source: CAFFE_WINDOWS }"):
        build(PROPOSAL % "ratio: 1 scale: 16", *FOUR)
    for source in ("PVANET", "CAFFE_WINDOWS"):
        build(PROPOSAL % f"ratio: 1 scale: 16 source: {source}", *FOUR)
    assert not caplog.records
    build(PROPOSAL % "ratio: 1 scale: 15", *FOUR)
    assert [record.getMessage() for record in caplog.records] == [
        "layer 'it': taken as PVANET's Proposal, whose scale counts base_size, as scale 15 is below it; for "
        "that of caffe-windows, in pixels, give proposal_param { source: CAFFE_WINDOWS }"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("scale: 8", "proposal_param.ratio must have values, all above 0; got []"),
        ("ratio: 1", "proposal_param.scale must have values, all above 0; got []"),
        ("ratio: 0 scale: 8", "proposal_param.ratio must have values, all above 0; got [0.0]"),
        ("ratio: 1 ratio: nan scale: 8", "ratio must have values, all above 0; got [1.0, nan]"),
        ("ratio: 1 scale: inf", "proposal_param.scale must have values, all above 0; got [inf]"),
        (FIELDS + "feat_stride: 0", "proposal_param.feat_stride must be > 0"),
        (FIELDS + "base_size: 0", "proposal_param.base_size must be > 0"),
        (FIELDS + "post_nms_topn: 0", "proposal_param.post_nms_topn must be > 0"),
        (FIELDS + "nms_thresh: -0.5", "proposal_param.nms_thresh must be 0 or more, got -0.5"),
        (FIELDS + "source: CAFFE_WINDOWS", "reads four numbers of bottom[2]; got 3"),
    ],
)
def test_bad_fields(fields: str, message: str) -> None:
    with refused(message):
        build(PROPOSAL % fields, (1, 2, 2, 3), (1, 4, 2, 3), (1, 3))


SHAPES = [(1, 2, 2, 3), (1, 4, 2, 3), (1, 3)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(1, 3, 2, 3), *SHAPES[1:]],
            "bottom[0] must be (N, 2, H, W), two scores for each of 1 anchors; got",
        ),
        ([(1, 2, 6), *SHAPES[1:]], "bottom[0] must be (N, 2, H, W)"),
        ([SHAPES[0], (1, 4, 3, 2), SHAPES[2]], "bottom[1] must be (1, 4, 2, 3)"),
        ([(2, 2, 2, 3), (2, 4, 2, 3), (2, 3)], "Only single item batches are supported; got 2"),
        ([*SHAPES[:2], (1, 2)], "must have the image's height, width and scale; got the shape (1, 2)"),
        (SHAPES[:2], "takes 3 bottom blob(s)"),
    ],
)
def test_bad_bottoms(shapes: list[tuple[int, ...]], message: str) -> None:
    with refused(message):
        build(PROPOSAL % FIELDS, *shapes)


def test_no_bottom_gets_a_gradient() -> None:
    text, values = CASES["py-faster-rcnn"]
    layer = build(text, *(tuple(value.shape) for value in values))
    assert not any(top.requires_grad for top in run(layer, *(value.requires_grad_() for value in values)))
    assert not any(layer.allows_force_backward(index) for index in range(3))


# -- in place of a user's module -----------------------------------------------------------------------------

NET = """
    layer { name: "in" type: "Input" top: "scores" top: "deltas" top: "im_info" input_param {
            shape { dim: [1, 18, 4, 5] } shape { dim: [1, 36, 4, 5] } shape { dim: [1, 3] } } }
    layer { name: "proposal" type: "Python" bottom: "scores" bottom: "deltas" bottom: "im_info" top: "rois"
            python_param { module: "rpn.proposal_layer" layer: "ProposalLayer"
                           param_str: "'feat_stride': 16" } }
    layer { name: "map" type: "Power" bottom: "scores" top: "map" }
    layer { name: "pool" type: "ROIPooling" bottom: "map" bottom: "rois" top: "pool"
            roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 } }
    layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 3 } }
"""


def test_the_built_in_layer_is_named_and_nothing_is_imported(caplog: pytest.LogCaptureFixture) -> None:
    with no_python_layers():
        net = Net(parse_net(NET))
    assert "rpn" not in sys.modules
    (line,) = [
        record.getMessage() for record in caplog.records if record.name == "imae.layers.forks.proposal"
    ]
    assert line == (
        "layer 'proposal': built in, in place of the module rpn.proposal_layer, which is not imported, nor "
        "is its configuration: RPN_PRE_NMS_TOP_N 6000, RPN_POST_NMS_TOP_N 300, RPN_NMS_THRESH 0.7, "
        "RPN_MIN_SIZE 16, RPN_NORMALIZE_STDS [1.0, 1.0, 1.0, 1.0], RPN_NORMALIZE_MEANS [0.0, 0.0, 0.0, 0.0]; "
        "param_str may give others, by these names"
    )
    scores, deltas, info = bottoms(9, 4, 5, [64, 80, 1])
    tops = net({"scores": scores, "deltas": deltas, "im_info": info}, keep=("rois", "ip"))
    assert tops["ip"].shape == (len(tops["rois"]), 3)
    assert len(tops["rois"]) > 1
    # No box is left in a tiny image: the rest of the net runs on none.
    tops = net({"scores": scores, "deltas": deltas, "im_info": torch.tensor([[8.0, 8, 1]])})
    assert tops["ip"].shape == (0, 3)


def test_other_python_layers_stay_the_users() -> None:
    text = NET.replace('layer: "ProposalLayer"', 'layer: "Other"')
    assert class_of(parse_net(text).layer[1]) is Python
    with (
        no_python_layers(),
        pytest.raises(LayerError, match=r"import and run the module 'rpn.proposal_layer'"),
    ):
        Net(parse_net(text))


def test_the_table_of_built_in_python_layers_is_that_of_the_registry() -> None:
    for module, layer in BUILT_IN:
        assert python_layer_class(module, layer) is not None
    assert set(_python_layers) == set(BUILT_IN)
    param = LayerParameter(
        type="Python", python_param={"module": "rpn.proposal_layer", "layer": "ProposalLayer"}
    )
    assert class_of(param) is ProposalLayer


# -- export --------------------------------------------------------------------------------------------------


def test_a_net_with_proposals_is_exported_for_one_image() -> None:
    """The number of ROIs stays open, and the check gives the net an image's size that fits its map."""
    net = Net(parse_net(NET))
    for step in net.steps:
        for blob in step.layer.blobs:
            blob.data.copy_(normal(*blob.shape))
    with pytest.raises(ExportError, match=r"Only single item batches.*use --fixed-batch"):
        export_net(net)
    result = export_net(net, ExportOptions(dynamic_batch=False))
    assert result.outputs == ["ip"]
    assert not result.not_compared
    assert result.largest > 0
    (output,) = result.model.graph.output
    assert [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim] == [
        "size of ip",
        3,
    ]
    assert [axis.dim_value for axis in result.model.graph.input[2].type.tensor_type.shape.dim] == [1, 3]


def test_a_net_that_is_given_rois_is_exported() -> None:
    """Its check needs ROIs, not random numbers."""
    text = """
        layer { name: "in" type: "Input" top: "map" top: "rois"
                input_param { shape { dim: [1, 8, 6, 9] } shape { dim: [1, 5] } } }
        layer { name: "scaled" type: "Power" bottom: "map" top: "scaled" power_param { scale: 2 } }
        layer { name: "pool" type: "%s" bottom: "scaled" bottom: "rois" top: "pool" %s }"""
    for kind, fields in (
        ("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 }"),
        ("PSROIPooling", "psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.125 }"),
    ):
        result = export_net(Net(parse_net(text % (kind, fields))))
        assert result.batch_sizes == (1, 3)
        assert not result.not_compared


def test_another_number_of_rois_is_a_difference() -> None:
    """Rows are compared in any order, and an output without a row, or of zeros, counts as not compared."""
    rows = np.arange(12.0).reshape(4, 3)
    other = rows + np.array([[0], [0], [0], [0.5]])
    for value, difference in ((rows[::-1], 0), (rows[:3], np.inf), (other, 0.5)):
        check = Check()
        _compare_rows(check, "rois", value, rows, 0)
        assert check.difference == difference
        assert not check.not_compared
    for empty in (rows[:0], np.zeros((2, 3))):
        check = Check()
        _compare_rows(check, "rois", empty, empty, 0)
        assert list(check.not_compared) == ["rois"]
