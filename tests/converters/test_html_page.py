"""The page of a model: what is in it, that a stranger's names are text there, how it prepares an image."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import ort_web
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tolerances import tolerance

from imae.cli.main import main
from imae.converters import html_page
from imae.converters.html_page import BINARY, LOADER, SCRIPT, find_ort_web, write_page
from imae.converters.page_facts import UNKNOWN, facts, preparation
from imae.converters.preprocessing import Preprocessing, from_metadata
from imae.converters.resize import resize_bilinear
from imae.converters.run_onnx import image_batches
from imae.files.errors import DataError, ExportError, FileError
from imae.prototxt import TransformationParameter
from imae.prototxt.text import parse_text

ROOT = Path(__file__).parents[2]
NODE = shutil.which("node")
NET = """
name: "small" input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 7 weight_filler { type: "msra" } } }
"""
EXPORT = ["export", "--model", "net.prototxt", "--output", "net.onnx"]
# What could end an element, begin a script, or be taken for a place of the template.
HOSTILE = (
    "</script><script>globalThis.hacked = 1</script>",
    "</title><img src=x onerror=hacked()>",
    "<!--<script>",
    "\u2028\u2029\u202e ' \" ` ${hacked()} \\",
    "{{model}}{{script}} &lt;b&gt;",
    "]]><svg/onload=hacked()>",
)


class Elements(HTMLParser):
    """The elements of a page: tag, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._ended = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self._ended = False

    def handle_endtag(self, tag: str) -> None:
        self._ended = True

    def handle_data(self, data: str) -> None:
        if self.found and not self._ended:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def texts(self, tag: str, **attributes: str) -> list[str]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [text for name, own, text in self.found if name == tag and wanted.items() <= own.items()]

    @property
    def facts(self) -> dict[str, Any]:
        (text,) = self.texts("script", id="facts")
        return dict(json.loads(text))

    @property
    def model(self) -> bytes:
        return b"".join(
            base64.b64decode(part, validate=True) for part in self.texts("script", class_="model")
        )


def read(path: str | Path) -> Elements:
    return Elements(Path(path).read_text(encoding="utf-8"))


