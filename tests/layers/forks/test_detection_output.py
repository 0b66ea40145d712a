"""DetectionOutput against loops over single boxes, beyond the recorded cases, and its ONNX form.

What is not recorded: top_k and keep_top_k that cut, eta, CORNER_SIZE, share_location: false, result files.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import ssd_reference
import torch
from onnx import TensorProto, helper
from single_layer import build, refused, run
from ssd_inputs import Inputs, probabilities, random_inputs
from tolerances import tolerance
from torch import Tensor

from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import export_net
from imae.converters.graph import Graph
from imae.files.errors import ExportError, ImaeError, SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.net.net import Net
from imae.net.streams import Streams
from imae.prototxt.text import parse_net
from imae.train.solverstate import pack, unpack

DEFAULTS: dict[str, Any] = {
    "num_classes": 4, "share_location": True, "background_label_id": 0, "code_type": "CENTER_SIZE",
    "keep_top_k": -1, "variance_encoded_in_target": False, "confidence_threshold": 0.05,
    "nms_threshold": 0.45, "top_k": -1, "eta": 1.0,
}  # fmt: skip
IN_NMS = ("nms_threshold", "top_k", "eta")


def text(options: dict[str, Any], more: str = "") -> str:
    words = {
        name: f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in options.items()
    }
    nms = " ".join(words[name] for name in IN_NMS)
    fields = " ".join(word for name, word in words.items() if name not in IN_NMS)
    return f'type: "DetectionOutput" detection_output_param {{ {fields} nms_param {{ {nms} }} {more} }}'


def bottoms_for(options: dict[str, Any], num: int = 2, seed: int = 0, priors: int = 30) -> tuple[Tensor, ...]:
    classes = options["num_classes"]
    loc_classes = 1 if options["share_location"] else classes
    inputs: Inputs = random_inputs(num, priors, classes, loc_classes, seed=seed)
    return inputs.loc * 0.5, probabilities(inputs.conf, classes), inputs.prior


VARIANTS = [
    {},
    {"code_type": "CORNER"},
    {"code_type": "CORNER_SIZE"},
    {"code_type": "CORNER", "nms_threshold": 0.0},
    {"variance_encoded_in_target": True},
    {"top_k": 4},
    {"top_k": 4, "keep_top_k": 6},
    {"keep_top_k": 5},
    {"keep_top_k": 1000, "top_k": 1000},
    {"background_label_id": 2},
    {"background_label_id": -1},
    {"share_location": False},
    {"share_location": False, "background_label_id": -1, "top_k": 6, "keep_top_k": 8},
    {"share_location": False, "background_label_id": 3, "code_type": "CORNER_SIZE"},
    {"confidence_threshold": 0.9},
    {"confidence_threshold": 0.99999},
    {"num_classes": 2, "top_k": 10},
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("changes", [*VARIANTS, {"eta": 0.9, "nms_threshold": 0.8}, {"top_k": 0}], ids=str)
def test_rows_are_those_of_the_loops(changes: dict[str, Any], seed: int) -> None:
    options = DEFAULTS | changes
    bottoms = bottoms_for(options, 3, seed)
    layer = build(text(options), *(tuple(bottom.shape) for bottom in bottoms)).double()
    (top,) = run(layer, *bottoms)
    want = np.array(ssd_reference.detections(options, *(bottom.numpy() for bottom in bottoms)))
    assert top.shape == (1, 1, len(want), 7)
    rtol, atol, _ = tolerance("formula", "float64")
    np.testing.assert_allclose(top[0, 0].numpy(), want, rtol=rtol, atol=atol)


def test_suppression_in_blocks_is_that_in_loops() -> None:
    """More boxes than are compared at once."""
    options = DEFAULTS | {"num_classes": 2, "confidence_threshold": 0.0}
    bottoms = bottoms_for(options, 1, priors=1100)
    layer = build(text(options), *(tuple(bottom.shape) for bottom in bottoms)).double()
    (top,) = run(layer, *bottoms)
    want = np.array(ssd_reference.detections(options, *(bottom.numpy() for bottom in bottoms)))
    rtol, atol, _ = tolerance("formula", "float64")
    np.testing.assert_allclose(top[0, 0].numpy(), want, rtol=rtol, atol=atol)


def test_without_a_threshold_every_score_counts() -> None:
    """Scores need not be probabilities; equal ones are taken in the order of the priors."""
    prior = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.6, 0.6], *[[1.0] * 4] * 2]).reshape(1, 2, 8)
    shapes = (1, 8), (1, 4), (1, 2, 8)
    layer = build('type: "DetectionOutput" detection_output_param { num_classes: 2 }', *shapes)
    (top,) = run(layer, torch.zeros(1, 8), torch.full((1, 4), -5.0), prior)
    assert top[0, 0, :, :4].tolist() == [[0, 1, -5, prior[0, 0, 0]], [0, 1, -5, prior[0, 0, 4]]]


def test_nothing_to_detect() -> None:
    loc, conf, prior = bottoms_for(DEFAULTS)
    for bottoms, rows in (
        ((loc[:0], conf[:0], prior), []),
        ((loc[:, :0], conf[:, :0], prior[..., :0]), [[0.0, *[-1.0] * 6], [1.0, *[-1.0] * 6]]),
    ):
        layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in bottoms)).double()
        assert run(layer, *bottoms)[0][0, 0].tolist() == rows


def test_without_priors_the_number_of_classes_takes_no_memory() -> None:
    for share in (True, False):
        changes = DEFAULTS | {"num_classes": 2**32 - 1, "share_location": share}
        layer = build(text(changes), (1, 0), (1, 0), (1, 2, 0))
        rows = run(layer, torch.zeros(1, 0), torch.zeros(1, 0), torch.zeros(1, 2, 0))[0]
        assert rows.flatten().tolist() == [0.0, *[-1.0] * 6]
        graph = Graph(17, {"loc": (1, 0), "conf": (1, 0), "prior": (1, 2, 0)})
        with pytest.raises(ExportError, match="it never finds a box"):
            layer.to_onnx(graph, ["loc", "conf", "prior"], ["top"])


def test_the_tops_type_and_the_bottoms_stay() -> None:
    bottoms = [bottom.float().requires_grad_() for bottom in bottoms_for(DEFAULTS)]
    before = [bottom.clone() for bottom in bottoms]
    layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in bottoms))
    (top,) = run(layer, *bottoms)
    assert top.dtype == torch.float32 and not top.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(bottoms, before, strict=True))
    scattered = [torch.stack([bottom, bottom], -1)[..., 0] for bottom in bottoms]
    assert torch.equal(run(layer, *scattered)[0], top)


def test_ssd300_runs_in_a_moment() -> None:
    options = DEFAULTS | {"num_classes": 21, "confidence_threshold": 0.01, "top_k": 400, "keep_top_k": 200}
    loc, conf, prior = (bottom.float() for bottom in bottoms_for(options, 8, priors=8732))
    layer = build(text(options), *(tuple(bottom.shape) for bottom in (loc, conf, prior)))
    (top,) = run(layer, loc, conf, prior)
    assert top.shape == (1, 1, 8 * 200, 7)


# -- ONNX --------------------------------------------------------------------------------------------------


def model_of(options: dict[str, Any], bottoms: tuple[Tensor, ...], opset: int) -> bytes:
    """The layer alone; the batch size is open, priors are a constant as in a net."""
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    layer = build(text(options), *shapes)
    names = list(layer.param.bottom)
    graph = Graph(opset, dict(zip([*names, "top0"], [*shapes, (1, 1, 1, 7)], strict=True)))
    priors = graph.constant(bottoms[2].numpy())
    graph.node("Identity", [priors], [names[2]])
    layer.to_onnx(graph, names, ["top0"])
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", shape[1]])
        for name, shape in zip(names[:2], shapes, strict=False)
    ]
    output = helper.make_tensor_value_info("top0", TensorProto.FLOAT, [1, 1, "rows", 7])
    made = helper.make_graph(graph.nodes, "it", inputs, [output], graph.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_onnx_runtime_gives_the_same_rows(changes: dict[str, Any]) -> None:
    options = DEFAULTS | changes
    rtol, atol, _ = tolerance("onnx")
    for opset in (13, 18, 22):
        shaped = tuple(bottom.float() for bottom in bottoms_for(options))
        session = onnxruntime.InferenceSession(model_of(options, shaped, opset))
        for num in (1, 2, 5):
            bottoms = tuple(bottom.float() for bottom in bottoms_for(options, num))[:2] + shaped[2:]
            layer = build(text(options), *(tuple(bottom.shape) for bottom in bottoms))
            (want,) = run(layer, *bottoms)
            feeds = {f"bottom{index}": bottom.numpy() for index, bottom in enumerate(bottoms[:2])}
            (got,) = session.run(["top0"], feeds)
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("num", [1, 3])
def test_opencv_gives_the_same_rows(changes: dict[str, Any], num: int) -> None:
    options = DEFAULTS | changes
    bottoms = tuple(bottom.float() for bottom in bottoms_for(options, num))
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model_of(options, bottoms, 17), np.uint8))
    for index, bottom in enumerate(bottoms[:2]):
        net.setInput(bottom.numpy(), f"bottom{index}")
    (want,) = run(build(text(options), *(tuple(bottom.shape) for bottom in bottoms)), *bottoms)
    rtol, atol, _ = tolerance("onnx")
    got = net.forward()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"eta": 0.9}, "eta } below 1 has no ONNX form"), ({"top_k": 0}, "it never finds a box"),
     ({"keep_top_k": 0}, "it never finds a box")],
)  # fmt: skip
def test_what_has_no_onnx_form(changes: dict[str, Any], message: str) -> None:
    options = DEFAULTS | changes
    with pytest.raises(ExportError, match=message):
        model_of(options, bottoms_for(options), 17)


def small_ssd(old: str = "", new: str = "") -> Net:
    """The recorded net with its weights, perhaps with another word in its text."""
    case = reference.load(reference.CASES / "forks/ssd/nets/small_ssd_test.npz")
    net = Net(parse_net(case.prototxt.read_text().replace(old, new)))
    for name, value in case.of("param", 0).items():
        layer, index = name.rsplit(":", 1)
        net.params[layer][int(index)].data.copy_(torch.from_numpy(value))
    return net


def test_a_whole_net_in_onnx_runtime_and_opencv() -> None:
    net = small_ssd()
    export = export_net(net)
    assert export.batch_sizes == (1, 3) and not export.not_compared
    shape = [d.dim_param or d.dim_value for d in export.model.graph.output[0].type.tensor_type.shape.dim]
    assert shape == [1, 1, "size of out", 7]
    x = reference.load(reference.CASES / "forks/ssd/nets/small_ssd_test.npz").of("in", 0)["data"]
    with torch.no_grad():
        want = net({"data": torch.from_numpy(x)})["out"].numpy()
    rtol, atol, _ = tolerance("onnx")
    model = export.model.SerializeToString()
    (got,) = onnxruntime.InferenceSession(model).run(None, {"data": x})
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    in_opencv = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    in_opencv.setInput(x)
    np.testing.assert_allclose(in_opencv.forward(), want, rtol=rtol, atol=atol)


def test_an_export_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_ssd()
    layer = net.layer("out")
    monkeypatch.setattr(layer, "lowest", 0.2)
    to_onnx = layer.to_onnx

    def wrong(*arguments: Any) -> None:
        layer.lowest = 0.4
        to_onnx(*arguments)
        layer.lowest = 0.2

    monkeypatch.setattr(layer, "to_onnx", wrong)
    with pytest.raises(ExportError, match="away from the net's"):
        export_net(net)


def test_an_export_says_that_nothing_was_detected(caplog: pytest.LogCaptureFixture) -> None:
    export = export_net(small_ssd("confidence_threshold: 0.3", "confidence_threshold: 1"))
    assert export.not_compared == {"out": "nothing was detected"}
    assert "output 'out': NOTHING WAS COMPARED on random inputs: nothing was detected" in caplog.text


def test_boxes_without_end_are_compared() -> None:
    """Some of the boxes are infinite, in the net and in the model."""
    net = small_ssd()
    net.params["c1n_loc"][0].data.mul_(1e5)
    with torch.no_grad():
        rows = net({"data": torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))})["out"]
    assert rows.isinf().any() and rows.isfinite().any()
    assert not export_net(net).not_compared


def test_a_deployed_net_writes_no_result_files(tmp_path: Path) -> None:
    """Nor does it need the lists that they are made of."""
    text = (reference.CASES / "forks/ssd/nets/small_ssd_test.prototxt").read_text()
    save = f"""save_output_param {{ output_directory: "{tmp_path}" output_format: "VOC"
        label_map_file: "{tmp_path}/nothing" name_size_file: "{tmp_path}/nothing" }} visualize: true"""
    param = parse_net(text.replace("detection_output_param {", f"detection_output_param {{ {save}"))
    with pytest.raises(ImaeError, match="nothing: no such file"):
        Net(param)
    assert export_net(Net(deploy_net(param))).batch_sizes == (1, 3)
    assert param.layer[-1].detection_output_param.HasField("save_output_param")
    assert not list(tmp_path.iterdir())


def test_a_train_net_is_deployed_without_its_loss() -> None:
    text = (reference.CASES / "forks/ssd/nets/small_ssd_train.prototxt").read_text()
    export = export_net(Net(deploy_net(parse_net(text))))
    assert export.inputs == ["data"] and export.outputs == ["mbox_conf", "mbox_loc", "mbox_prior"]


# -- result files ------------------------------------------------------------------------------------------

MAP = """item { name: "none" label: 0 } item { name: "17" label: 1 display_name: "cat" }
    item { name: "dog" label: 2 }"""
SIZES = "a 200 100\n000007 50 80\n"
ROWS = torch.tensor([[0.9, 0.1], [0.1, 0.8], [0.6, 0.7]])  # scores of label 1, 2


def saved(folder: Path, format_: str, more: str = "") -> tuple[str, tuple[Tensor, ...]]:
    (folder / "map").write_text(MAP)
    (folder / "sizes").write_text(SIZES)
    save = f"""save_output_param {{ output_directory: "{folder}/out" output_name_prefix: "p_"
        output_format: "{format_}" label_map_file: "{folder}/map"
        name_size_file: "{folder}/sizes" {more} }}"""
    options = DEFAULTS | {"num_classes": 3, "code_type": "CORNER", "confidence_threshold": 0.5}
    prior = torch.tensor(
        [[0.1, 0.2, 0.30457, 0.6], [0.5, 0.5, 0.9, 1.2], [0.05, 0.0, 0.15, 0.1], *[[1.0] * 4] * 3]
    )
    conf = torch.cat([torch.zeros(3, 1), ROWS], 1)
    bottoms = (torch.zeros(2, 12), conf.reshape(1, 9).expand(2, 9), prior.reshape(1, 2, 12))
    return text(options, save), bottoms


def written(folder: Path, format_: str, more: str = "") -> dict[str, str]:
    layer_text, bottoms = saved(folder, format_, more)
    layer = build(layer_text, *(tuple(bottom.shape) for bottom in bottoms))
    assert not (folder / "out").exists()
    run(layer, *bottoms)
    return {path.name: path.read_text() for path in sorted((folder / "out").iterdir())}


def test_voc_files(tmp_path: Path) -> None:
    """A line for each box: clipped, in pixels, rounded to hundredths, cut to integers."""
    assert written(tmp_path, "VOC") == {
        "p_17.txt": "a 0.9 10 40 30 120\na 0.6 5 0 15 20\n000007 0.9 8 10 24 30\n000007 0.6 4 0 12 5\n",
        "p_dog.txt": "a 0.8 50 100 90 200\na 0.7 5 0 15 20\n000007 0.8 40 25 72 50\n000007 0.7 4 0 12 5\n",
    }


def test_ilsvrc_file(tmp_path: Path) -> None:
    (name, lines), = written(tmp_path, "ILSVRC").items()  # fmt: skip
    assert name == "p_.txt"
    assert lines.splitlines()[:3] == ["a 1 0.9 10 40 30 120", "a 1 0.6 5 0 15 20", "a 2 0.8 50 100 90 200"]


def test_coco_file(tmp_path: Path) -> None:
    """Names that are numbers become numbers, as COCO's tools expect."""
    (name, lines), = written(tmp_path, "COCO").items()  # fmt: skip
    assert name == "p_.json"
    entries = json.loads(lines)
    assert len(entries) == 8
    assert entries[0]["image_id"] == "a" and entries[4]["image_id"] == 7
    assert entries[0]["category_id"] == 17 and entries[2]["category_id"] == "dog"
    np.testing.assert_allclose(entries[0]["bbox"], [10, 40, 20.46, 80], rtol=tolerance("formula").rtol)
    np.testing.assert_allclose(entries[0]["score"], 0.9, rtol=tolerance("formula").rtol)


