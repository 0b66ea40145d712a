"""Models that prepare images themselves: what is in them, what feeds them, what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.deploy import deploy_net
from imae.converters.embed import Embedding, check_embedded, embed_preprocessing
from imae.converters.export_onnx import NEWEST_OPSET, OLDEST_OPSET, Export, ExportOptions, export_net
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.model_parts import join_models, preparation, split_model
from imae.converters.preprocessing import Preprocessing, from_metadata, make_preprocessing, read_transform
from imae.converters.run_onnx import image_batches, lmdb_batches, open_session
from imae.files.errors import ExportError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import Datum
from imae.prototxt.text import parse_net

Bytes = NDArray[np.uint8]
HEIGHT, WIDTH = 10, 12
MEAN = np.random.default_rng(5).uniform(90, 130, (3, HEIGHT, WIDTH)).astype(np.float32)
INPUT = 'input: "data" input_dim: 1 input_dim: {} input_dim: {} input_dim: {}'
LAYERS = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "msra" } } }
"""


def small_net(channels: int, height: int, width: int) -> Net:
    text = f'name: "small" {INPUT.format(channels, height, width)}\n{LAYERS}'
    return Net(deploy_net(parse_net(text)), Run(CaffeRandom(1)))


def exported(
    net: Net, transform: str, embedding: Embedding, mean: NDArray[np.float32] | None = None, **options: object
) -> Export:
    shape = net.blob_shapes["data"]
    own = make_preprocessing(read_transform(transform, "x"), name="data", num_channels=shape[1], mean=mean)
    return export_net(net, ExportOptions(embedding=embedding, **options), preprocessing=own)


def random_bytes(*shape: int) -> Bytes:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def inside(export: Export, images: Bytes) -> NDArray[np.float32]:
    """What the model makes of images (N, H, W, C)."""
    assert export.preprocessing is not None
    return preparation(split_model(export.model, export.preprocessing)[0])(images)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 18, NEWEST_OPSET])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_arithmetic_is_caffes_bit_for_bit(order: str, opset: int) -> None:
    export = exported(small_net(3, 8, 8), "scale: 0.017", Embedding(order), MEAN, opset=opset)
    images = random_bytes(2, HEIGHT, WIDTH, 3)
    in_bgr = images if order == "BGR" else images[..., ::-1]
    values = (in_bgr.transpose(0, 3, 1, 2).astype(np.float32) - MEAN)[:, :, 1:9, 2:10]
    np.testing.assert_array_equal(inside(export, images), values * np.float32(0.017))
    assert export.inputs == ["image"] and export.moved is None


@pytest.mark.parametrize(
    ("transform", "size", "before", "offset"),
    [
        ("", (8, 9), (8, 9), (0, 0)),
        ("scale: 0.25 mean_value: 5", (8, 9), (8, 9), (0, 0)),
        ("resize_param { height: 9 width: 13 } crop_size: 7", (7, 7), (9, 13), (1, 3)),
        ("resize_param { height: 10 width: 11 } crop_h: 7 crop_w: 8", (7, 8), (10, 11), (1, 1)),
        ("resize_param { height: 8 width: 9 resize_mode: FIT_LARGE_SIZE_AND_PAD }", (8, 9), (8, 9), (0, 0)),
        ("resize_param { height: 8 width: 8 interp_mode: [AREA, CUBIC] }", (8, 8), (8, 8), (0, 0)),
    ],
)
def test_what_a_transform_param_says(
    transform: str, size: tuple[int, int], before: tuple[int, int], offset: tuple[int, int]
) -> None:
    export = exported(small_net(3, *size), transform, Embedding("BGR"))
    param = read_transform(transform, "x")
    images = random_bytes(1, *before, 3)
    (top, left), (height, width) = offset, size
    values = images.transpose(0, 3, 1, 2)[:, :, top : top + height, left : left + width].astype(np.float32)
    values -= np.float32(param.mean_value[0] if param.mean_value else 0)
    np.testing.assert_array_equal(inside(export, images), values * np.float32(param.scale))
    own = export.preprocessing
    assert own is not None and own.transform.HasField("resize_param") == param.HasField("resize_param")


def test_the_authors_crop_and_gray_images() -> None:
    export = exported(small_net(1, 8, 8), "crop_size: 8 exclude_last_crop: true", Embedding("GRAY"), MEAN[:1])
    images = random_bytes(2, HEIGHT, WIDTH, 1)
    values = (images.transpose(0, 3, 1, 2) - MEAN[:1])[:, :, 0:8, 1:9]
    np.testing.assert_array_equal(inside(export, images), values)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 18, NEWEST_OPSET])