def small_model(shape: tuple[int | str, ...] = ("batch", 3, 8, 8), **metadata: str) -> onnx.ModelProto:
    """y = Flatten(x), for an input of this shape."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"], name="flat")],
        "flatten",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def net(here: Path) -> Path:
    """An empty folder with net.prototxt."""
    Path("net.prototxt").write_text(NET)
    return here


def test_it_holds_the_model_byte_for_byte(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_page, "PART", 999)
    assert main([*EXPORT, "--html", "page.html", "--mean", "104,117,123"]) == 0
    page, model = read("page.html"), Path("net.onnx").read_bytes()
    assert page.model == model
    assert len(page.texts("script", class_="model")) == -(-len(model) // 999)
    shown = page.facts
    assert shown["sha256"] == hashlib.sha256(model).hexdigest() and shown["size"] == len(model)
    assert (shown["title"], shown["opset"], shown["problem"]) == ("small", 17, None)
    (warning,) = shown["warnings"]
    assert warning.startswith("No trained weights: conv, fc have the values of their fillers")
    assert shown["inputs"] == [{"name": "data", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert [layer["type"] for layer in shown["layers"]] == ["Conv", "Flatten", "Gemm"]
    assert [layer["parameters"] for layer in shown["layers"]] == [3 * 4 * 9 + 4, 0, 4 * 36 * 7 + 7]
    assert shown["layers"][0]["outputs"][0]["shape"] == ["batch", 4, 6, 6]
    assert shown["parameters"] == sum(layer["parameters"] for layer in shown["layers"])
    assert ["imae.input.mean", "104 117 123"] in shown["metadata"]
    assert "Subtract 104, 117, 123, one for each channel." in shown["steps"]
    (line,) = shown["measured"]
    assert re.match(r"The largest difference from the net's outputs is \d\S*, where the largest value", line)


def test_the_runtime_lies_beside_it(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = ort_web.write_package(net / "node_modules" / "onnxruntime-web")
    assert main([*EXPORT, "--html", "page.html", "--mean", "1"]) == 0
    assert "wrote page.html, which runs the model" in capsys.readouterr().out
    text = Path("ort", "onnxruntime-web.js").read_text(encoding="ascii")
    stored = json.loads(text.split("onnxruntimeWeb = ")[1].rstrip(";\n"))
    assert stored["version"] == "1.29.3"
    for key, name in (("loader", LOADER), ("wasm", BINARY)):
        assert gzip.decompress(base64.b64decode(stored[key])) == ort_web.CONTENTS[name]
    assert f"\n{ort_web.CONTENTS[SCRIPT].decode()}\n" in text
    # A later page finds it there, and needs no package.
    shutil.rmtree(package)
    assert main([*EXPORT, "--html", "other.html", "--mean", "1"]) == 0
    assert "wrote other.html, which runs the model" in capsys.readouterr().out
    assert sorted(path.name for path in net.iterdir() if path.name.startswith(".")) == []


def test_a_missing_runtime_is_said(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXPORT, "--html", "page.html", "--mean", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "cannot run the model yet" in last and "npm install onnxruntime-web" in last
    assert read("page.html").model == Path("net.onnx").read_bytes()
    assert not Path("ort").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "page.html", "--ort-web", "."], "'.' is not the folder of npm's package onnxruntime-web"),
        (["--html", "page.html", "--ort-web", "nowhere"], "it has no package.json; run npm install"),
        (["--ort-web", "nowhere"], "--ort-web is for the page of --html"),
        (["--html", "./net.onnx"], "--html and --output are both"),
        (["--html", "nowhere/page.html"], "there is no folder 'nowhere'"),
    ],
)
def test_options_that_cannot_be_right(
    net: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, the model neither."""
    assert main([*EXPORT, *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in net.iterdir()] == ["net.prototxt"]


def test_nothing_is_half_written(here: Path) -> None:
    """Where the runtime cannot be written, the old page stays; so it does for a model that is none."""
    package, model = ort_web.write_package(here / "package"), small_model().SerializeToString()
    Path("page.html").write_text("old")
    Path("ort").write_text("a file")
    with pytest.raises(FileError, match="cannot make the folder 'ort': File exists"):
        write_page(model, "page.html", ort_web=package)
    Path("ort").unlink()
    for version, message in (("[]", "states no version"), ('{"version": "1.24.3"}', "1.24.3, which cannot")):
        (package / "package.json").write_text(version)
        with pytest.raises(ExportError, match=message):
            write_page(model, "page.html", ort_web=package)
    with pytest.raises(FileError, match="there is no folder 'nowhere'"):
        write_page(model, "nowhere/page.html", ort_web=ort_web.write_package(package))
    for broken in (b"", b"no model", model[:-9]):
        with pytest.raises(ExportError, match="page of 'page': it is not an ONNX model"):
            write_page(broken, "page.html")
    assert sorted(path.name for path in here.iterdir()) == ["package", "page.html"]
    assert Path("page.html").read_text() == "old"
    assert find_ort_web() is None


def test_weights_in_another_file_are_refused(here: Path) -> None:
    model = small_model()
    weights = onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "w")
    model.graph.initializer.append(weights)
    onnx.save(model, "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ExportError, match="the model's weights are in another file"):
        write_page(Path("net.onnx").read_bytes(), "page.html")


def test_hostile_names_stay_text(here: Path) -> None:
    """Each name, wherever a model can have it, is one string of the page's JSON, and the title text."""
    model = small_model(**{"imae.transform_param": ""})
    graph, (title, node, feed, result, key, class_name) = model.graph, HOSTILE
    graph.name, graph.node[0].name, graph.doc_string = title, node, node
    model.producer_name = key
    for value, name in ((graph.input[0], feed), (graph.output[0], result)):
        value.name = name
    graph.node[0].input[0], graph.node[0].output[0] = feed, result
    helper.set_model_props(
        model,
        {"imae.transform_param": "", key: key, "names": json.dumps({"0": class_name})},
    )
    write_page(model.SerializeToString(), "page.html", measured=[title])
    page, plain = read("page.html"), small_model(**{"imae.transform_param": ""})
    write_page(plain.SerializeToString(), "plain.html")
    tags = [(tag, attributes) for tag, attributes, _ in page.found]
    assert [tag for tag, _ in tags] == [tag for tag, *_ in read("plain.html").found]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert page.texts("title") == [title]
    shown = page.facts
    assert (shown["title"], shown["layers"][0]["name"], shown["description"]) == (title, node, node)
    assert (shown["inputs"][0]["name"], shown["outputs"][0]["name"]) == (feed, result)
    assert [key, key] in shown["metadata"] and shown["producer"] == key and shown["measured"] == [title]
    assert shown["names"] == {"0": class_name}
    (text,) = page.texts("script", id="facts")
    assert not set("<>&\u2028\u2029") & set(text)


def test_the_policy_allows_its_own_script_and_nothing_else(here: Path) -> None:
    write_page(small_model().SerializeToString(), "page.html")
    text = Path("page.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{hashes[0]}' 'self' blob: 'wasm-unsafe-eval'",
        "style-src": f"'sha256-{hashes[1]}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.findall("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|https?:", script)


def test_a_model_that_does_not_say_how_images_are_prepared(here: Path) -> None:
    shown = facts(small_model().SerializeToString(), "x")
    assert shown["warnings"] == [UNKNOWN] and shown["problem"] is None
    assert shown["plan"]["channels"] == "BGR" and shown["plan"]["layout"] == "NCHW"
    shown = facts(small_model(("batch", 9, 8, 1)).SerializeToString(), "x")
    assert (shown["plan"]["channels"], shown["plan"]["layout"]) == ("GRAY", "NHWC")


@pytest.mark.parametrize(
    ("shape", "transform", "more", "problem"),
    [
        (("n", 3), "", {}, "with one input of images"),
        (("n", 1, 8, 8), "", {}, "prepares images of 3 channels; those of the input are 1"),
        (("n", 8, 8, 3), "", {"layout": "NHWC", "dtype": "uint8"}, "as uint8, and the input is float32"),
        (("n", 3, 8, 8), "mean_value: 1 mean_value: 2", {}, "has 2 means for 3 channels"),
        (("n", 3, 8, 8), "scale: inf", {}, "is not finite"),
        (("n", 3, 8, 8), "resize_param { height: 8 width: 8 pad_value: nan }", {}, "is not finite"),
    ],
)
def test_what_the_page_cannot_run(
    shape: tuple[int | str, ...], transform: str, more: dict[str, str], problem: str
) -> None:
    metadata = {"imae.transform_param": transform} | {f"imae.input.{key}": more[key] for key in more}
    shown = facts(small_model(shape, **metadata).SerializeToString(), "x")
    assert problem in shown["problem"] and shown["plan"] is None and shown["steps"] == []


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ("exclude_last_crop: true crop_size: 8", None),
        ("resize_param { height: 8 width: 8 interp_mode: LINEAR }", None),
        ("resize_param { height: 8 width: 8 interp_mode: [AREA, CUBIC] }", "interp_mode AREA, CUBIC"),
        ("noise_param { inverse: true }", "noise_param"),
        ("crop_h: 8", "crop_h or crop_w, one without the other"),
        (
            "resize_param { height: 8 width: 8 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_mode: MIRRORED }",
            "resize_param.pad_mode MIRRORED",
        ),
    ],
)
def test_steps_that_the_page_leaves_out_are_said(transform: str, words: str | None) -> None:
    shown = facts(small_model(**{"imae.transform_param": transform}).SerializeToString(), "x")
    if words is None:
        assert shown["warnings"] == []
    else:
        assert words in shown["warnings"][0] and shown["warnings"][0].endswith("its answers differ.")