def test_names_of_many_digits_are_no_numbers(tmp_path: Path) -> None:
    """Python refuses them as whole numbers, and JSON has no infinity."""
    layer_text, bottoms = saved(tmp_path, "COCO")
    names = 5000 * "9", 400 * "9" + ".0"
    (tmp_path / "sizes").write_text("".join(f"{name} 20 20\n" for name in names))
    run(build(layer_text, *(tuple(bottom.shape) for bottom in bottoms)), *bottoms)
    entries = json.loads((tmp_path / "out/p_.json").read_text())
    assert [entries[0]["image_id"], entries[4]["image_id"]] == list(names)


@pytest.mark.parametrize("format_", ["VOC", "COCO", "ILSVRC"])
def test_boxes_that_are_nan_are_no_results(tmp_path: Path, format_: str) -> None:
    layer_text, (loc, conf, prior) = saved(tmp_path, format_)
    layer = build(layer_text, *(tuple(bottom.shape) for bottom in (loc, conf, prior)))
    with refused("image a: a box is NaN or infinite"):
        run(layer, torch.full_like(loc, torch.nan), conf, prior)
    assert not (tmp_path / "out").exists()


def test_files_are_written_when_num_test_image_images_were_seen(tmp_path: Path) -> None:
    files = written(tmp_path, "ILSVRC", "num_test_image: 1")
    assert [line.split()[0] for line in files["p_.txt"].splitlines()] == ["a"] * 4  # the last one's