def test_the_resizing_is_opencvs_but_for_a_grey_level(opset: int) -> None:
    export = exported(small_net(3, 8, 8), "", Embedding("BGR", resize=True), MEAN, opset=opset)
    for size in ((61, 43), (HEIGHT + 1, WIDTH - 1), (4, 5)):
        image = random_bytes(*size, 3)
        values = inside(export, image[None])[0] + MEAN[:, 1:9, 2:10]
        want = cv2.resize(image, (WIDTH, HEIGHT)).transpose(2, 0, 1)[:, 1:9, 2:10]
        steps = np.abs(values - want).round(3)
        assert set(np.unique(steps)) <= {0.0, 1.0} and (steps == 1).mean() < 0.25
    for size in ((HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)):  # no resizing, and four pixels that count alike
        image = random_bytes(*size, 3)
        want = cv2.resize(image, (WIDTH, HEIGHT)).transpose(2, 0, 1).astype(np.float32)
        np.testing.assert_array_equal(inside(export, image[None])[0], (want - MEAN)[:, 1:9, 2:10])
    assert export.moved is not None and 0 < export.moved < 0.25


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 18, NEWEST_OPSET])
@pytest.mark.parametrize("mode", ["WARP", "FIT_LARGE_SIZE_AND_PAD"])
def test_ssds_resizing(mode: str, opset: int) -> None:
    transform = f"resize_param {{ height: 8 width: 11 resize_mode: {mode} pad_value: 7.6 }} scale: 0.25"
    export = exported(small_net(3, 8, 11), transform, Embedding("BGR", resize=True), opset=opset)
    left = export.preprocessing
    assert left is not None and not left.transform.ListFields() and left.resize is None
    own = make_preprocessing(read_transform(transform, "x"))
    for size in ((23, 31), (60, 50), (17, 90), (8, 11), (16, 22), (301, 101), (3, 4)):
        image = random_bytes(*size, 3)
        want = own.transformer("x").transform_list([image.transpose(2, 0, 1)], str)
        steps = np.abs(inside(export, image[None]) - want) / 0.25
        assert set(np.unique(steps)) <= {0.0, 1.0} and (steps == 1).mean() < 0.25


def test_the_check_notices_another_arithmetic() -> None:
    net = small_net(3, 8, 8)
    own = make_preprocessing(read_transform("mean_value: 5", "x"), name="data")
    model = export_net(net, preprocessing=own).model
    for resize in (False, True):
        made = embed_preprocessing(model, own, Embedding("BGR", resize))
        check_embedded(made, net, ["fc"], 2, (), True, {})
        for tensor in made.model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if (values == 5).all():
                tensor.CopyFrom(onnx.numpy_helper.from_array(values - np.float32(1.5), tensor.name))
        with pytest.raises(ExportError, match=r"by up to (1\.5|2\.5) grey levels; nothing is written"):
            check_embedded(made, net, ["fc"], 2, (), True, {})


def test_the_check_notices_another_net() -> None:
    net = small_net(3, 8, 8)
    own = make_preprocessing(read_transform("scale: 0.01", "x"), name="data")
    made = embed_preprocessing(export_net(net, preprocessing=own).model, own, Embedding("BGR"))
    net.params["fc"][1].data += 1
    with pytest.raises(ExportError, match="away from the net's"):
        check_embedded(made, net, ["fc"], 2, (), True, {})