def test_names_that_are_no_text() -> None:
    data = small_model(key="VALUE").SerializeToString()
    for name in (b"VALUE", b"flat", b"flatten", b"batch"):
        with pytest.raises(ExportError, match="page of 'x': it is not an ONNX model"):
            facts(data.replace(name, b"\xff" * len(name)), "x")


def test_damaged_metadata_is_an_error() -> None:
    model = small_model(**{"imae.transform_param": "", "imae.input.channels": "CMYK"})
    with pytest.raises(DataError, match=r"x: metadata: imae\.input\.channels must be one of"):
        facts(model.SerializeToString(), "x")


def test_what_a_model_says_of_itself() -> None:
    shown = facts(
        small_model(
            **{
                "imae.difference": '{"difference": 1e-06, "largest": 2.5, "batch_sizes": [1, 3]}',
                "imae.source.from_fillers": '["conv", "fc"]',
                "imae.size_step": "32",
                "imae.one_size": "64x96",
            }
        ).SerializeToString(),
        "x",
    )
    assert re.match(
        "The largest difference .* was 1e-06, where the largest value is 2.5", shown["measured"][0]
    )
    assert shown["warnings"][-1].startswith("No trained weights: conv, fc have the values of their fillers")
    assert "by a multiple of 32" in shown["advice"]
    broken = {"imae.difference": "[", "imae.source.from_fillers": "{}"}
    shown = facts(small_model(**broken).SerializeToString(), "x")
    assert shown["measured"] == [] and shown["warnings"] == [UNKNOWN]


