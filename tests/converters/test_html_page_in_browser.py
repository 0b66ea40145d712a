"""The page of a model in Chromium, from the disk: its numbers are those of ONNX Runtime here.

It needs chromium, and npm's package onnxruntime-web in node_modules or where IMAE_ORT_WEB says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import ort_web
import pytest
import small_ssd
from chromium import Page, chromium, find_chromium
from numpy.typing import NDArray
from onnx import TensorProto, helper
from test_html_page import HOSTILE
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.html_page import write_page
from imae.converters.run_onnx import image_batches, model_preprocessing, open_session

NET = """
name: "digits" input: "data" input_dim: 1 input_dim: 1 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 10 weight_filler { type: "msra" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
STATUS = "document.getElementById('status').textContent"
SCORES = "Array.from(document.querySelectorAll('.classes li'), (item) => [item.dataset.index, {}])"


@pytest.fixture(scope="module")
def package() -> Path:
    folder = ort_web.real_package()
    if folder is None:
        pytest.skip("npm's package onnxruntime-web is not here; IMAE_ORT_WEB must name its folder")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no chromium, in which the page could be tried")
    with chromium(program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def expected(model: str, image: str) -> NDArray[np.float32]:
    """The output for an image, as `imae run` computes it."""
    session = open_session(model, threads=1)
    (feed,) = session.get_inputs()
    prepared = model_preprocessing(session, model)
    assert prepared is not None
    ((batch, _),) = image_batches([image], prepared, 1, feed.shape)
    result: NDArray[np.float32] = session.run(None, {feed.name: batch})[0]
    return result


def run(page: Page, path: Path, image: Path) -> str:
    """Open a page, choose an image in it; what its status then is."""
    page.open(path.absolute().as_uri())
    page.wait_for(f"{STATUS}.startsWith('Ready')")
    page.choose_file("#file", image.absolute())
    return str(page.wait_for(f"/^(Ran|Not)/.test({STATUS}) && {STATUS}"))


def add_names(path: str, names: dict[str, str]) -> bytes:
    """The model with class names; the file has them, too."""
    model = onnx.load(path)
    model.metadata_props.add(key="names", value=json.dumps(names))
    onnx.save(model, path)
    return Path(path).read_bytes()


def test_it_classifies_a_digit(package: Path, page: Page, here: Path) -> None:
    Path("net.prototxt").write_text(NET)
    command = ["export", "--model", "net.prototxt", "--output", "net.onnx", "--html", "page.html"]
    assert main([*command, "--ort-web", str(package), "--transform", "scale: 0.0039 mean_value: 30"]) == 0
    write_page(add_names("net.onnx", {"3": "three"}), "page.html", ort_web=package)
    cv2.imwrite("digit.png", np.random.default_rng(1).integers(0, 256, (20, 17), np.uint8))
    assert run(page, Path("page.html"), Path("digit.png")).startswith("Ran in")
    want = expected("net.onnx", "digit.png").ravel()
    rtol, atol, _ = tolerance("onnx")
    found = page.value(SCORES.format("Number(item.querySelector('data').value)"))
    assert [int(index) for index, _ in found] == np.argsort(-want)[:5].tolist()
    np.testing.assert_allclose([score for _, score in found], np.sort(want)[::-1][:5], rtol=rtol, atol=atol)
    for index, name in page.value(SCORES.format("item.querySelector('.name').textContent")):
        assert name == ("three" if index == "3" else f"class {index}")
    # It has asked for its runtime beside it and for nothing else, and nothing was refused or logged.
    addresses = [address for address in page.requested if not address.startswith("blob:")]
    assert addresses == [Path(name).absolute().as_uri() for name in ("page.html", "ort/onnxruntime-web.js")]
    assert page.logged == []
    assert page.value("fetch('page.html').then(() => 'fetched', () => 'refused')") == "refused"


def test_it_draws_the_boxes_of_an_ssd(package: Path, page: Page, here: Path) -> None:
    small_ssd.write_database(here / "test_lmdb", 1, 1)
    Path("net.prototxt").write_text(small_ssd.NET)
    Path("labelmap.prototxt").write_text("")
    assert main(["export", "--model", "net.prototxt", "--output", "ssd.onnx"]) == 0
    write_page(add_names("ssd.onnx", {"1": "red", "2": "green"}), "page.html", ort_web=package)
    record = small_ssd.record(np.random.default_rng(4))
    Path("image.png").write_bytes(record.datum.data)
    assert run(page, Path("page.html"), Path("image.png")).startswith("Ran in")
    page.value(
        "(() => { const slider = document.getElementById('threshold'); slider.value = 0;"
        " slider.dispatchEvent(new Event('input')); })()"
    )
    found = page.value(
        "Array.from(document.querySelectorAll('#answer tbody tr'), (row) =>"
        " Array.from(row.querySelectorAll('data'), (cell) => cell.value).join(' ').split(' ').map(Number))"
    )
    want = expected("ssd.onnx", "image.png").reshape(-1, 7)
    want = want[want[:, 1] >= 0][:, [2, 1, 3, 4, 5, 6]]
    assert len(want) > 5
    rtol, atol, _ = tolerance("onnx")
    rows = [
        np.array(sorted(values, key=lambda row: np.round(row, 3).tolist()))
        for values in (found, want.tolist())
    ]
    np.testing.assert_allclose(*rows, rtol=rtol, atol=atol)
    boxes = page.value(
        "Array.from(document.querySelectorAll('.box'), (box) =>"
        " [box.textContent, parseFloat(box.style.left), parseFloat(box.style.width)])"
    )
    assert len(boxes) == len(want)
    best = found[0]  # the list has the best first, the drawing it on top
    left, right = (min(max(100 * best[place], 0), 100) for place in (2, 4))
    text = f"{['', 'red', 'green'][int(best[1])]} {100 * best[0]:.1f} %"
    sides = pytest.approx([left, right - left], rel=tolerance("printed").rtol)
    assert boxes[-1][0] == text and boxes[-1][1:] == sides


def test_a_map_has_shares_and_an_image(package: Path, page: Page, here: Path) -> None:
    """The model gives the image back: each pixel has the class of its largest channel."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "pixels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"imae.transform_param": "", "names": '{"0": "blue"}'})
    write_page(model.SerializeToString(), "page.html", ort_web=package)
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[..., 0], pixels[0, :, 2] = 1, 9  # blue, but for a red row
    cv2.imwrite("image.png", pixels)
    assert run(page, Path("page.html"), Path("image.png")).startswith("Ran in")
    cells = "Array.from(document.querySelectorAll('#answer td'), (cell) => cell.textContent)"
    assert page.value(cells) == ["blue", "75.0 %", "class 2", "25.0 %"]
    colours = page.value(
        "Array.from(document.querySelector('.map').getContext('2d').getImageData(0, 0, 5, 4).data)"
    )
    want = np.zeros((4, 5, 4))
    want[..., 3], want[0, :, 1] = 255, 128  # VOC's class 0 is black, its class 2 dark green
    assert colours == want.ravel().tolist()


def test_transparent_parts_keep_their_colours(package: Path, page: Page, here: Path) -> None:
    """As with OpenCV; in a browser without WebGL the page says that it does not know them."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"imae.transform_param": ""})
    onnx.save(model, "net.onnx")
    write_page(model.SerializeToString(), "page.html", ort_web=package)
    cv2.imwrite("image.png", np.random.default_rng(3).integers(0, 256, (9, 7, 4), np.uint8))
    assert run(page, Path("page.html"), Path("image.png")).startswith("Ran in")
    if page.value("document.createElement('canvas').getContext('webgl')") is None:
        caption = page.value("document.getElementById('caption').textContent")
        assert caption.endswith("the colours of its transparent parts are not known exactly in this browser")
        return
    found = page.value(SCORES.format("Number(item.querySelector('data').value)"))
    rtol, atol, _ = tolerance("onnx")
    want = expected("net.onnx", "image.png").ravel()
    np.testing.assert_allclose([score for _, score in found], np.sort(want)[::-1], rtol=rtol, atol=atol)


def test_hostile_names_run_no_script(package: Path, page: Page, here: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], [HOSTILE[1]], name=HOSTILE[2], axes=[2, 3], keepdims=0)],
        HOSTILE[0],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(HOSTILE[1], TensorProto.FLOAT, [1, 3])],
        doc_string=HOSTILE[3],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    names = json.dumps(dict(enumerate(HOSTILE[3:])))
    helper.set_model_props(model, {"names": names, HOSTILE[4]: HOSTILE[5]})
    write_page(model.SerializeToString(), "page.html", ort_web=package, measured=[HOSTILE[5]])
    cv2.imwrite("image.png", np.full((4, 5, 3), (7, 9, 8), np.uint8))
    assert run(page, Path("page.html"), Path("image.png")).startswith("Ran in")
    assert page.value("globalThis.hacked") is None
    assert page.value("document.title") == HOSTILE[0]
    assert page.value("document.querySelector('#title').textContent") == HOSTILE[0]
    assert page.value("document.querySelectorAll('img, svg, b, main script').length") == 0
    shown = page.value(SCORES.format("item.querySelector('.name').textContent"))
    assert [name for _, name in shown] == [HOSTILE[4], HOSTILE[5], HOSTILE[3]]
    # The loud line about a model that does not say how its images are prepared.
    assert "does not say how its images are prepared" in page.value(
        "document.querySelector('.notice').textContent"
    )


def test_what_cannot_be_run_is_said(page: Page, here: Path) -> None:
    """A page without its runtime, and a file that is no image."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "flatten",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 48])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert write_page(model.SerializeToString(), "page.html") is None
    page.open(Path("page.html").absolute().as_uri())
    page.wait_for(f"{STATUS} === 'Not ready: ONNX Runtime is missing.'")
    notices = page.value("document.getElementById('notices').textContent")
    assert "there is no ort/onnxruntime-web.js beside this page" in notices
    Path("image.txt").write_text("none")
    page.choose_file("#file", Path("image.txt").absolute())
    page.wait_for(f"{STATUS} === 'Not run: “image.txt” is not an image that this browser can read.'")
