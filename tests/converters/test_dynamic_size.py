"""`imae export --dynamic-size`: one model computes what the net computes for images of any size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import ExportOptions, export_net
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import Datum
from imae.prototxt.text import parse_net

FILLER = 'weight_filler { type: "gaussian" std: 0.5 }'
CONV = f"convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {FILLER} }}"
SIZES = [(9, 14), (16, 7), (13, 13), (22, 31)]


def net_of(layers: str, *shape: int) -> Net:
    dims = " ".join(f"dim: {size}" for size in shape or (1, 4, 12, 10))
    data = f'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}'
    return Net(deploy_net(parse_net(f'name: "it" {data} {layers}')), Run(CaffeRandom(3)))


def layer(kind: str, fields: str = "", bottom: str = "x", top: str = "y") -> str:
    return f'layer {{ name: "{top}" type: "{kind}" bottom: "{bottom}" top: "{top}" {fields} }} '


def compare(net: Net, sizes: Iterable[tuple[int, int]], **options: bool) -> onnx.ModelProto:
    """Export; the model computes what the net computes at each size, for one image and for two."""
    exported = export_net(net, ExportOptions(dynamic_size="both", **options))
    session = onnxruntime.InferenceSession(exported.model.SerializeToString())
    generator = np.random.default_rng(0)
    rtol, atol, _ = tolerance("onnx")
    batch, channels = net.blob_shapes["x"][:2]
    for index, size in enumerate(sizes):
        x = generator.standard_normal((batch + index % 2, channels, *size)).astype(np.float32)
        with torch.no_grad():
            want = net({"x": torch.from_numpy(x)})
        for name, value in zip(exported.outputs, session.run(exported.outputs, {"x": x}), strict=True):
            assert value.shape == tuple(want[name].shape), size
            np.testing.assert_allclose(value, want[name].numpy(), rtol=rtol, atol=atol)
    return exported.model


POOLINGS = [
    "kernel_size: 2 stride: 2",
    "kernel_size: 3 stride: 2",
    "kernel_size: 3 stride: 2 pad: 1",
    "kernel_size: 2 stride: 2 pad: 1",
    "kernel_size: 3 stride: 3 pad: 1",
    "kernel_size: 2 stride: 3 pad: 1",
    "kernel_size: 3 stride: 1 pad: 1",
    "kernel_size: 5 stride: 4 pad: 2",
    "kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 pad_h: 0 pad_w: 1",
    "kernel_size: 3 stride: 2 round_mode: FLOOR",
    "kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR",
    "kernel_size: 1 stride: 2 round_mode: FLOOR",
    "global_pooling: true",
]


@pytest.mark.parametrize("method", ["MAX", "MAX mask", "AVE"])
@pytest.mark.parametrize("fields", POOLINGS)
def test_pooling_has_caffes_windows_at_every_size(fields: str, method: str) -> None:
    """Also where the last window sticks out of the image, or is left out as it would begin after it."""
    pool, *mask = method.split()
    top = 'top: "mask"' if mask else ""
    text = layer("Pooling", f"pooling_param {{ pool: {pool} {fields} }} {top}")
    sizes = [(height, 4 + (3 * height) % 13) for height in range(5, 18)]
    compare(net_of(text, 1, 2, 11, 12), sizes)


SAME = "pooling_param { kernel_size: 2 stride: 2 }"
LAYERS = {
    "convolution": layer("Convolution", CONV.replace("pad: 1", "stride: 2 dilation: 2")),
    "deconvolution": layer("Deconvolution", CONV.replace("pad: 1", "stride: 2 pad: 1 group: 2")),
    "lrn": layer("LRN"),
    "lrn within": layer("LRN", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }"),
    "mvn": layer("MVN"),
    "mvn across": layer("MVN", "mvn_param { across_channels: true normalize_variance: false }"),
    "batch norm": layer("BatchNorm") + layer("Scale", "scale_param { bias_term: true }", "y", "z"),
    "softmax": layer("Softmax"),
    "argmax": layer("ArgMax", "argmax_param { axis: 1 }"),
    "concat": layer("Convolution", CONV) + layer("Concat", 'bottom: "x"', "y", "z"),
    "eltwise": layer("Convolution", CONV) + layer("Eltwise", 'bottom: "x"', "y", "z"),
    "crop": layer("Pooling", SAME)
    + layer("Crop", 'bottom: "y" crop_param { axis: 2 offset: 1 offset: 2 }', "x", "z"),
    "slice channels": layer("Slice", 'top: "z"'),
    "slice a row each": layer("Slice", 'top: "z" slice_param { axis: 2 }'),
    "slice at columns": layer(
        "Slice", 'top: "z" top: "u" slice_param { axis: 3 slice_point: 2 slice_point: 3 }'
    ),
    "interp zoom": layer("Interp", "interp_param { zoom_factor: 3 }"),
    "interp shrink": layer("Interp", "interp_param { shrink_factor: 3 }"),
    "interp crop": layer(
        "Interp", "interp_param { shrink_factor: 2 zoom_factor: 3 pad_beg: -1 pad_end: -2 }"
    ),
    "interp crop begin": layer("Interp", "interp_param { zoom_factor: 2 pad_beg: -1 }"),
    "interp to a size": layer("Interp", "interp_param { height: 5 width: 8 }"),
    "upsample": layer("Upsample", "upsample_param { scale: 2 }"),
    "upsample by a mask": layer("Pooling", f'top: "mask" {SAME}')
    + layer("Upsample", 'bottom: "mask" upsample_param { scale: 2 }', "y", "z"),
    "reorg": layer("Reorg", "reorg_param { stride: 2 }"),
    "reorg back": layer("Reorg", "reorg_param { stride: 2 reverse: true }"),
    "permute": layer("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "normalize": layer("Normalize", "norm_param { across_spatial: false }"),
    "flatten": layer("Flatten"),
    "flatten the plane": layer("Flatten", "flatten_param { axis: 2 }"),
    "flatten in the middle": layer("Flatten", "flatten_param { axis: 1 end_axis: 2 }"),
    "reshape": layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } }"),
    "reshape in the middle": layer(
        "Reshape", "reshape_param { shape { dim: 2 dim: -1 } axis: 1 num_axes: 1 }"
    ),
    "shuffle": layer("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
    "power": layer("Power", "power_param { scale: 0 shift: 2 }") + layer("PReLU", "", "y", "z"),
    "tile": layer("Tile", "tile_param { tiles: 2 }"),
    "flip": layer("Flip", "flip_param { flip_height: true }"),
    "reduction": layer("Reduction", "reduction_param { axis: 2 operation: MEAN }"),
    "squeeze": layer("Pooling", "pooling_param { pool: AVE global_pooling: true }")
    + layer("InnerProduct", f"inner_product_param {{ num_output: 4 {FILLER} }}", "y", "z")
    + layer("Scale", 'bottom: "z" scale_param { axis: 0 }', "x", "u"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_have_no_size_of_their_own(name: str) -> None:
    sizes = [(10, 4), (14, 30)] if name in ("slice a row each", "reorg") else SIZES  # of even sizes alone
    compare(net_of(LAYERS[name]), sizes)


@pytest.mark.parametrize("fold", [False, True])
def test_a_net_with_a_shortcut_of_zeros(fold: bool) -> None:
    """It is folded where it takes every second pixel at all sizes."""
    text = (
        layer("Pooling", "pooling_param { pool: AVE kernel_size: 1 stride: 2 round_mode: FLOOR }")
        + layer("Power", "power_param { scale: 0 }", "y", "zeros")
        + layer("Concat", 'bottom: "zeros"', "y", "z")
    )
    model = compare(net_of(text), SIZES, fold=fold)
    assert ("Concat" in {node.op_type for node in model.graph.node}) != fold


def test_the_axes_have_names() -> None:
    text = layer("Convolution", CONV) + layer("Pooling", SAME, "y", "z") + layer("Softmax", "", "y", "p")
    model = compare(net_of(text), SIZES)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["x"] == ["batch", 4, "height", "width"] == shapes["p"]
    assert shapes["z"] == ["batch", 4, "height of z", "width of z"]


def test_a_fixed_batch_stays_fixed() -> None:
    text = layer("Convolution", CONV)
    result = export_net(net_of(text, 2, 4, 12, 10), ExportOptions(dynamic_size="both", dynamic_batch=False))
    dims = result.model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [2, 4, "height", "width"]
    assert result.batch_sizes == (2,) and result.size_step == 1 and len(result.sizes) == 2
    (first, second), own = result.sizes, (12, 10)
    assert all(a != b != c != a for a, b, c in zip(first, second, own, strict=True))
    assert first[0] % 2 == first[1] % 2 == 1


def test_a_net_whose_sizes_go_in_steps() -> None:
    """What is pooled and scaled up again fits the map before only for multiples of 4, from 12 on."""
    text = (
        layer("Pooling", SAME)
        + layer("Pooling", SAME, "y", "z")
        + layer("Upsample", "upsample_param { scale: 4 }", "z", "u")
        + layer("Eltwise", 'bottom: "x"', "u", "v")
    )
    net = net_of(text, 1, 4, 12, 16)
    assert export_net(net, ExportOptions(dynamic_size="both")).size_step == 4
    compare(net, [(8, 20), (24, 12)])


def test_two_images_have_a_pair_of_axes_each() -> None:
    text = (
        'layer { name: "b" type: "Input" top: "b" input_param { shape { dim: 1 dim: 4 dim: 6 dim: 5 } } }'
        'layer { name: "v" type: "Input" top: "v" input_param { shape { dim: 1 dim: 4 dim: 1 dim: 1 } } }'
        + layer("Upsample", "upsample_param { scale: 2 }", "b", "c")
        + layer("Eltwise", 'bottom: "x"', "c", "y")
        + layer("Pooling", "pooling_param { global_pooling: true }", "y", "p")
        + layer("Eltwise", 'bottom: "v"', "p", "q")
    )
    result = export_net(net_of(text), ExportOptions(dynamic_size="both"))
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*result.model.graph.input, *result.model.graph.output)
    }
    assert shapes == {
        "x": ["batch", 4, "height of x", "width of x"],
        "b": ["batch", 4, "height of b", "width of b"],
        "v": ["batch", 4, 1, 1],
        "q": ["batch", 4, 1, 1],
    }


def test_a_detector_of_patches_finds_in_whole_images() -> None:
    """A net for 12 x 12 pixels, as the first one of MTCNN, gives a map of scores for an image."""
    text = (
        layer("Convolution", f"convolution_param {{ num_output: 10 kernel_size: 3 {FILLER} }}")
        + layer("PReLU", "", "y", "y")
        + layer("Pooling", SAME, "y", "z")
        + layer("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 1 {FILLER} }}", "z", "u")
        + layer("Softmax", "", "u", "p")
    )
    net = net_of(text, 1, 3, 12, 12)
    model = compare(net, [(12, 12), (50, 70), (51, 69)])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (scores,) = session.run(["p"], {"x": np.zeros((1, 3, 50, 70), np.float32)})
    assert scores.shape == (1, 4, 24, 34)


def test_a_classifier_that_is_cut_before_its_inner_product(here: Path) -> None:
    classifier = layer("InnerProduct", f"inner_product_param {{ num_output: 2 {FILLER} }}", "y", "f")
    write_net(layer("Convolution", CONV) + classifier)
    assert export() == 2 and not Path("net.onnx").exists()
    assert export("--until", "y") == 0


PINS = {
    "inner product": (
        layer("Convolution", CONV)
        + layer("InnerProduct", f"inner_product_param {{ num_output: 2 {FILLER} }}", "y", "z"),
        "net 'it' has one size only. With images of .*: layer 'z' .InnerProduct.: .*; or cut the net before "
        "it with --until y$",
    ),
    "reshape": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 4 dim: 6 dim: 20 } }"),
        "layer 'y' .Reshape.: .*count",
    ),
    "interp": (
        layer("Interp", "interp_param { height: 12 width: 10 }") + layer("Eltwise", 'bottom: "x"', "y", "z"),
        "layer 'z' .Eltwise.: .*; the top of layer 'y' .Interp. has one size, whatever the size of the image",
    ),
    "spp": (
        layer("SPP", "spp_param { pyramid_height: 2 }"),
        "layer 'y' .SPP. is for one size .*: kernel_shape of its MaxPool depends on it",
    ),
    "prior box": (
        layer("PriorBox", 'bottom: "x" prior_box_param { min_size: 4 }'),
        "layer 'y' .PriorBox. is for one size of the image only: a constant of its Identity depends on it$",
    ),
    "empty windows": (
        layer("Pooling", "pooling_param { pool: AVE kernel_size: 1 stride: 2 }", "x", "y"),
        "layer 'y' .Pooling. is for one size of the image only",
    ),
    "im2col": (layer("Im2col", "convolution_param { kernel_size: 2 }"), "layer 'y' .Im2col. is for one size"),
}


@pytest.mark.parametrize("name", PINS)
def test_the_layer_that_pins_the_size_is_named(name: str) -> None:
    text, message = PINS[name]
    with pytest.raises(ExportError, match=f"^--dynamic-size: .*{message}"):
        export_net(net_of(text, 1, 4, 12, 10), ExportOptions(dynamic_size="both"))


def test_a_wrong_size_does_not_go_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding may be right for the net's own size, and wrong for others."""
    from imae.layers.vision.pooling import PoolWindows

    monkeypatch.setattr(PoolWindows, "ends_of_any_size", lambda windows: (0, 0))
    text = layer("Pooling", "pooling_param { kernel_size: 3 stride: 2 }")
    with pytest.raises(ExportError, match=r"output 'y' has shape .* in the net \(with images of 46x23\)"):
        export_net(net_of(text, 1, 4, 13, 11), ExportOptions(dynamic_size="both"))