@pytest.mark.parametrize("names", ["tench", "{0: 'tench'}", '{"0": 1}', "7", "[" * 100000])
def test_names_that_are_none(names: str) -> None:
    shown = facts(small_model(names=names).SerializeToString(), "x")
    assert shown["names"] == {} and shown["warnings"][-1].startswith("The classes have numbers only: ")


def test_a_list_of_names() -> None:
    assert facts(small_model(names='["a", "b"]').SerializeToString(), "x")["names"] == {"0": "a", "1": "b"}


# -- how an image is prepared: prepare.js beside Python ------------------------------------------------------

MEAN = np.random.default_rng(5).uniform(90, 130, (3, 10, 12)).astype(np.float32)
# A transform_param, other arguments of Preprocessing, the input's shape, the image's height and width.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int | str, ...], tuple[int, int]]] = {
    "as it is": ("", {}, ("n", 3, 9, 7), (9, 7)),
    "smaller": ("scale: 0.017 mean_value: [104, 117.5, 123]", {}, ("n", 3, 9, 7), (37, 50)),
    "half": ("", {}, ("n", 3, 16, 20), (32, 40)),
    "larger": ("mean_value: 80", {"channels": "RGB"}, ("n", 3, 40, 33), (8, 13)),
    "one pixel": ("", {}, ("n", 3, 5, 4), (1, 1)),
    "gray": ("scale: 0.00390625", {"channels": "GRAY"}, ("n", 1, 8, 8), (30, 21)),
    "resize and crop": ("crop_size: 7", {"resize": (12, 10)}, ("n", 3, 7, 7), (20, 31)),
    "mean image": ("crop_size: 7 scale: 0.5", {"mean_image": MEAN}, ("n", 3, 7, 7), (10, 12)),
    "the authors' crop": ("crop_size: 6 exclude_last_crop: true", {"resize": (8, 8)}, ("n", 3, 6, 6), (8, 8)),
    "two sides": ("crop_h: 6 crop_w: 9", {"resize": (11, 10)}, ("n", 3, 6, 9), (11, 10)),
    "free": ("mean_value: 1", {}, ("n", 3, "h", "w"), (13, 8)),
    "SSD": ("resize_param { height: 12 width: 12 } mean_value: 3", {}, ("n", 3, 12, 12), (31, 40)),
    "covers, wide": (
        "resize_param { height: 12 width: 10 resize_mode: FIT_SMALL_SIZE } crop_h: 12 crop_w: 10",
        {}, ("n", 3, 12, 10), (31, 47),
    ),
    "covers, high": (
        "resize_param { height: 12 width: 10 resize_mode: FIT_SMALL_SIZE } crop_h: 12 crop_w: 10",
        {}, ("n", 3, 12, 10), (53, 22),
    ),
    "fits, wide": (
        "resize_param { height: 12 width: 10 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 127.5 }",
        {}, ("n", 3, 12, 10), (20, 47),
    ),
    "fits, high": (
        "resize_param { height: 12 width: 10 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: [1, 2, 3] }",
        {}, ("n", 3, 12, 10), (53, 22),
    ),
}  # fmt: skip


def pixels_of(name: str) -> NDArray[np.uint8]:
    """A case's image (H, W, 3), BGR."""
    generator = np.random.default_rng(list(CASES).index(name))
    return generator.integers(0, 256, (*CASES[name][3], 3), np.uint8)


def prepared_by(name: str) -> Preprocessing:
    """A case's preparation, as it comes out of a model's metadata."""
    transform, more, *_ = CASES[name]
    made = from_metadata(
        Preprocessing(parse_text(transform, TransformationParameter, name), **more).metadata(), name
    )
    assert made is not None
    return made


def in_javascript(cases: Mapping[str, dict[str, Any]], function: str) -> dict[str, dict[str, Any]]:
    """The results of a function (rgba, height, width, plan) of JavaScript for each case."""
    if NODE is None:
        pytest.skip("there is no node, which runs the page's script without a browser")
    program = f"""
        {(ROOT / "converters/web/prepare.js").read_text(encoding="utf-8")}
        const run = {function};
        const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
        const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
        for (const [name, made] of Object.entries(cases)) {{
            const mean = made.plan?.mean_image;
            if (mean) mean.data = new Float32Array(bytes(mean.data).buffer);
            const result = run(bytes(made.rgba), made.height, made.width, made.plan);
            cases[name] = {{ ...result, data: Buffer.from(result.data.buffer).toString("base64") }};
        }}
        console.log(JSON.stringify(cases));
    """
    done = subprocess.run(
        [NODE, "-e", program], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def case(pixels: NDArray[np.uint8], plan: dict[str, Any] | None) -> dict[str, Any]:
    """An image (H, W, 3), BGR, as a canvas has it, and a plan."""
    height, width, _ = pixels.shape
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGBA).tobytes()
    return {"rgba": base64.b64encode(rgba).decode(), "height": height, "width": width, "plan": plan}