def test_a_net_of_rgb_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its databases hold RGB, and files are decoded as BGR; the model takes either order."""
    monkeypatch.chdir(tmp_path)
    record = random_bytes(3, 8, 8)
    write_lmdb("lmdb", [(b"0", datum_from_array(record, 0))])
    cv2.imwrite("a.png", record[::-1].transpose(1, 2, 0))
    net = small_net(3, 8, 8)
    own = make_preprocessing(read_transform("mean_value: [1, 2, 3]", "x"), name="data", channels="RGB")
    want = record - np.array([1, 2, 3], np.float32)[:, None, None]
    for order in ("RGB", "BGR"):
        export = export_net(net, ExportOptions(embedding=Embedding(order)), preprocessing=own)
        left = export.preprocessing
        assert left is not None and left.net_channels == ("RGB" if order == "BGR" else "")
        ((of_record, _),) = lmdb_batches("lmdb", left, 1)
        ((of_file, _),) = image_batches(["a.png"], left, 1, (1, 8, 8, 3))
        for images in (of_record, of_file):
            np.testing.assert_array_equal(inside(export, images.astype(np.uint8))[0], want)


def test_a_net_of_any_size() -> None:
    """Where height and width of the net's input are free, so are those of the images."""
    net = Net(deploy_net(parse_net(INPUT.format(3, 8, 8) + LAYERS.partition('layer { name: "fc"')[0])))
    own = make_preprocessing(read_transform("scale: 0.5 mean_value: 5", "x"), name="data", resize=(8, 8))
    model = export_net(net, preprocessing=own).model
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis, name in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{name} of {value.name}"
    made = embed_preprocessing(model, own, Embedding("RGB"))
    check_embedded(made, net, ["conv"], 2, (), True, {})
    assert made.preprocessing.resize is None
    images = random_bytes(1, 13, 11, 3)
    values = preparation(split_model(made.model, made.preprocessing)[0])(images)
    want = (images[..., ::-1].transpose(0, 3, 1, 2) - np.float32(5)) * np.float32(0.5)
    np.testing.assert_array_equal(values, want)
    with pytest.raises(ExportError, match="nothing says a size that images are resized to"):
        embed_preprocessing(model, own, Embedding("RGB", resize=True))


@pytest.mark.parametrize("resize", [False, True])
def test_the_other_options(resize: bool) -> None:
    export = exported(
        small_net(3, 8, 8),
        "scale: 0.01",
        Embedding("RGB", resize),
        MEAN,
        dynamic_batch=False,
        fold=True,
        softmax=True,
    )
    sides = ["image_height", "image_width"] if resize else [HEIGHT, WIDTH]
    dims = export.model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [1, *sides, 3]
    assert export.batch_sizes == (1,) and export.difference <= tolerance("onnx").rtol


def test_names_of_the_net_are_left_alone() -> None:
    text = LAYERS.replace('"conv"', '"image"').replace('"fc"', '"prepare/Cast_0"')
    param = parse_net(f"{INPUT.format(3, 8, 8)}\n{text}")
    export = exported(Net(deploy_net(param), Run(CaffeRandom(1))), "scale: 2", Embedding("BGR"))
    assert export.inputs == ["image_"] and export.outputs == ["prepare/Cast_0"]


# -- what feeds them -----------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a net, its mean image, an LMDB of 60 images 10 x 12, and images of several sizes."""
    monkeypatch.chdir(tmp_path)
    records = random_bytes(60, 3, HEIGHT, WIDTH)
    write_lmdb("lmdb", ((b"%04d" % i, datum_from_array(image, i % 5)) for i, image in enumerate(records)))
    source = """layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
      transform_param { crop_size: 8 scale: 0.02 mean_file: "mean.binaryproto" }
      data_param { source: "lmdb" batch_size: 2 backend: LMDB } }"""
    Path("net.prototxt").write_text(source + LAYERS)
    Path("deploy.prototxt").write_text(f"{INPUT.format(3, 8, 8)}\n{LAYERS}")
    Path("mean.binaryproto").write_bytes(blob_from_array(MEAN[None]).SerializeToString())
    for name, size in (("a", (20, 15)), ("b", (20, 15)), ("c", (9, 30))):
        cv2.imwrite(f"{name}.png", random_bytes(*size, 3))
    return tmp_path


def export(output: str, *options: str) -> Preprocessing:
    assert main(["export", "--model", "net.prototxt", "--output", output, *options]) == 0
    own = from_metadata({p.key: p.value for p in onnx.load(output).metadata_props}, output)
    assert own is not None
    return own