def test_a_layer_of_a_plugin_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_onnx(self: object, graph: object, bottoms: list[str], tops: list[str]) -> None:
        rows = graph.constant(np.array([-1, *graph.shape(bottoms[0])[1:]]))  # type: ignore[attr-defined]
        graph.node("Reshape", [bottoms[0], rows], tops)  # type: ignore[attr-defined]

    monkeypatch.setattr(layer_class("AbsVal"), "to_onnx", to_onnx)
    with pytest.raises(ExportError, match=r"layer 'y' .AbsVal. is for .*: a constant of its Reshape depends"):
        export_net(net_of(layer("AbsVal")), ExportOptions(dynamic_size="both"))


PROPOSALS = {
    "Proposal": layer(
        "Proposal",
        """bottom: "deltas" bottom: "info" proposal_param {
            ratio: 0.5 ratio: 1 scale: 2 feat_stride: 16 pre_nms_topn: 40 post_nms_topn: 8 }""",
        "scores",
        "rois",
    ),
    "Python": layer(
        "Python",
        """bottom: "deltas" bottom: "info" python_param {
            module: "rpn.proposal_layer" layer: "ProposalLayer"
            param_str: "{'feat_stride': 16, 'scales': [2], 'ratios': [0.5, 1], 'RPN_POST_NMS_TOP_N': 8}" }""",
        "scores",
        "rois",
    ),
}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_regions_of_interest_in_images_of_any_size(kind: str) -> None:
    """The anchors, and the cells of R-FCN's bins, are counted in the model."""
    text = 'layer { name: "info" type: "Input" top: "info" input_param { shape { dim: 1 dim: 3 } } }'
    for name, channels in (("scores", 4), ("deltas", 8), ("bins", 8)):
        maps = f"convolution_param {{ num_output: {channels} kernel_size: 1 {FILLER} }}"
        text += layer("Convolution", maps, "x", name)
    text += PROPOSALS[kind]
    text += layer(
        "PSROIPooling",
        'bottom: "rois" psroi_pooling_param { spatial_scale: 0.0625 output_dim: 2 group_size: 2 }',
        "bins",
        "a",
    )
    windows = "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.0625 }"
    text += layer("ROIPooling", f'bottom: "rois" {windows}', "x", "b")
    result = export_net(net_of(text, 1, 4, 6, 5), ExportOptions(dynamic_size="both", dynamic_batch=False))
    assert result.size_step == 1 and not result.not_compared
    assert result.difference <= tolerance("onnx").rtol * result.largest