INPUT = """(rgba, height, width, plan) => {
    const made = prepare.modelInput(prepare.fromCanvas(rgba, height, width, plan.channels), plan);
    return { data: made.data, dims: made.dims, window: made.window };
}"""


@pytest.fixture(scope="module")
def by_the_page() -> dict[str, dict[str, Any]]:
    """What prepare.js makes of each case."""
    plans = {name: preparation(prepared_by(name), list(CASES[name][2])) for name in CASES}
    return in_javascript({name: case(pixels_of(name), plan) for name, plan in plans.items()}, INPUT)


@pytest.mark.parametrize("name", CASES)
def test_the_page_prepares_an_image_as_run_does(
    name: str, by_the_page: dict[str, dict[str, Any]], here: Path
) -> None:
    """Without a resizing bit for bit, after it within a grey level."""
    _, _, shape, _ = CASES[name]
    cv2.imwrite("image.png", pixels_of(name))
    prepared = prepared_by(name)
    ((want, _),) = image_batches(["image.png"], prepared, 1, shape)
    made = by_the_page[name]
    assert made["dims"] == list(want.shape)
    found = np.frombuffer(base64.b64decode(made["data"]), "<f4").reshape(want.shape)
    if preparation(prepared, list(shape))["resize"] in (None, {"mode": "WARP", "pad": [], **size(name)}):
        np.testing.assert_array_equal(found, want)
    else:
        level = 255 * tolerance("grey level", "uint8").atol * prepared.transform.scale
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=level)


def size(name: str) -> dict[str, int]:
    height, width = CASES[name][3]
    return {"height": height, "width": width}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("smaller", (0, 0, 37, 50)),
        # Rows 2 to 9 of 12, columns 1 to 8 of 10.
        ("resize and crop", (2 * 20 / 12, 1 * 31 / 10, 7 * 20 / 12, 7 * 31 / 10)),
        # 4 rows of 12, below 4 of padding, are the whole image.
        ("fits, wide", (-4 * 20 / 4, 0, 12 * 20 / 4, 47)),
    ],
)
def test_boxes_are_drawn_where_the_model_saw_them(
    name: str, want: tuple[float, ...], by_the_page: dict[str, dict[str, Any]]
) -> None:
    window = by_the_page[name]["window"]
    np.testing.assert_allclose([window[side] for side in ("top", "left", "height", "width")], want)


def test_bytes_for_a_model_that_prepares_images_itself() -> None:
    pixels = pixels_of("smaller")
    own = Preprocessing(TransformationParameter(), channels="RGB", layout="NHWC", dtype="uint8")
    made = in_javascript({"": case(pixels, preparation(own, ["n", 9, 7, 3]))}, INPUT)[""]
    assert made["dims"] == [1, 9, 7, 3]
    found = np.frombuffer(base64.b64decode(made["data"]), np.uint8).reshape(9, 7, 3)
    want = resize_bilinear(pixels, 9, 7)[:, :, ::-1]
    assert np.abs(found.astype(int) - want).max() <= 255 * tolerance("grey level", "uint8").atol


def test_gray_is_that_of_opencv(here: Path) -> None:
    """As OpenCV reads a BMP; it rounds otherwise for a PNG, and a JPEG has a gray of its own."""
    pixels = pixels_of("half")
    function = """(rgba, height, width) => ({
        data: prepare.fromCanvas(rgba, height, width, "GRAY").pixels,
    })"""
    made = in_javascript({"": case(pixels, None)}, function)[""]
    found = np.frombuffer(base64.b64decode(made["data"]), np.uint8).reshape(pixels.shape[:2])
    for ending in (".bmp", ".png"):
        cv2.imwrite(f"image{ending}", pixels)
        want = cv2.imread(f"image{ending}", cv2.IMREAD_GRAYSCALE)
        assert np.abs(found.astype(int) - want).max() <= 255 * tolerance("grey level", "uint8").atol