def scores(model: str, feed: NDArray[np.generic]) -> NDArray[np.float32]:
    session = open_session(model)
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: feed})[0]
    return result


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("resize", [[], ["--embed-resize"]], ids=["", "resize"])
def test_run_feeds_files_and_databases(project: Path, order: str, resize: list[str]) -> None:
    plain = export("plain.onnx")
    own = export("net.onnx", "--embed-preprocess", order, *resize)
    assert own.is_embedded and own.channels == order.upper()
    shape = open_session("net.onnx").get_inputs()[0].shape
    ((want, _),) = lmdb_batches("lmdb", plain, 60)
    ((images, labels),) = lmdb_batches("lmdb", own, 60)
    assert images.dtype == np.uint8 and labels is not None and labels[:6].tolist() == [0, 1, 2, 3, 4, 0]
    close = tolerance("onnx")
    np.testing.assert_allclose(scores("net.onnx", images), scores("plain.onnx", want), close.rtol, close.rtol)
    names = ["a.png", "b.png", "c.png"]
    ((want, _),) = image_batches(names, plain, 3, (1, 3, 8, 8))
    batches = [images for images, _ in image_batches(names, own, 3, shape)]
    assert [batch.shape for batch in batches] == (
        [(2, 20, 15, 3), (1, 9, 30, 3)] if resize else [(3, HEIGHT, WIDTH, 3)]
    )
    made = np.concatenate([scores("net.onnx", images) for images in batches])
    far = tolerance("resized" if resize else "onnx")
    expected = scores("plain.onnx", want)
    np.testing.assert_allclose(made, expected, far.rtol, far.atol * np.abs(expected).max())