def test_a_net_without_images() -> None:
    with pytest.raises(ExportError, match=r"no input of images, \(N, C, H, W\); its inputs are x \(2, 3\)"):
        export_net(net_of(layer("AbsVal"), 2, 3), ExportOptions(dynamic_size="both"))


IMAGES = {"a.png": (20, 33), "b.png": (15, 12), "c.png": (15, 12)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, size in IMAGES.items():
        cv2.imwrite(name, np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    return tmp_path


def write_net(layers: str, data: str = "") -> None:
    shape = "shape { dim: 1 dim: 3 dim: 12 dim: 12 }"
    data = data or f'layer {{ name: "x" type: "Input" top: "x" input_param {{ {shape} }} }}'
    Path("net.prototxt").write_text(data + layers)


def export(*flags: str) -> int:
    return main(["export", "--model", "net.prototxt", "--output", "net.onnx", "--dynamic-size", *flags])


MEANS = layer("Convolution", CONV) + layer(
    "Pooling", "pooling_param { pool: AVE global_pooling: true }", "y", "z"
)


@pytest.mark.parametrize("batch", [[], ["--fixed-batch"]], ids=["any batch", "batch 1"])
def test_images_keep_their_sizes(here: Path, capsys: pytest.CaptureFixture[str], batch: list[str]) -> None:
    write_net(MEANS)
    assert export("--transform", "scale: 0.01", *batch) == 0
    out = capsys.readouterr().out
    assert "height and width are free\n" in out and "images also of 19x43, 46x23: " in out
    session = onnxruntime.InferenceSession("net.onnx")
    best = []
    for name in IMAGES:
        image = cv2.imread(name).transpose(2, 0, 1)[None].astype(np.float32) * np.float32(0.01)
        best.append(int(session.run(["z"], {"x": image})[0].argmax()))
    assert main(["run", "net.onnx", "--top", "1", "--images", *IMAGES]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(IMAGES))]
    classes = [line.partition(" - ")[2] for line in lines]
    assert classes == [f"class {number}" for number in best]


def test_a_crop_and_a_size_that_are_told(here: Path) -> None:
    """Records of one size say nothing of images of other sizes, unless they are cropped."""
    png = cv2.imencode(".png", np.zeros((14, 16, 3), np.uint8))[1].tobytes()
    write_lmdb("lmdb", [(b"0", Datum(data=png, encoded=True))])
    crops = ("", "transform_param { crop_size: 12 }", "transform_param { crop_h: 12 crop_w: 12 }")
    for crop, resize in zip(crops, (None, "14x16", "14x16"), strict=True):
        source = 'data_param { source: "lmdb" batch_size: 1 backend: LMDB }'
        write_net(MEANS, f'layer {{ name: "d" type: "Data" top: "x" {source} {crop} }}')
        assert export() == 0
        metadata = {p.key: p.value for p in onnx.load("net.onnx").metadata_props}
        assert metadata.get("imae.input.resize") == resize
        assert metadata.get("imae.input.crop") == ("12x12" if crop else None)


def test_an_image_whose_size_is_between_the_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = layer("Pooling", SAME) + layer("Pooling", SAME, "y", "z")
    text += layer("Upsample", "upsample_param { scale: 4 }", "z", "u")
    text += layer("Eltwise", 'bottom: "x"', "u", "v")
    write_net(text)
    assert export("--transform", "scale: 0.01") == 0
    assert "height and width are free, in steps of 4 from the prototxt's\n" in capsys.readouterr().out
    assert main(["run", "net.onnx", "--images", "a.png", "--resize", "24x16"]) == 0
    assert main(["run", "net.onnx", "--images", "a.png"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("; its images must be 12x12, or higher, lower, wider or narrower by a multiple of 4")


# A line of text: rows are pooled away, columns become steps of a sequence.
LINE = (
    layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }")
    + layer(
        "Convolution", f"convolution_param {{ num_output: 3 kernel_h: 6 kernel_w: 1 {FILLER} }}", "y", "z"
    )
    + layer("Permute", "permute_param { order: 3 order: 0 order: 1 order: 2 }", "z", "p")
    + layer("Flatten", "flatten_param { axis: 2 }", "p", "f")
    + layer("InnerProduct", f"inner_product_param {{ num_output: 5 axis: 2 {FILLER} }}", "f", "g")
)


def test_the_width_alone_is_free() -> None:
    with pytest.raises(
        ExportError, match=r"one size only.*'g' .InnerProduct.*; its width alone can be free: --d"
    ):
        export_net(net_of(LINE), ExportOptions(dynamic_size="both"))
    with pytest.raises(ExportError, match=r"one height only.*'g' .InnerProduct"):
        export_net(net_of(LINE), ExportOptions(dynamic_size="height"))
    result = export_net(net_of(LINE), ExportOptions(dynamic_size="width", dynamic_batch=False))
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*result.model.graph.input, *result.model.graph.output)
    }
    assert shapes == {"x": [1, 4, 12, "width"], "g": ["size 0 of g", 1, 5]}
    assert [height for height, _ in result.sizes] == [12, 12]
    session = onnxruntime.InferenceSession(result.model.SerializeToString())
    net = net_of(LINE)
    for width in (7, 10, 31):
        x = np.random.default_rng(width).standard_normal((1, 4, 12, width)).astype(np.float32)
        with torch.no_grad():
            want = net({"x": torch.from_numpy(x)})["g"].numpy()
        rtol, atol, _ = tolerance("onnx")
        np.testing.assert_allclose(session.run(["g"], {"x": x})[0], want, rtol=rtol, atol=atol)