@pytest.mark.parametrize(
    ("resize", "first"),
    [
        ("resize_mode: WARP height: 9 width: 9", "a 1 0.9 10 40 30 120"),
        # 100 x 200 fits into 300 x 300 with 75 columns of padding on each side
        ("resize_mode: FIT_LARGE_SIZE_AND_PAD height: 300 width: 300", "a 1 0.9 0 40 10 120"),
        ("resize_mode: FIT_SMALL_SIZE height: 300 width: 300", "a 1 0.9 10 40 30 120"),
        ("resize_mode: FIT_SMALL_SIZE height: 9 width: 9 height_scale: 50 width_scale: 400",
         "a 1 0.9 40 10 100 30"),
    ],
)  # fmt: skip
def test_boxes_go_back_to_the_image_before_it_was_resized(tmp_path: Path, resize: str, first: str) -> None:
    files = written(tmp_path, "ILSVRC", f"resize_param {{ {resize} }}")
    assert files["p_.txt"].splitlines()[0] == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('output_format: "VOC"', 'output_format: "CSV"', "output_format must be one of VOC, COCO, ILSVRC"),
        ('prefix: "p_"', 'prefix: "../p_"', "a result file must be in the output_directory itself"),
        ("/sizes", "/nothing", "Failed to open name size file"),
        ("/map", "/nothing", "nothing: no such file"),
        ("num_classes: 3", "num_classes: 4", "Cannot find label: 3 in the label map"),
        ("} }", "num_test_image: 3 } }", "num_test_image must be 1 to the number of images"),
        ("/out", "/o\\000ut", "output_directory has a zero byte"),
        ("} }", "resize_param { height: 3 } } }", "resize_param: height and width must be larger than 0"),
    ],
)
def test_what_the_files_cannot_be_made_of(tmp_path: Path, old: str, new: str, message: str) -> None:
    layer_text, bottoms = saved(tmp_path, "VOC")
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    if "num_classes" in new:
        shapes[1] = (2, 12)
    assert old in layer_text
    with pytest.raises(ImaeError, match=re.escape(message)):
        build(layer_text.replace(old, new), *shapes)