def test_run_tells_classes_and_accuracy(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(model: str, *source: str) -> list[str]:
        capsys.readouterr()
        assert main(["run", model, *source]) == 0
        out = capsys.readouterr().out.splitlines()
        return [line for line in out if not line.startswith(("images: ", "records: "))]

    export("plain.onnx")
    for resize in ([], ["--embed-resize"]):
        export("net.onnx", "--embed-preprocess", "rgb", *resize)
        assert lines("net.onnx", "--lmdb", "lmdb") == lines("plain.onnx", "--lmdb", "lmdb")
        files = ["--images", "a.png", "b.png", "c.png", "--top", "1"]
        made, wanted = lines("net.onnx", *files), lines("plain.onnx", *files)
        if resize:  # pixels of other sizes are up to a grey level away, which the scores show
            made, wanted = ([line.partition(" - ")[2] for line in both] for both in (made, wanted))
        assert made == wanted


def test_records_of_several_sizes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def encoded(name: str) -> Datum:
        return Datum(data=Path(name).read_bytes(), label=1, encoded=True)

    write_lmdb("mixed", ((name.encode(), encoded(f"{name}.png")) for name in "abc"))
    own = export("net.onnx", "--embed-preprocess", "rgb", "--embed-resize")
    batches = list(lmdb_batches("mixed", own, 3))
    assert [len(labels) for _, labels in batches if labels is not None] == [2, 1]
    pixels = np.asarray(cv2.imread("c.png"), np.uint8)
    np.testing.assert_array_equal(batches[1][0][0], pixels[:, :, ::-1])
    export("net.onnx", "--embed-preprocess", "rgb")
    assert main(["run", "net.onnx", "--lmdb", "mixed"]) == 2
    assert "or a model that was exported with --embed-resize" in capsys.readouterr().err.splitlines()[-1]


def test_records_that_are_no_bytes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datum = Datum(channels=3, height=HEIGHT, width=WIDTH, float_data=[0.5] * (3 * HEIGHT * WIDTH))
    write_lmdb("floats", [(b"0", datum)])
    export("net.onnx", "--embed-preprocess", "rgb")
    assert main(["run", "net.onnx", "--lmdb", "floats"]) == 2
    assert "the model takes bytes, whole numbers from 0 to 255" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_left_to_the_user_is_done(project: Path) -> None:
    """A resize_param stays outside unless it is embedded, and its interpolation is said."""
    transform = "resize_param { height: 8 width: 8 interp_mode: AREA } scale: 0.5"
    options = ["--model", "deploy.prototxt", "--transform", transform, "--embed-preprocess", "rgb"]
    assert main(["export", *options, "--output", "net.onnx"]) == 0
    metadata = {p.key: p.value for p in onnx.load("net.onnx").metadata_props}
    want = {"resize": "8x8", "resize_mode": "WARP", "resize_interpolation": "AREA", "channels": "RGB"}
    assert {key: metadata[f"imae.input.{key}"] for key in want} == want
    assert not {"imae.input.scale", "imae.input.crop", "imae.input.mean"} & set(metadata)
    own = from_metadata(metadata, "net.onnx")
    assert own is not None and own.metadata().items() <= metadata.items()
    ((images, _),) = image_batches(["a.png"], own, 1, ("batch", 8, 8, 3))
    pixels = cv2.resize(np.asarray(cv2.imread("a.png")), (8, 8), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(images[0], pixels[:, :, ::-1])


@pytest.mark.parametrize("resize", [[], ["--embed-resize"]], ids=["", "resize"])
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_quantized_models_prepare_images_alike(project: Path, kind: str, resize: list[str]) -> None:
    """The arithmetic on images is not touched: half precision has no 104.25, and eight bits no 0.02."""
    plain, own = export("plain.onnx"), export("net.onnx", "--embed-preprocess", "rgb", *resize)
    calibrate = ["--calibrate", "lmdb"] if kind == "int8" else []
    for model in ("plain", "net"):
        assert main(["quantize", f"{model}.onnx", f"{model}_q.onnx", "--to", kind, *calibrate]) == 0
    given, made = onnx.load("net.onnx"), onnx.load("net_q.onnx")
    said, said_now = ({p.key: p.value for p in model.metadata_props} for model in (given, made))
    assert said_now.pop("imae.quantized").startswith(kind) and said_now == said
    assert given.graph.input == made.graph.input
    front, rest = split_model(made, own)
    assert front.graph.node == split_model(given, own)[0].graph.node
    assert front.graph.initializer == split_model(given, own)[0].graph.initializer
    kinds = {tensor.data_type for tensor in rest.graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16 if kind == "fp16" else onnx.TensorProto.INT8}
    ((images, _),) = lmdb_batches("lmdb", own, 60)
    ((values, _),) = lmdb_batches("lmdb", plain, 60)
    close = tolerance("onnx")
    np.testing.assert_allclose(
        scores("net_q.onnx", images), scores("plain_q.onnx", values), close.rtol, close.rtol
    )


def test_a_model_taken_apart_is_the_model() -> None:
    export = exported(small_net(3, 8, 8), "scale: 0.5", Embedding("RGB"), MEAN)
    assert export.preprocessing is not None
    front, rest = split_model(export.model, export.preprocessing)
    assert {node.op_type for node in rest.graph.node} == {"Conv", "Flatten", "Gemm"}
    joined = join_models(front, rest)
    onnx.checker.check_model(joined, full_check=True)
    images = random_bytes(2, HEIGHT, WIDTH, 3)
    import onnxruntime

    values = [
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": images})[0]
        for model in (export.model, joined)
    ]
    np.testing.assert_array_equal(*values)


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 reads no models of bytes")
@pytest.mark.parametrize("form", ["fixed", "resized", "padded"])
def test_opencv_runs_them(form: str) -> None:
    transform, mean = "scale: 0.02", MEAN
    if form == "padded":
        transform += " resize_param { height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD }"
        mean = np.array([1, 2, 3], np.float32)
    export = exported(small_net(3, 8, 8), transform, Embedding("RGB", form != "fixed"), mean)
    # Sizes after which no value is nearly half-way between two grey levels: it is exactly so, or not at all.
    size = {"fixed": (HEIGHT, WIDTH), "resized": (2 * HEIGHT, 2 * WIDTH), "padded": (16, 32)}[form]
    images = random_bytes(1, *size, 3)
    data = export.model.SerializeToString()
    import onnxruntime

    want = onnxruntime.InferenceSession(data).run(None, {"image": images})[0]
    net = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
    net.setInput(images)
    close = tolerance("onnx")
    np.testing.assert_allclose(net.forward(), want, close.rtol, close.rtol)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embed-preprocess", "rgb"], "nothing says how the net's images are prepared"),
        (["--embed-resize", "--mean", "5"], "--embed-resize needs --embed-preprocess"),
        (
            ["--embed-preprocess", "gray", "--mean", "5"],
            "must be rgb or bgr for a net of BGR images, got gray",
        ),
        (
            ["--transform", "noise_param { hist_eq: true }"],
            "transform_param has noise_param, which is no part",
        ),
        (["--transform", "random_resize_param { min_size: 8 }"], "transform_param has random_resize_param"),
        (
            ["--transform", "resize_param { resize_mode: FIT_SMALL_SIZE height: 8 width: 8 } crop_size: 8"],
            "FIT_SMALL_SIZE, after which each image has a size of its own",
        ),
        (
            ["--transform", "resize_param { height: 8 width: 8 interp_mode: NEAREST }", "--embed-resize"],
            "interp_mode NEAREST, and ONNX Resize is the same as OpenCV's for LINEAR alone",
        ),
        (
            [
                "--transform",
                "resize_param { height: 8 width: 8 interp_mode: [LINEAR, LINEAR] }",
                "--embed-resize",
            ],
            "interp_mode LINEAR, LINEAR",
        ),
        (
            [
                "--transform",
                "resize_param { height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_mode: MIRRORED }",
                "--embed-resize",
            ],
            "resize_param pads with something else than one number; leave --embed-resize out",
        ),
        (["--transform", "crop_h: 8"], "only one of crop_h and crop_w"),
        (
            ["--transform", "mean_value: [1, 2]"],
            "mean_value must be one number, or one for each of 3 channels",
        ),
        (["--transform", "crop_size: 8", "--resize", "7x9"], "8x8 cannot be cut out of 7x9; give --resize"),
        (
            ["--mean", "mean.binaryproto", "--resize", "9"],
            "the mean image is 10x12, and images would be 9x9",
        ),
    ],
)
def test_what_cannot_be_embedded(
    project: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--transform" in options or options[0] == "--mean":
        options = [*options, "--embed-preprocess", "rgb"]
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.onnx").exists()


def test_a_net_with_several_inputs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = 'layer { name: "two" type: "Input" top: "two" input_param { shape { dim: 1 dim: 5 } } }'
    tail = 'layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "two" top: "sum" }'
    image = other.replace("two", "data").replace("dim: 5", "dim: 3 dim: 8 dim: 8")
    Path("two.prototxt").write_text(image + other + LAYERS + tail)
    command = ["export", "--model", "two.prototxt", "--output", "net.onnx", "--mean", "5"]
    assert main([*command, "--embed-preprocess", "rgb"]) == 2
    assert (
        "needs a net with one input, of images; it has data, two" in capsys.readouterr().err.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "command",
    [
        ["run", "net.onnx", "--images", "a.png", "--transform", "scale: 2"],
        ["quantize", "net.onnx", "q.onnx", "--to", "fp16", "--mean", "5"],
    ],
    ids=lambda command: command[0],
)
def test_such_a_model_takes_no_transform(
    project: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    export("net.onnx", "--embed-preprocess", "rgb")
    assert main(command) == 2
    assert "the model prepares images itself" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("imae.input.layout", "NCHW", "must be NCHW and float32, or NHWC and uint8; got 'NCHW' and 'uint8'"),
        ("imae.input.dtype", "float32", "got 'NHWC' and 'float32'"),
        ("imae.input.channels", "GRAY", "imae.input.net_channels must be BGR or RGB"),
        ("imae.input.net_channels", "HSV", "imae.input.net_channels must be BGR or RGB; got 'HSV'"),
        ("imae.input.name", "data", "the input 'data', and the model has 'image': tensor(uint8)"),
        ("imae.transform_param", "scale: 2", "a model that takes bytes prepares them itself; scale must not"),
        ("imae.input.resize", "0x0", "must be HxW"),
        ("imae.input.resize", "9x9", "images would be prepared as 9x9 (resized to 9x9"),
    ],
)
def test_damaged_metadata(
    project: Path, key: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export("net.onnx", "--embed-preprocess", "rgb")
    damage({key: value})
    assert main(["run", "bad.onnx", "--images", "a.png"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def damage(changes: dict[str, str], *removed: str) -> None:
    """bad.onnx: net.onnx with other metadata."""
    model = onnx.load("net.onnx")
    metadata = {p.key: p.value for p in model.metadata_props} | changes
    onnx.helper.set_model_props(model, {k: v for k, v in metadata.items() if k not in removed})
    onnx.save(model, "bad.onnx")


def test_metadata_of_another_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("net.onnx", "--embed-preprocess", "rgb")
    run = ["run", "bad.onnx", "--images", "a.png"]
    damage({}, "imae.transform_param")
    assert main(run) == 2
    assert "its input 'image' takes bytes, and its metadata does not say" in capsys.readouterr().err
    damage({"imae.input.layout": "NCHW", "imae.input.dtype": "float32"})
    assert main(run) == 2
    assert "NCHW images of float32 and RGB for the input 'image'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "fc", "image", "nowhere", "prepare/Cast_0"])
def test_a_wrong_name_of_the_prepared_value(
    project: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export("net.onnx", "--embed-preprocess", "rgb")
    damage({"imae.input.prepared": value})
    assert main(["run", "bad.onnx", "--images", "a.png"]) == 0
    code = main(["quantize", "bad.onnx", "q.onnx", "--to", "int8", "--calibrate", "lmdb"])
    if value == "prepare/Cast_0":  # any value that all goes through will do
        assert code == 0
    else:
        assert code == 2 and not Path("q.onnx").exists()
        assert "metadata: imae.input.prepared must be" in capsys.readouterr().err.splitlines()[-1]
