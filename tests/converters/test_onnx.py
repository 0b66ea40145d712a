"""ONNX: a net exported computes what the net computes; a model run on an LMDB reports the net's accuracy."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET, ExportOptions, export_net
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.preprocessing import TRANSFORM_KEY
from imae.converters.run_onnx import open_session, run_batch, run_bound
from imae.files.errors import DeviceError, ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST
from imae.prototxt.models.resnet import resnet
from imae.prototxt.text import parse_net

# In-place layers, a group, windows that are clipped when rounding up, two branches that come together again.
NET = """
name: "mixture"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        transform_param { mirror: true scale: 0.5 }
        data_param { source: "no_such_lmdb" batch_size: 7 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { mean_value: 100 scale: 0.02 }
        data_param { source: "lmdb" batch_size: 5 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 group: 3 bias_term: false
                            weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param { negative_slope: 0.1 } }
layer { name: "max" type: "Pooling" bottom: "conv" top: "max"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "ave" type: "Pooling" bottom: "conv" top: "ave"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "lrn" type: "LRN" bottom: "max" top: "lrn" lrn_param { local_size: 3 alpha: 0.1 } }
layer { name: "sum" type: "Eltwise" bottom: "lrn" bottom: "ave" top: "sum"
        eltwise_param { coeff: 0.5 coeff: -2 } }
layer { name: "slice" type: "Slice" bottom: "sum" top: "a" top: "b" slice_param { slice_point: 2 } }
layer { name: "concat" type: "Concat" bottom: "b" bottom: "a" top: "concat" }
layer { name: "drop" type: "Dropout" bottom: "concat" top: "concat" }
layer { name: "fc" type: "InnerProduct" bottom: "concat" top: "fc"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy"
        include { phase: TEST } }
layer { name: "loss" type: "IMAELoss" bottom: "fc" bottom: "label" top: "loss" }
"""
SHAPE = (3, 11, 9)


def test_net() -> Net:
    """The TEST net of NET, with statistics as after some training."""
    net = Net(deploy_net(parse_net(NET), SHAPE), Run(CaffeRandom(1)))
    generator = np.random.default_rng(2)
    for blob, size in zip(net.params["bn"], (6, 6, 1), strict=True):
        blob.data.numpy()[...] = generator.uniform(1, 2, size)
    return net


test_net.__test__ = False  # type: ignore[attr-defined]  # a net in phase TEST, no test


def test_deploy_net_keeps_what_hangs_on_the_image() -> None:
    deployed = deploy_net(parse_net(NET), SHAPE)
    assert deployed.state.phase == TEST
    assert [layer.name for layer in deployed.layer if layer.type == "Input"] == ["data"]
    assert not {"accuracy", "loss", "label"} & {layer.name for layer in deployed.layer}
    assert Net(deployed, Run(CaffeRandom(1))).outputs == ["fc"]


@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("opset", [OLDEST_OPSET, DEFAULT_OPSET, NEWEST_OPSET])
def test_model_computes_what_the_net_computes(opset: int, fold: bool) -> None:
    result = export_net(test_net(), ExportOptions(opset=opset, fold=fold))
    assert result.difference <= tolerance("onnx").rtol * result.largest
    assert result.batch_sizes == (1, 3)
    operators = {node.op_type for node in result.model.graph.node}
    assert ("BatchNormalization" in operators) != fold


def test_resnet_folds_to_convolutions_alone() -> None:
    shape = "input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } }"
    param = parse_net(f'layer {{ name: "in" type: "Input" top: "data" {shape} }}')
    param.layer.extend(resnet(8).layer)
    net = Net(deploy_net(param), Run(CaffeRandom(4)))
    for name, blobs in net.params.items():
        if name.endswith("_bn"):  # statistics as after some training, so that values stay of size 1
            for blob, value in zip(blobs, (0.1, 2, 1), strict=True):
                blob.data.fill_(value)
    result = export_net(net, ExportOptions(fold=True))
    assert result.difference <= tolerance("onnx").rtol * result.largest
    operators = {node.op_type for node in result.model.graph.node}
    assert operators == {"Conv", "Relu", "Add", "AveragePool", "Flatten", "Gemm"}


def test_resnet_stays_in_the_fast_layout(tmp_path: Path) -> None:
    """ONNX Runtime computes all but the classifier as convolutions that add and rectify, channels in blocks.

    How wide a block is depends on the processor; on one where there is none, there is nothing to see.
    """
    import onnxruntime

    shape = "input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } }"
    param = parse_net(f'layer {{ name: "in" type: "Input" top: "data" {shape} }}')
    param.layer.extend(resnet(20).layer)
    model = export_net(Net(deploy_net(param), Run(CaffeRandom(4))), ExportOptions(fold=True)).model
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    blocked = [node.op_type for node in nodes if node.domain == "com.microsoft.nchwc"]
    if not blocked:
        pytest.skip("ONNX Runtime has no layout of its own on this processor")
    assert sorted(blocked) == ["AveragePool", *["Conv"] * 21, "ReorderOutput"]
    assert [node.op_type for node in nodes if node.domain == ""] == ["Flatten", "Gemm"]


def test_softmax_and_fixed_batch() -> None:
    result = export_net(test_net(), ExportOptions(softmax=True, dynamic_batch=False))
    (output,) = result.model.graph.output
    assert output.name == "fc"
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [1, 4]
    assert result.model.graph.node[-1].op_type == "Softmax"
    assert result.batch_sizes == (1,)


@pytest.mark.parametrize("opset", [12, 23])
def test_opset_that_is_not_offered(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset must be 13 to 22, got {opset}"):
        export_net(test_net(), ExportOptions(opset=opset))


def test_net_of_losses_only_cannot_be_exported() -> None:
    param = parse_net(
        'layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 3 } } }'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "x" bottom: "label" top: "loss" }'
    )
    with pytest.raises(ExportError, match="no layer that computes something from an input"):
        deploy_net(param)


TWO_INPUTS = """
layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 1 dim: 2 } } }
layer { name: "c" type: "Concat" bottom: "a" bottom: "b" top: "c" concat_param { axis: 0 } }
layer { name: "d" type: "Power" bottom: "c" top: "d" power_param { scale: 2 }
        include { stage: "doubled" min_level: 1 } }