def test_broken_lists(tmp_path: Path) -> None:
    layer_text, bottoms = saved(tmp_path, "VOC")
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    (tmp_path / "sizes").write_text("a 20\n")
    with refused("sizes:1: a line has a name, a height and a width"):
        build(layer_text, *shapes)
    for side in (9 * "9" + "0", 5000 * "9", "²", "-1"):
        (tmp_path / "sizes").write_text(f"a {side} 20\n")
        with refused("sizes:1: a line has a name, a height and a width"):
            build(layer_text, *shapes)
    (tmp_path / "map").write_text(MAP + 'item { name: "again" label: 2 }')
    with refused("There are many duplicates of label: 2"):
        build(layer_text, *shapes)


def test_without_a_list_nothing_is_saved(tmp_path: Path) -> None:
    layer_text, bottoms = saved(tmp_path, "VOC")
    layer_text = layer_text.replace(f'name_size_file: "{tmp_path}/sizes"', "")
    run(build(layer_text, *(tuple(bottom.shape) for bottom in bottoms)), *bottoms)
    assert not (tmp_path / "out").exists()


def test_visualize_says_that_it_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    build(text(DEFAULTS, "visualize: true"), *(tuple(bottom.shape) for bottom in bottoms_for(DEFAULTS)))
    assert "visualize: no window shows the detections" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "Must specify num_classes"),
        ({"nms_threshold": -0.1}, "nms_threshold must be non negative."),
        ({"eta": 0.0}, "eta must be larger than 0, and at most 1; got 0.0"),
        ({"eta": 1.5}, "eta must be larger than 0, and at most 1; got 1.5"),
        ({"num_classes": 4294967295}, "Number of priors must match number of confidence predictions."),
        ({"num_classes": 5}, "Number of priors must match number of confidence predictions."),
        ({"share_location": False}, "Number of priors must match number of location predictions."),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        build(text(DEFAULTS | changes), *(tuple(bottom.shape) for bottom in bottoms_for(DEFAULTS)))


def test_priors_without_area() -> None:
    loc, conf, prior = bottoms_for(DEFAULTS)
    prior[0, 0, 2] = prior[0, 0, 0]
    layer = build(text(DEFAULTS), *(tuple(bottom.shape) for bottom in (loc, conf, prior))).double()
    with refused("a prior has no width or no height"):
        run(layer, loc, conf, prior)
    with refused("bottom[2] must be priors (1, 2, 4 P); got (1, 2, 118)"):
        build(text(DEFAULTS), tuple(loc.shape), tuple(conf.shape), (1, 2, 118))


def test_a_run_that_is_resumed_writes_the_files_of_one_that_was_left_alone(tmp_path: Path) -> None:
    """Between two images, of which the first has been seen before the snapshot."""
    layer_text, (loc, conf, prior) = saved(tmp_path, "VOC")
    net = f"""layer {{ name: "in" type: "Input" top: "l" top: "c" top: "p" input_param {{
            shape {{ dim: [1, 12] }} shape {{ dim: [1, 9] }} shape {{ dim: [1, 2, 12] }} }} }}
        layer {{ name: "it" {layer_text} bottom: "l" bottom: "c" bottom: "p" top: "d" }}"""
    feeds = {"l": loc[:1], "c": conf[:1].contiguous(), "p": prior}

    def streams() -> Streams:
        return Streams(CaffeRandom(1), [Net(parse_net(net))], torch.device("cpu"))

    def files() -> dict[str, str]:
        return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}

    alone, resumed = streams(), streams()
    alone.nets[0](feeds)
    state = unpack(pack(alone.get_state()), "it")
    alone.nets[0](feeds)
    want = files()
    assert want["p_17.txt"].count("\n") == 4
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    resumed.set_state(state)
    resumed.nets[0](feeds)
    assert files() == want
    for key, value, message in (
        ("seen", 2, "the saved number of images is 2 of 2"),
        ("found", np.full((1, 7), 5.0), "not of the 1 images seen"),
        ("found", np.array([[0, 9.0, 1, 0, 0, 1, 1]]), "has the label 9"),
    ):
        damaged = copy.deepcopy(state)
        damaged["layers"][0]["it"][key] = value
        with pytest.raises(SnapshotError, match=message):
            resumed.set_state(damaged)