"""


def shapes_of(path: str) -> dict[str, list[int | str]]:
    """Of the inputs and outputs of a model."""
    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_each_input_has_a_shape_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(TWO_INPUTS)
    command = ["export", "--model", "net.prototxt", "--output", "x.onnx"]
    given = ["--input-shape", "a:5,3", "--input-shape", "b:7,3", "--fixed-batch"]
    assert main([*command, *given]) == 0
    assert shapes_of("x.onnx") == {"a": [5, 3], "b": [7, 3], "c": [12, 3]}
    assert main([*command, "--input-shape", "b:1,2"]) == 0  # the other is the prototxt's
    assert shapes_of("x.onnx") == {"a": ["batch", 2], "b": ["batch", 2], "c": ["size of c", 2]}


def test_a_shape_with_a_name_is_the_whole_one() -> None:
    net = parse_net(TWO_INPUTS)
    deployed = deploy_net(net, {"a": (2, 3, 5), "b": (7, 3, 5)})
    assert [list(layer.input_param.shape[0].dim) for layer in deployed.layer[:2]] == [[2, 3, 5], [7, 3, 5]]
    one = parse_net(NET)
    for given, shape in (((3, 11, 9), [1, 3, 11, 9]), ({"data": (3, 11, 9)}, [3, 11, 9])):
        assert list(deploy_net(one, given).layer[0].input_param.shape[0].dim) == shape


def test_level_and_stage_choose_the_exported_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(TWO_INPUTS)
    command = ["export", "--model", "net.prototxt", "--output", "x.onnx"]
    for flags, output in (
        ([], "c"),
        (["--stage", "doubled"], "c"),
        (["--stage", "x,doubled", "--level", "1"], "d"),
    ):
        assert main([*command, *flags]) == 0
        assert list(shapes_of("x.onnx")) == ["a", "b", output]


def test_the_batch_is_on_the_axis_where_the_net_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant has none, and a permuted or flattened blob has it elsewhere, or in a product."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text("""
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 5 } } }
        layer { name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 3 order: 0 } }
        layer { name: "f" type: "Flatten" bottom: "x" top: "f" flatten_param { axis: 0 end_axis: 1 } }
        layer { name: "b" type: "PriorBox" bottom: "x" bottom: "x" top: "b" prior_box_param { min_size: 2 } }
    """)
    assert main(["export", "--model", "net.prototxt", "--output", "x.onnx"]) == 0
    assert shapes_of("x.onnx") == {
        "x": ["batch", 3, 4, 5],
        "b": [1, 2, 80],
        "f": ["size of f", 4, 5],
        "p": [5, "batch", 3, 4],
    }


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ["1,2"],
            "the net has 2 inputs, so a shape must say whose it is; give --input-shape a:1,2 and so on",
        ),
        (["c:1,2"], "the net has no input 'c'; its inputs are a, b"),
        (["a:1,2", "a:1,3"], "--input-shape: a has a shape already, got 'a:1,3' as well"),
        (["1,2", "1,2"], "--input-shape: the input has a shape already, got '1,2' as well"),
        (["a:1,2", "1,2"], "--input-shape: with several shapes each needs a name, NAME:N,C,H,W"),
        (["a:1,0"], "or NAME:N,C,H,W; got 'a:1,0'"),
        (["a:"], "or NAME:N,C,H,W; got 'a:'"),
        (["7"], "--input-shape must be C,H,W or N,C,H,W of positive numbers"),
        ([""], "--input-shape must be C,H,W or N,C,H,W of positive numbers"),
    ],
)
def test_input_shapes_that_fit_nothing(
    shapes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.prototxt").write_text(TWO_INPUTS)
    output = tmp_path / "x.onnx"
    command = ["export", "--model", str(tmp_path / "net.prototxt"), "--output", str(output)]
    assert main([*command, *(f"--input-shape={shape}" for shape in shapes)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with NET, its weights, and an LMDB of 12 images that its TEST data layer reads."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(6)
    images = generator.integers(0, 256, (12, *SHAPE), np.uint8)
    write_lmdb("lmdb", ((b"%04d" % i, datum_from_array(image, i % 4)) for i, image in enumerate(images)))
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" lr_policy: "fixed" base_lr: 0 max_iter: 0 random_seed: 3 snapshot_prefix: "x"'
    )
    Path("train.prototxt").write_text(NET.replace("no_such_lmdb", "lmdb"))
    Path("solver.prototxt").write_text(Path("solver.prototxt").read_text().replace("net.pro", "train.pro"))
    assert main(["train", "solver.prototxt"]) == 0
    return tmp_path


def test_exported_model_has_the_accuracy_of_the_net(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", "x_iter_0.caffemodel"]
    assert main(["export", "--model", "net.prototxt", *weights, "--output", "net.onnx", "--fold"]) == 0
    metadata = {p.key: p.value for p in onnx.load("net.onnx").metadata_props}
    assert metadata[TRANSFORM_KEY].split() == ["scale:", "0.02", "mean_value:", "100"]
    assert main(["run", "net.onnx", "--lmdb", "lmdb", "--batch-size", "5"]) == 0
    ours = re.findall(r"^accuracy = (\S+) on 12 images$", capsys.readouterr().out, re.M)
    assert main(["test", "--model", "net.prototxt", *weights, "--iterations", "12"]) == 0
    theirs = re.findall(r"] accuracy = (\S+)$", capsys.readouterr().err, re.M)
    assert ours and f"{float(ours[0]):.4f}" == f"{float(theirs[-1]):.4f}"


def test_images_are_resized_to_the_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx", "--input-shape", "3,11,9"]) == 0
    cv2.imwrite("a.png", np.full((22, 18, 3), 130, np.uint8))
    assert main(["run", "net.onnx", "--images", "a.png"]) == 0
    assert re.search(r"^a\.png: -?\d+\.\d{4} - class [0-3], ", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.onnx", "--lmdb", "lmdb"], "no.onnx: no such file"),
        (["run", "net.prototxt", "--lmdb", "lmdb"], "net.prototxt: ONNX Runtime cannot load it"),
        (
            ["run", "net.onnx", "--lmdb", "lmdb", "--provider", "Cuda"],
            "provider 'Cuda' is not to be had here",
        ),
        (["run", "net.onnx", "--lmdb", "lmdb", "--provider", "GPU"], "provider 'GPU' is not to be had here"),
        (["run", "net.onnx", "--lmdb", "nothing"], "lmdb 'nothing': No such file or directory"),
        (["run", "net.onnx", "--lmdb", "lmdb", "--transform", "crop_size: 4"], "would be prepared as 4x4"),
        (["run", "net.onnx", "--lmdb", "lmdb", "--transform", "crop: 4"], '--transform:1:1: message "caffe'),
        (["run", "net.onnx", "--images", "net.prototxt"], "net.prototxt: could not decode"),
        (
            ["run", "net.onnx", "--lmdb", "lmdb", "--batch-size", "0"],
            "--batch-size must be at least 1, got 0",
        ),
        (
            ["export", "--model", "net.prototxt", "--output", "no/x.onnx"],
            "cannot write 'no/x.onnx': there is no",
        ),
        (
            ["export", "--model", "net.prototxt", "--output", "x", "--input-shape", "3,x"],
            "--input-shape must be",
        ),
        (
            ["export", "--model", "net.prototxt", "--output", "x", "--opset", "9"],
            "opset must be 13 to 22, got 9",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    capsys.readouterr()
    if "Cuda" in arguments:
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            message = "provider 'Cuda' could not be started"
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("imae: ") and message in last
    assert not Path("x").exists()


def test_bound_run_gives_what_a_run_gives(project: Path) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    session = open_session("net.onnx")
    images = np.random.default_rng(2).standard_normal((5, *SHAPE)).astype(np.float32)
    for given in (images, images[:2], images[::2]):
        (want,) = session.run(None, {"data": given})
        np.testing.assert_array_equal(run_bound(session, "data", given, "fc", "cpu"), want)


def test_cuda_gives_what_the_cpu_gives(project: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx", "--fold"]) == 0
    images = np.random.default_rng(2).standard_normal((5, *SHAPE)).astype(np.float32)
    want, got = (run_batch(open_session("net.onnx", name), images, "fc")[0] for name in ("CPU", "CUDA"))
    rtol, atol, _ = tolerance("onnx")
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * float(np.abs(want).max()))


def test_run_reports_speed_and_batch_size(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    for flags, size in (([], 12), (["--batch-size", "5"], 5)):
        capsys.readouterr()
        assert main(["run", "net.onnx", "--lmdb", "lmdb", "--speed", *flags]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        speed = rf"\d+ images/s of the model alone, a batch of {size} in \S+ ms, on CPU"
        assert re.fullmatch(speed, last)


def test_cuda_that_falls_back_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match="ONNX Runtime fell back to CPUExecutionProvider"):
        open_session("net.onnx", "CUDA")


def export_text(text: str, folder: Path, *flags: str) -> int:
    (folder / "net.prototxt").write_text(text)
    return main(
        ["export", "--model", str(folder / "net.prototxt"), "--output", str(folder / "x.onnx"), *flags]
    )


INDICES = """
layer { name: "in" type: "Input" top: "i" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }
"""
READERS = {
    "Embed": 'type: "Embed" bottom: "i" embed_param { num_output: 5 input_dim: 7 weight_filler '
    '{ type: "xavier" } }',
    "behind layers that move": """type: "Embed" bottom: "half" embed_param { num_output: 5 input_dim: 7
        weight_filler { type: "xavier" } } }
        layer { name: "other" type: "Power" bottom: "rest" top: "other" """,
    "read twice": """type: "Embed" bottom: "i" embed_param { num_output: 5 input_dim: 7 weight_filler
        { type: "xavier" } } }
        layer { name: "small" type: "Embed" bottom: "i" top: "small" embed_param { num_output: 2 input_dim: 2
        weight_filler { type: "xavier" } } """,
    "BatchReindex": 'type: "BatchReindex" bottom: "x" bottom: "flat"',
    "Filter": 'type: "Filter" bottom: "x" bottom: "flat"',
}


@pytest.mark.parametrize("fixed", [False, True], ids=["any batch", "fixed batch"])
@pytest.mark.parametrize("name", READERS)
def test_the_check_gives_valid_indices(
    name: str, fixed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = INDICES
    if "half" in READERS[name]:
        text += 'layer { name: "f" type: "Flatten" bottom: "i" top: "f" } layer { name: "s" type: "Slice" '
        text += 'bottom: "f" top: "half" top: "rest" slice_param { slice_point: 1 } }'
    elif "flat" in READERS[name]:
        text = text.replace("dim: 4 dim: 3", "dim: 4", 1).replace('"i"', '"flat"')
    text += f'layer {{ name: "it" top: "it" {READERS[name]} }}'
    assert export_text(text, tmp_path, *["--fixed-batch"] * fixed) == 0
    assert "NOTHING" not in capsys.readouterr().out


def test_an_index_that_no_input_gives_is_still_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the hint appears only if the option was not given."""
    text = INDICES + 'layer { name: "p" type: "Power" bottom: "i" top: "p" power_param { shift: 99 } } '
    text += (
        'layer { name: "e" type: "Embed" bottom: "p" top: "e" embed_param { num_output: 2 input_dim: 7 } }'
    )
    for flags in ([], ["--fixed-batch"]):
        assert export_text(text, tmp_path, *flags) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "index 9" in last and "is out of range" in last
        assert last.endswith("use --fixed-batch") != bool(flags)
    assert not (tmp_path / "x.onnx").exists()


CLASSIFIER = """
name: "it"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'


@pytest.mark.parametrize(
    "more",
    [
        PROB,
        PROB.replace('top: "prob"', 'top: "fc"'),
        PROB + 'layer { name: "flat" type: "Flatten" bottom: "prob" top: "flat" }',
    ],
    ids=["at the end", "in place", "moved"],
)
def test_softmax_of_a_softmax_is_not_taken(
    more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_text(CLASSIFIER + more, tmp_path, "--softmax") == 0
    nodes = [node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node]
    assert nodes.count("Softmax") == 1
    assert "gets no softmax: it is that of a Softmax layer already" in capsys.readouterr().err


def test_softmax_of_the_other_outputs_is_taken(tmp_path: Path) -> None:
    more = 'layer { name: "second" type: "InnerProduct" bottom: "x" top: "b" inner_product_param '
    assert export_text(f"{CLASSIFIER}{PROB}{more}{{ num_output: 2 }} }}", tmp_path, "--softmax") == 0
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert sorted(node.output[0] for node in graph.node if node.op_type == "Softmax") == ["b", "prob"]


def test_an_output_that_says_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zero = CLASSIFIER.replace(' weight_filler { type: "xavier" }', "")
    assert export_text(zero, tmp_path) == 0
    printed = capsys.readouterr()
    assert "NOTHING WAS COMPARED of output fc, batch sizes 1, 3: it is 0 everywhere" in printed.out
    assert "largest difference" not in printed.out
    assert "output 'fc': NOTHING WAS COMPARED on random inputs: it is 0 everywhere" in printed.err
    log = 'layer { name: "log" type: "Log" bottom: "fc" top: "log" log_param { shift: -1e9 } }'
    assert export_text(CLASSIFIER + log, tmp_path) == 0
    assert "of output log, batch sizes 1, 3: it is NaN or infinite everywhere" in capsys.readouterr().out
    some = 'layer { name: "log" type: "Log" bottom: "x" top: "log" }'
    assert export_text(CLASSIFIER + some, tmp_path) == 0  # the logarithm of normal numbers, half of them < 0
    printed = capsys.readouterr()
    assert "largest difference" in printed.out and "NOTHING" not in printed.out
    assert re.search(r"output 'log': \d of 9 values are not finite on random inputs", printed.err)


def test_weights_that_lack_a_layer_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    second = 'layer { name: "fc2" type: "InnerProduct" bottom: "fc" top: "y" inner_product_param '
    two = f'{CLASSIFIER}{second}{{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}'
    save_caffemodel(Net(parse_net(two)), "w.caffemodel")
    weights = ["--weights", "w.caffemodel"]
    assert export_text(two, tmp_path, *weights) == 0
    Path("x.onnx").unlink()
    renamed = two.replace('"fc2"', '"f_new"')
    assert export_text(renamed, tmp_path, *weights) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("imae: w.caffemodel has no blobs for the layers f_new, which")
    assert last.endswith(
        "random numbers, it has some for fc2, which the net lacks; give the weights of this net, or "
        "--allow-missing"
    )
    assert not Path("x.onnx").exists()
    assert export_text(renamed, tmp_path, *weights, "--allow-missing") == 0
    missing = "NO TRAINED WEIGHTS: w.caffemodel lacks them, so f_new have the values of their fillers\n"
    assert missing in capsys.readouterr().out
    assert export_text(renamed, tmp_path) == 0
    missing = "NO TRAINED WEIGHTS: no --weights were given, so all 2 layers have the values of their fillers"
    assert missing in capsys.readouterr().out


def test_a_layer_that_is_not_finite_is_seen_behind_one_of_its_name() -> None:
    twice = CLASSIFIER + CLASSIFIER[CLASSIFIER.index('layer { name: "fc"') :].replace('top: "fc"', 'top: "y"')
    net = Net(deploy_net(parse_net(twice)), Run(CaffeRandom(1)))
    first = next(layer for layer in net.layers if layer.name == "fc")
    first.blobs[0].data[0, 0] = np.nan
    with pytest.raises(ExportError, match="layer 'fc': blob 0 holds NaN or infinity"):
        export_net(net)


def test_blobs_that_another_layer_brings_are_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = CLASSIFIER.replace('"fc" type', '"fc" param { name: "w" } param { name: "b" } type')
    save_caffemodel(Net(parse_net(shared)), "w.caffemodel")
    twin = shared[shared.index('layer { name: "fc"') :].replace('name: "fc"', 'name: "twin"')
    twin = twin.replace('top: "fc"', 'top: "twin"')
    assert export_text(shared + twin, tmp_path, "--weights", "w.caffemodel") == 0


def test_other_commands_warn_of_weights_that_lack_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = 'layer { name: "in" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } } }'
    net = data + CLASSIFIER[CLASSIFIER.index('layer { name: "fc"') :]
    more = net[net.index('layer { name: "fc"') :].replace("fc", "more")
    save_caffemodel(Net(parse_net(net)), "w.caffemodel")
    Path("net.prototxt").write_text(net + more)
    for command in (
        ["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "1"],
        ["extract-features", "w.caffemodel", "net.prototxt", "more", "out", "1", "lmdb"],
    ):
        assert main(command) == 0
        warning = "random numbers in the layers more: w.caffemodel has no blobs for them"
        assert warning in capsys.readouterr().err


def test_an_outputs_name_makes_no_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "l" type: "Log" bottom: "x" top: "y\\nforged" log_param { shift: -1000 } }'
    )
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    out = capsys.readouterr().out
    assert "NOTHING WAS COMPARED of output y\\nforged, " in out
    assert not [line for line in out.splitlines() if line.startswith("forged")]


def test_an_error_without_text_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's MemoryError says nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(ExportError, match="with a batch of 1: there is not enough memory"):
        export_net(test_net())
