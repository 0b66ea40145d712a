"""`imae run` on images: what it finds, prepares, prints and writes.

Models are made here, operator by operator. That of most tests gives the mean of each channel, so that an
image of one colour has its class.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from imae.cli.main import main
from imae.converters.labels import read_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.measures import Measures, confusion_csv, confusion_lines, summary_lines
from imae.converters.predict import ImageModel, Kind, open_model
from imae.converters.preprocessing import make_preprocessing, read_transform
from imae.converters.run_sources import ImageFile, find_images, folder_labels
from imae.files.errors import DataError
from imae.layers.data.datum import datum_from_array

COLOURS = {"blue": (200, 0, 10), "green": (20, 190, 0), "red": (0, 30, 210)}  # BGR
NAMES = json.dumps({str(label): name for label, name in enumerate(COLOURS)})
PLAIN = "imae.transform_param"
MEANS = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["y"])]
FREE: list[Any] = ["n", 3, "h", "w"]
SIZED: list[Any] = ["n", 3, 6, 8]


def save_model(
    path: str,
    nodes: Sequence[NodeProto],
    shape: Sequence[Any] = SIZED,
    outputs: dict[str, list[Any]] | None = None,
    metadata: dict[str, str] | None = None,
    constants: dict[str, Any] | None = None,
    more_inputs: Sequence[str] = (),
) -> None:
    """A model from x to its outputs, by default y (n, 3)."""
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in more_inputs),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
            for name, sides in (outputs or {"y": ["n", 3]}).items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {PLAIN: ""} if metadata is None else metadata)
    onnx.save(model, path)


def save_detector(path: str, rows: Sequence[Sequence[float]], **options: Any) -> None:
    """A model whose output is these rows, whatever the image is."""
    nodes = [helper.make_node("Identity", ["rows"], ["y"])]
    constants = {"rows": np.array(rows, np.float32).reshape(1, 1, -1, 7)}
    save_model(path, nodes, outputs={"y": [1, 1, "k", 7]}, constants=constants, **options)


def save_image(path: str, colour: Sequence[int], height: int = 6, width: int = 8) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, np.full((height, width, 3), colour, np.uint8))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.onnx, which has names, and img: a class folder with two images for each colour."""
    monkeypatch.chdir(tmp_path)
    save_model("net.onnx", MEANS, metadata={PLAIN: "", "names": NAMES})
    for name, colour in COLOURS.items():
        for number in range(2):
            save_image(f"img/{name}/{number}.png", colour)
    return tmp_path


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on the standard output of a run that succeeds."""
    capsys.readouterr()
    assert main(["run", *arguments, "--threads", "1"]) == 0
    return capsys.readouterr().out.splitlines()


def rows_of(path: str) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a run that fails."""
    capsys.readouterr()
    assert main(["run", *arguments, "--threads", "1"]) == 2
    return capsys.readouterr().err.splitlines()[-1]


# -- what is printed of classes ------------------------------------------------------------------------------


def test_a_model_of_one_channel_gets_gray_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing says how images are prepared they were gray, and called BGR."""
    save_model("net.onnx", MEANS, [1, 1, 6, 8], {"y": [1, 1]}, metadata={})
    assert output_of(capsys, "net.onnx", "img/red/0.png")[0] == (
        "images: resized to 6x8 (the input's size), GRAY 0..255"
    )


def test_an_image_gets_its_best_classes_with_names_and_scores(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """first_use M4: `class 7` was all; of two images it printed a speed."""
    assert output_of(capsys, "net.onnx", "img/red/0.png", "img/blue/0.png") == [
        "images: resized to 6x8 (the input's size), BGR 0..255",
        "output 'y', (N, 3): scores as the model gives them, no probabilities (--softmax makes them such)",
        'img/red/0.png: 210.0000 - "red", 30.0000 - "green", 0.0000 - "blue"',
        'img/blue/0.png: 200.0000 - "blue", 10.0000 - "red", 0.0000 - "green"',
    ]
    one = 'img/red/0.png: 210.0000 - "red"'
    for order in (
        ["net.onnx", "--top", "1", "--images", "img/red/0.png"],
        ["net.onnx", "--top", "1", "img/red/0.png"],
        ["--top=1", "net.onnx", "img/red/0.png"],
        ["net.onnx", "img/red/0.png", "-top", "1"],
    ):
        assert output_of(capsys, *order)[-1] == one


def test_names_come_from_a_file_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("bare.onnx", MEANS)
    assert output_of(capsys, "bare.onnx", "img/red/0.png")[-1].startswith(
        "img/red/0.png: 210.0000 - class 2, "
    )
    files = {
        "words.txt": "n01 sky, blue sky\nn02 grass\nn03 fire\n",
        "map.prototxt": 'item { name: "a" label: 0 } item { name: "n3" label: 2 display_name: "n03 fire" }',
        "list.json": '["a", "b", "n03 fire"]',
        "names.json": '{"2": "n03 fire"}',
    }
    for name, text in files.items():
        Path(name).write_text(text)
        line = output_of(capsys, "bare.onnx", "img/red/0.png", "--labels", name, "--top", "1")[-1]
        assert line == 'img/red/0.png: 210.0000 - "n03 fire"'
    Path("four.txt").write_text("a\nb\nc\nd\n")
    line = refused(capsys, "bare.onnx", "img/red/0.png", "--labels", "four.txt")
    assert "--labels has names for 4 classes, output 'y' has 3" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a name in each line"),
        (b"\xff\xfe", "labels must be UTF-8; save the file as UTF-8"),
        (b'{"a": "b"}', "must be JSON, a name for each class"),
        (b'{"0": 1}', "must be JSON, a name for each class"),
        (b'{"-1": "b"}', "must be JSON, a name for each class"),
        (b"[" * 100_000, "must be JSON, a name for each class"),
        (b"item { nam: 1 }", 'did you mean "name"'),
        (None, "cannot read the labels 'names'"),
    ],
)
def test_names_that_are_none(here: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        Path("names").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labels("names")


def test_damaged_names_of_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("bad.onnx", MEANS, metadata={PLAIN: "", "names": "[1]"})
    assert "bad.onnx: metadata: names must be JSON" in refused(capsys, "bad.onnx", "img/red/0.png")


def test_probabilities_are_called_so_and_softmax_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    softmax = helper.make_node("Softmax", ["z"], ["y"], axis=1)
    scaled = [
        *MEANS[:1],
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Mul", ["f", "s"], ["z"]),
    ]
    constants = {"s": np.float32(0.01)}
    save_model("prob.onnx", [*scaled, softmax], constants=constants)
    lines = output_of(capsys, "prob.onnx", "img/red/0.png")
    assert lines[1] == "output 'y', (N, 3): probabilities"
    powers = np.exp(np.array(COLOURS["red"]) / 100)
    assert lines[2].startswith(f"img/red/0.png: {powers[2] / powers.sum():.4f} - class 2, ")
    assert "--softmax: output 'y' holds probabilities already" in refused(
        capsys, "prob.onnx", "img/red/0.png", "--softmax"
    )
    save_model("logit.onnx", scaled, outputs={"z": ["n", 3]}, constants=constants)
    soft = output_of(capsys, "logit.onnx", "img/red/0.png", "--softmax")
    assert soft[1] == "output 'z', (N, 3): the softmax of the model's scores" and soft[2] == lines[2]


def test_scores_that_are_no_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is the worst class, and null in JSON."""
    constants = {"nan": np.array([np.nan, 1, 1], np.float32)}
    nodes = [
        *MEANS[:1],
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Mul", ["f", "nan"], ["y"]),
    ]
    save_model("nan.onnx", nodes, constants=constants)
    lines = output_of(capsys, "nan.onnx", "img/red/0.png", "--json", "r.json")
    assert lines[-1] == "img/red/0.png: 210.0000 - class 2, 30.0000 - class 1, nan - class 0"
    assert json.loads(Path("r.json").read_text())["images"][0]["classes"][2]["score"] is None


# -- how images are prepared ---------------------------------------------------------------------------------

PREPARED = [
    (
        "crop_size: 6",
        [],
        "resized to 6x6 (the model does not say from which size it was cropped), BGR 0..255",
    ),
    ("crop_size: 6", ["--resize", "9x12"], "resized to 9x12, BGR 0..255, cropped to 6x6 from the centre"),
    ("scale: 0.5 mean_value: 7", [], "resized to 6x6 (the input's size), BGR 0..255, minus 7, times 0.5"),
    ("resize_param { height: 6 width: 6 }", [], "resized to 6x6 (WARP), BGR 0..255"),
    ("", ["--channels", "RGB"], "resized to 6x6 (the input's size), RGB 0..255"),
]


@pytest.mark.parametrize(("transform", "options", "line"), PREPARED)
def test_it_says_how_images_are_prepared(
    here: Path, capsys: pytest.CaptureFixture[str], transform: str, options: list[str], line: str
) -> None:
    """first_use M2: images were cropped or resized without a word."""
    save_model("net.onnx", MEANS, ["n", 3, 6, 6], metadata={PLAIN: transform})
    assert output_of(capsys, "net.onnx", "img/red/0.png", *options)[0] == f"images: {line}"


def test_images_of_any_size_where_the_model_takes_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in its own size; those of one size share a batch."""
    save_model("free.onnx", MEANS, FREE)
    save_image("wide.png", (1, 2, 3), 5, 50)
    paths = ["img/red/0.png", "img/blue/0.png", "wide.png"]
    lines = output_of(capsys, "free.onnx", *paths, "--top", "1")
    assert lines[0] == "images: BGR 0..255"
    assert [line.split(" ")[1] for line in lines[2:]] == ["210.0000", "200.0000", "3.0000"]
    model = open_model("free.onnx", threads=1)
    assert len(list(model.predict(map(ImageFile, paths)))) == 3
    assert [count for count, _ in model.seconds] == [2, 1]


def test_images_are_run_in_batches(here: Path) -> None:
    """The last one of a model with a fixed batch is filled up."""
    paths = [str(path) for path in sorted(Path("img").rglob("*.png"))][:5]
    save_model("two.onnx", MEANS, [2, 3, 6, 8], outputs={"y": [2, 3]})
    values = []
    for name, size, counts in (("net.onnx", 3, [3, 2]), ("two.onnx", 128, [2, 2, 1])):
        model = open_model(name, threads=1, batch_size=size)
        values.append([prediction.values for prediction in model.predict(map(ImageFile, paths))])
        assert [count for count, _ in model.seconds] == counts
    np.testing.assert_array_equal(*values)


# -- which images --------------------------------------------------------------------------------------------


def paths_of(*arguments: str, **options: Any) -> list[str]:
    return [image.path for image in find_images(arguments, **options).images]


def test_files_folders_patterns_and_lists(here: Path) -> None:
    """first_use M4: `--images img_test/cat` was an error of another command."""
    for name in ("notes.md", ".hidden.png", "net.caffemodel"):
        Path("img/red", name).write_bytes(b"x")
    save_image("img/red/more/x.JPG", (0, 0, 0))
    assert paths_of("img/red") == ["img/red/0.png", "img/red/1.png", "img/red/more/x.JPG"]
    assert paths_of("img/*/1.png") == ["img/blue/1.png", "img/green/1.png", "img/red/1.png"]
    assert paths_of("img/**/*.JPG", "img/red/0.png") == ["img/red/more/x.JPG", "img/red/0.png"]
    assert paths_of("img/[br]*") == paths_of("img/blue", "img/red")
    Path("lists").mkdir()
    Path("lists/a.txt").write_bytes(b"img/red/0.png 2\r\n\nimg/a b.png 0\nimg/green/1.png\n")
    save_image("img/a b.png", (0, 0, 0))
    found = find_images(["lists/a.txt"], root_folder=".").images
    assert [(image.path, image.label) for image in found] == [
        ("./img/red/0.png", 2),
        ("./img/a b.png", 0),
        ("./img/green/1.png", None),
    ]
    Path("lists/b.lst").write_text("../img/red/0.png 2\n")
    assert paths_of("lists/b.lst") == ["lists/../img/red/0.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["img/rde"], "there is no image, folder or list 'img/rde'; did you mean red?"),
        (["imgs/red"], "there is no image, folder or list 'imgs/red'; there is no folder 'imgs'"),
        (["img/*.jpg"], "no file matches 'img/*.jpg'"),
        (["empty"], "there are no images (.bmp, "),
        (["empty.txt"], "the list 'empty.txt' is empty"),
        (["lost.txt"], "the list 'lost.txt': there is no 'a.png', nor another of its 2 images; give --root"),
        (["zero.txt"], "zero.txt:1: there is a zero byte"),
        (["huge.txt"], "the list 'huge.txt' has 4294967296 bytes; at most 268435456 are read"),
        (["img.txt"], "the list 'img.txt': expected lines of a path and a label; it is"),
    ],
)
def test_images_that_are_not_there(here: Path, arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n")
    Path("lost.txt").write_text("a.png 1\nb.png 2\n")
    Path("zero.txt").write_text("a\0.png 1\n")
    with open("huge.txt", "wb") as file:
        file.truncate(1 << 32)  # no disk is used
    Path("img.txt").write_bytes(Path("img/red/0.png").read_bytes())
    with pytest.raises(DataError, match=re.escape(message)):
        find_images(arguments)


def test_a_file_that_is_no_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stops the run by its own error, or is skipped and counted."""
    Path("img/green/bad.png").write_text("not an image")
    line = refused(capsys, "net.onnx", "img")
    assert "img/green/bad.png: could not decode the 12 bytes" in line
    Path("list.txt").write_text("img/red/0.png 2\nimg/red/9.png 2\n")
    line = refused(capsys, "net.onnx", "list.txt")
    assert (
        "cannot read the image 'img/red/9.png': No such file or directory; --skip-bad leaves it out" in line
    )
    lines = output_of(capsys, "net.onnx", "img", "none.png", "--skip-bad", "--json", "r.json")
    place = lines.index("skipped 2 of 8 images, which cannot be read:")
    assert "bad.png" in lines[place + 1] and "none.png" in lines[place + 2]
    assert lines[place + 3] == "accuracy = 1 on 6 images"
    content = json.loads(Path("r.json").read_text())
    assert len(content["images"]) == 6
    assert [entry["image"] for entry in content["skipped"]] == ["img/green/bad.png", "none.png"]
    assert "none of the images can be read" in refused(capsys, "net.onnx", "none.png", "--skip-bad")


def test_what_to_run_on_must_be_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["img", "--lmdb", "x"]):
        assert "run: give images (files, folders, lists), or one LMDB" in refused(
            capsys, "net.onnx", *arguments
        )


# -- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "names", "classes", "labels", "note"),
    [
        (["blue", "red"], ["sky", "Blue", "n01234567 tomato, red"], 3, [1, 2], "by the names of 2 class"),
        (["n01234567"], ["sky", "n01234567 tomato"], 2, [1], "by the names of 1 class folders"),
        (["great_tit"], ["sky", "Great Tit"], 2, [1], "by the names of 1 class folders"),
        (
            ["crane", "sky"],
            ["sky", "crane, bird", "crane, machine"],
            3,
            [None, 0],
            "no class is called crane",
        ),
        (["a", "b"], [], 2, [0, 1], "labels: by the sorted names of the 2 class folders: 0 a, 1 b"),
        (["a", "b"], [], None, [0, 1], "labels: by the sorted names"),
        (
            ["a", "b"],
            [],
            3,
            [None, None],
            "no labels: the folders a, b are no names of classes, and the model",
        ),
        (["a", "b"], ["x", "y", "z"], 3, [None, None], "no labels: the folders a, b are no names"),
        (["10", "9"], [], 20, [10, 9], "labels: the class folders' numbers, 10, 9"),
        (["00", "01"], [], 2, [0, 1], "labels: the class folders' numbers, 00, 01"),
    ],
)
def test_labels_of_class_folders(
    folders: list[str], names: list[str], classes: int | None, labels: list[int | None], note: str
) -> None:
    got, line = folder_labels(folders, dict(enumerate(names)), classes)
    assert [got.get(folder) for folder in folders] == labels and note in line


def test_folders_whose_labels_are_ambiguous() -> None:
    folders = sorted(map(str, range(12)))
    with pytest.raises(DataError, match="are numbers, and their order by name gives other labels"):
        folder_labels(folders, {}, 12)


def test_class_folders_give_the_accuracy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """first_use M4: no per-class accuracy, no confusion matrix."""
    save_image("img/red/like_blue.png", COLOURS["blue"])
    lines = output_of(capsys, "net.onnx", "img", "--top", "1", "--confusion", "--confusion-csv", "c.csv")
    assert lines[1] == "labels: by the names of 3 class folders"
    assert lines[-11:] == [
        'img/red/like_blue.png (label "red"): 200.0000 - "blue"',
        "accuracy = 0.857143 on 7 images",
        "class    images  recall  precision",
        "0 blue        2  1.0000     0.6667",
        "1 green       2  1.0000     1.0000",
        "2 red         3  0.6667     1.0000",
        "confusion: a row for each label, a column for each class that images were taken for",
        "  0 1 2",
        "0 2 0 0",
        "1 0 2 0",
        "2 1 0 2",
    ]
    assert Path("c.csv").read_text() == "label,blue,green,red\nblue,2,0,0\ngreen,0,2,0\nred,1,0,2\n"


def test_a_label_of_no_class(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("img/red/0.png 2\nimg/red/1.png 3\n")
    line = refused(capsys, "net.onnx", "list.txt", "--json", "r.json")
    assert "'img/red/1.png' has the label 3; the model has 3 classes, 0 to 2" in line
    assert not Path("r.json").exists()


def test_an_lmdb(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its accuracy has the line that it always had; a folder with a data.mdb is an LMDB."""
    images = [np.full((6, 8, 3), colour, np.uint8).transpose(2, 0, 1) for colour in COLOURS.values()]
    write_lmdb("lmdb", ((b"%04d" % i, datum_from_array(images[i % 3], i % 2)) for i in range(6)))
    lines = output_of(capsys, "net.onnx", "lmdb", "--csv", "r.csv", "--top", "1")
    assert lines[0] == "records: BGR 0..255" and lines[2] == "accuracy = 0.333333 on 6 images"
    assert output_of(capsys, "net.onnx", "--lmdb", "lmdb") == lines
    rows = rows_of("r.csv")
    assert [(row["image"], row["label"], row["class"]) for row in rows[:2]] == [
        ("0000", "0", "0"),
        ("0001", "1", "1"),
    ]
    write_lmdb("bad", ((b"%04d" % i, datum_from_array(images[i], i + 1)) for i in range(3)))
    assert "'0002' has the label 3" in refused(capsys, "net.onnx", "bad")


def many_classes() -> Measures:
    """100 classes with ten images each; class 7 is taken for 8 four times, class 50 once for 51."""
    measures = Measures(100)
    for label in range(100):
        for number in range(10):
            best = label + (label == 7 and number < 4) + (label == 50 and number < 1)
            measures.add(label, np.array([best, (best + 99) % 100, 0]), "x")
    return measures


def test_many_classes_show_the_worst() -> None:
    measures = many_classes()
    names = {
        label: f"n{label:08} a class with a name that is as long as one of ImageNet, or so"
        for label in range(100)
    }
    lines = [*summary_lines(measures, names), *confusion_lines(measures, names)]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "accuracy = 0.995 on 1000 images" and lines[1] == "top-5 accuracy: 1"
    assert lines[2] == "the 10 classes with the lowest recall, of 100:"
    assert lines[4].startswith("7 n00000007 a class") and lines[4].endswith("      10  0.6000     1.0000")
    assert lines[-3] == "the most frequent of 2 confusions, label -> class: images"
    assert [line[-8:] for line in lines[-2:]] == [" 4 of 10", " 1 of 10"]
    assert len(confusion_csv(measures, {}).splitlines()) == 101
    assert len(confusion_lines(few_classes(), {})) == 8


def few_classes() -> Measures:
    measures = Measures(6)
    for label in range(6):
        measures.add(label, np.arange(6), "x")
    return measures


def test_classes_without_images() -> None:
    measures = Measures(6)
    measures.add(4, np.array([5, 4, 3, 2, 1]), "x")
    lines = summary_lines(measures, {})
    assert lines[1] == "top-5 accuracy: 1"
    assert lines[3:] == ["4           1  0.0000          -", "5           0       -     0.0000"]
    assert Measures(5).top_accuracy is None


def test_a_confusion_matrix_needs_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a confusion matrix needs labels" in refused(capsys, "net.onnx", "img/red/0.png", "--confusion")


# -- boxes ---------------------------------------------------------------------------------------------------

ROWS = [
    [0, 2, 0.9, 0.25, 0.5, 0.75, 1.0],
    [0, 1, 0.4, 0.0, 0.0, 0.5, 0.5],
    [0, 1, 0.95, -0.5, 0.0, 0.5, 0.5],
]


def test_boxes_are_in_pixels_of_the_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """first_use M4, docs/forks.md: `imae run` prints classes, not boxes."""
    save_detector("ssd.onnx", ROWS, metadata={PLAIN: "", "names": NAMES})
    save_image("street.png", (0, 0, 0), 60, 200)
    lines = output_of(capsys, "ssd.onnx", "street.png")
    assert lines[1:] == [
        "output 'y', (1, 1, N, 7): boxes with a score of 0.5 or more: label, score, then xmin, ymin, "
        "xmax and ymax in pixels of the image",
        'street.png: "green" 0.9500 0.0 0.0 100.0 30.0',
        'street.png: "red" 0.9000 50.0 30.0 150.0 60.0',
    ]
    assert len(output_of(capsys, "ssd.onnx", "street.png", "--threshold", "0.4")) == 5
    assert output_of(capsys, "ssd.onnx", "street.png", "--threshold", "1")[-1] == (
        "street.png: no box with a score of 1 or more"
    )
    # A folder is no class here.
    assert output_of(capsys, "ssd.onnx", "img")[2].startswith('img/blue/0.png: "green" 0.9500')


def test_nothing_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector("ssd.onnx", [[0, -1, -1, -1, -1, -1, -1]])
    lines = output_of(capsys, "ssd.onnx", "img/red/0.png", "--threshold", "0", "--csv", "r.csv")
    assert lines[-1] == "img/red/0.png: no box with a score of 0 or more"
    assert Path("r.csv").read_text().splitlines()[1] == "img/red/0.png,,,,,,,"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 1, np.nan, 0, 0, 1, 1], "is NaN or infinite"),
        ([0, 0.5, 1, 0, 0, 1, 1], "are no boxes: label 0.5"),
    ],
)
def test_rows_that_are_no_boxes(
    here: Path, capsys: pytest.CaptureFixture[str], row: list[float], message: str
) -> None:
    save_detector("ssd.onnx", [row])
    assert message in refused(capsys, "ssd.onnx", "img/red/0.png")


def test_boxes_are_drawn_beside_the_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector("ssd.onnx", ROWS[:1], metadata={PLAIN: "", "names": NAMES})
    save_image("a/x.png", (10, 20, 30), 120, 200)
    save_image("b/x.png", (10, 20, 30), 120, 200)
    save_image("c/deep/y.bmp", (10, 20, 30), 120, 200)
    before = Path("a/x.png").read_bytes()
    lines = output_of(capsys, "ssd.onnx", "a/x.png", "b/x.png", "c", "a/x.png", "--draw", "out")
    assert lines[-1] == "drew 4 images into out"  # one of them twice
    assert sorted(str(path) for path in Path("out").rglob("*.*")) == [
        "out/deep/y.png",
        "out/x.png",
        "out/x_2.png",
    ]
    drawn = np.asarray(cv2.imread("out/x.png"))
    changed = np.argwhere((drawn != (10, 20, 30)).any(-1))
    assert changed.min(0).tolist() < [60, 50] and changed.max(0).tolist() == [119, 150]
    line = np.unique(drawn[70:110, 50], axis=0)  # the box's left side has one colour
    assert len(line) == 1 and line[0].tolist() != [10, 20, 30]
    assert (drawn[80:100, 60:140] == (10, 20, 30)).all()
    assert Path("a/x.png").read_bytes() == before


@pytest.mark.parametrize(("images", "folder"), [(["a/x.png"], "a"), (["a"], "a"), (["link/x.png"], "a")])
def test_drawings_never_replace_images(
    here: Path, capsys: pytest.CaptureFixture[str], images: list[str], folder: str
) -> None:
    save_detector("ssd.onnx", ROWS[:1])
    save_image("a/x.png", (10, 20, 30))
    Path("link").symlink_to("a")
    before = Path("a/x.png").read_bytes()
    assert "is one of the images, which are not changed" in refused(
        capsys, "ssd.onnx", *images, "--draw", folder
    )
    assert Path("a/x.png").read_bytes() == before


def test_a_list_leads_no_drawing_elsewhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector("ssd.onnx", ROWS[:1])
    save_image("other/z.png", (10, 20, 30))
    Path("deep").mkdir()
    Path("deep/list.txt").write_text(f"../other/z.png 0\n{Path('other/z.png').absolute()} 0\n")
    output_of(capsys, "ssd.onnx", "deep/list.txt", "--draw", "deep/out")
    assert sorted(str(path) for path in Path(".").rglob("z*.png")) == [
        "deep/out/z.png",
        "deep/out/z_2.png",
        "other/z.png",
    ]


def test_a_detector_needs_image_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector("ssd.onnx", ROWS)
    write_lmdb("lmdb", [(b"0", datum_from_array(np.zeros((3, 6, 8), np.uint8), 0))])
    assert "output 'y' holds boxes" in refused(capsys, "ssd.onnx", "lmdb")
    assert "--draw draws image files" in refused(capsys, "ssd.onnx", "lmdb", "--draw", "out")
    save_detector("four.onnx", ROWS, shape=[4, 3, 6, 8])
    assert "a detector with batches of 4 images" in refused(capsys, "four.onnx", "img/red/0.png")


def test_the_output_with_boxes_is_chosen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Identity", ["rows"], ["boxes"]), *MEANS]
    rows = {"rows": np.array(ROWS, np.float32).reshape(1, 1, -1, 7)}
    outputs: dict[str, list[Any]] = {"y": ["n", 3], "boxes": [1, 1, "k", 7]}
    save_model("both.onnx", nodes, outputs=outputs, constants=rows)
    assert output_of(capsys, "both.onnx", "img/red/0.png")[1].startswith("output 'boxes', (1, 1, N, 7)")
    assert output_of(capsys, "both.onnx", "img/red/0.png", "--output", "y")[1].startswith(
        "output 'y', (N, 3)"
    )
    save_model(
        "two.onnx", [*MEANS, helper.make_node("Relu", ["y"], ["z"])], outputs={"y": ["n", 3], "z": ["n", 3]}
    )
    assert "it has several; use --output with y, z" in refused(capsys, "two.onnx", "img/red/0.png")


def test_several_inputs_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("two.onnx", MEANS, more_inputs=["flow"])
    line = refused(capsys, "two.onnx", "img/red/0.png")
    assert "two.onnx has the inputs x, flow and the outputs y: run feeds one input, of images" in line
    save_model("rcnn.onnx", MEANS, more_inputs=["im_info"])
    line = refused(capsys, "rcnn.onnx", "img/red/0.png")
    assert "a detector of Faster R-CNN's kind" in line and "SSD's rows (1, 1, N, 7) alone" in line


def test_an_output_of_text_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SIZED)],
        [helper.make_tensor_value_info("y", TensorProto.STRING, SIZED)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "text.onnx"
    )
    line = refused(capsys, "text.onnx", "img/red/0.png")
    assert "text.onnx: output 'y' is a tensor(string); numbers are needed" in line


# -- maps and values -----------------------------------------------------------------------------------------


def test_a_map_is_no_class_17342(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """first_use: of a map (N, C, H, W) it printed the place of the largest number as a class."""
    outputs: dict[str, list[Any]] = {"y": ["n", 3, 6, 8]}
    identity = [helper.make_node("Identity", ["x"], ["y"])]
    save_model("map.onnx", identity, outputs=outputs, metadata={PLAIN: "", "names": NAMES})
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :6], pixels[:, 6:] = COLOURS["green"], COLOURS["red"]
    cv2.imwrite("two.png", pixels)
    lines = output_of(capsys, "map.onnx", "two.png", "--draw", "out", "--json", "r.json")
    assert lines[1:] == [
        "output 'y', (N, 3, 6, 8): a map; of several channels the largest is a pixel's class",
        'two.png: 6x8, of the pixels 0.7500 - "green", 0.2500 - "red"',
        "drew 1 image into out",
    ]
    drawn = np.asarray(cv2.imread("out/two.png"))
    assert drawn.shape == (6, 8, 3)
    assert (drawn[:, :6] == (0, 0, 128)).all() and (drawn[:, 6:] == (0, 128, 0)).all()  # VOC's, BGR
    entry = json.loads(Path("r.json").read_text())["images"][0]
    assert entry["shape"] == [3, 6, 8]
    assert entry["classes"] == [
        {"class": 1, "name": "green", "share": 0.75},
        {"class": 2, "name": "red", "share": 0.25},
    ]
    assert not any("label" in line for line in output_of(capsys, "map.onnx", "img"))


def test_a_map_of_numbers_is_grey(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]
    save_model("edges.onnx", nodes, outputs={"y": ["n", 1, 6, 8]})
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, 4:] = (1, 0, 0)
    cv2.imwrite("two.png", pixels)
    lines = output_of(capsys, "edges.onnx", "two.png", "--draw", "out")
    assert lines[2] == "two.png: 1x6x8 values, 0 to 0.333333"
    drawn = np.asarray(cv2.imread("out/two.png", cv2.IMREAD_UNCHANGED))
    assert (drawn[:, :4] == 0).all() and (drawn[:, 4:] == 255).all()


def test_features_are_no_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("features.onnx", [*MEANS, helper.make_node("Relu", ["y"], ["fc7"])], outputs={"fc7": ["n", 3]})
    lines = output_of(capsys, "features.onnx", "img/red/0.png", "--csv", "r.csv")
    assert lines[1:] == [
        "output 'fc7', (N, 3): values, no scores of classes",
        "img/red/0.png: 3 values, 0 30 210",
    ]
    assert Path("r.csv").read_text() == (
        "image,index,value\nimg/red/0.png,0,0.0\nimg/red/0.png,1,30.0\nimg/red/0.png,2,210.0\n"
    )
    four = json.dumps({str(label): "x" for label in range(4)})
    save_model("named.onnx", MEANS, metadata={PLAIN: "", "names": four})
    assert output_of(capsys, "named.onnx", "img/red/0.png")[1].endswith("values, no scores of classes")
    maps: dict[str, list[Any]] = {"conv5": ["n", 3, 6, 8]}
    save_model("map.onnx", [helper.make_node("Relu", ["x"], ["conv5"])], outputs=maps)
    assert output_of(capsys, "map.onnx", "img/red/0.png")[2] == "img/red/0.png: 3x6x8 values, 0 to 210"
    assert "--draw draws boxes and maps" in refused(capsys, "features.onnx", "img/red/0.png", "--draw", "out")
    write_lmdb("lmdb", [(b"0", datum_from_array(np.zeros((3, 6, 8), np.uint8), 0))])
    assert "an LMDB's labels are those of classes" in refused(capsys, "features.onnx", "lmdb")


# -- files ---------------------------------------------------------------------------------------------------


def test_json_and_csv_of_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = [
        *MEANS[:1],
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    save_model("net.onnx", third, constants={"s": np.float32(1 / 3)}, metadata={PLAIN: "", "names": NAMES})
    lines = output_of(capsys, "net.onnx", "img", "--json", "-", "--csv", "r.csv", "--top", "2")
    content = json.loads("\n".join(lines))  # nothing else is on the standard output
    assert content["format"] == 1 and content["model"] == "net.onnx" and content["output"] == "y"
    assert content["kind"] == "classes" and content["scores"] == "as the model gives them"
    assert content["images_were"] == "resized to 6x8 (the input's size), BGR 0..255"
    assert content["names"] == json.loads(NAMES) and content["skipped"] == []
    assert content["measures"]["accuracy"] == 1 and content["measures"]["top_5"] is None
    assert content["measures"]["classes"][2] == {
        "class": 2, "name": "red", "images": 2, "recall": 1.0, "precision": 1.0,
    }  # fmt: skip
    last = content["images"][-1]
    exact = [float(np.float32(value) * np.float32(1 / 3)) for value in (210, 30)]
    assert last == {
        "image": "img/red/1.png",
        "label": 2,
        "label_name": "red",
        "classes": [
            {"class": 2, "name": "red", "score": exact[0]},
            {"class": 1, "name": "green", "score": exact[1]},
        ],
    }
    rows = rows_of("r.csv")
    assert len(rows) == 12
    assert rows[-1] == {
        "image": "img/red/1.png", "label": "2", "label_name": "red", "rank": "2", "class": "1",
        "name": "green", "score": repr(exact[1]),
    }  # fmt: skip


def test_json_and_csv_of_boxes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector("ssd.onnx", ROWS[:1], metadata={PLAIN: "", "names": NAMES})
    output_of(capsys, "ssd.onnx", "img/red/0.png", "--json", "r.json", "--csv", "r.csv")
    content = json.loads(Path("r.json").read_text())
    assert content["kind"] == "boxes" and "scores" not in content and "measures" not in content
    box = {
        "label": 2,
        "name": "red",
        "score": float(np.float32(0.9)),
        "xmin": 2,
        "ymin": 3,
        "xmax": 6,
        "ymax": 6,
    }
    assert content["images"] == [{"image": "img/red/0.png", "height": 6, "width": 8, "boxes": [box]}]
    (row,) = rows_of("r.csv")
    assert row == {"image": "img/red/0.png", **{key: str(value) for key, value in box.items()}} | {
        key: f"{box[key]}.0" for key in ("xmin", "ymin", "xmax", "ymax")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "no/r.json"], "cannot write 'no/r.json': there is no folder"),
        (["--confusion-csv", "no/r.csv"], "cannot write 'no/r.csv': there is no folder"),
        (["--json", "-", "--csv", "-"], "must each have a file of its own"),
        (["--json", "r", "--csv", "./r"], "--csv and --json are both './r'; give each a file of its own"),
        (["--csv", "img"], "cannot write 'img': it is a folder"),
        (["--csv", "net.onnx"], "--csv would replace a file that is read"),
        (["--json", "img/red/0.png"], "--json would replace a file that is read"),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (["--threshold", "2"], "--threshold must be 0 to 1, got 2"),
        (["--labels", "none.txt"], "cannot read the labels 'none.txt'"),
    ],
)
def test_bad_options(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, "net.onnx", "img", *options)
    assert "there is no image, folder or list" in refused(capsys, "net.onnx", "a\0b", "--json", "r")


def test_names_do_nothing_to_a_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = json.dumps({"0": "a\u202e", "1": "b", "2": "d"})
    save_model("evil.onnx", MEANS, metadata={PLAIN: "", "names": evil})
    save_image("img/x\x1b.png", COLOURS["red"])
    lines = output_of(capsys, "evil.onnx", "img/x\x1b.png")
    assert lines[-1] == 'img/x\\x1b.png: 210.0000 - "d", 30.0000 - "b", 0.0000 - "a\\u202e"'


# -- speed ---------------------------------------------------------------------------------------------------


def test_a_speed_is_measured_where_it_means_something(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """first_use M4: "69741 images/s" of two images."""
    assert not any("images/s" in line for line in output_of(capsys, "net.onnx", "img"))
    last = output_of(capsys, "net.onnx", "img", "--speed")[-1]
    assert re.fullmatch(r"\d+ images/s of the model alone, a batch of 6 in \S+ ms, on CPU", last)
    lines = output_of(capsys, "net.onnx", *["img"] * 9, "--batch-size", "1")
    assert re.fullmatch(r"\d+ images/s of the model alone, a batch of 1 in \S+ ms, on CPU", lines[-1])


@pytest.mark.parametrize(
    ("seconds", "speed"),
    [
        ([(4, 9.0), (4, 0.5), (4, 0.5)], None),
        ([(4, 9.0), (4, 1.5), (4, 0.5), (2, 7.0)], "4 images/s of the model alone, a batch of 4 in 1e+03 ms"),
        ([(4, 9.0), *[(4, 0.01)] * 49], None),
        ([(4, 9.0), *[(4, 0.01)] * 50], "400 images/s of the model alone, a batch of 4 in 10 ms"),
        ([(2, 9.0)], None),
    ],
)
def test_the_first_batch_and_a_smaller_one_do_not_count(
    here: Path, seconds: list[tuple[int, float]], speed: str | None
) -> None:
    model = open_model("net.onnx", threads=1)
    model.seconds = seconds
    assert model.speed() == speed


def test_a_kind_is_known_by_the_shape(here: Path) -> None:
    """Without an image, as far as the model's own shapes say it."""
    model = open_model("net.onnx", threads=1)
    assert isinstance(model, ImageModel) and model.kind is None and model.num_classes == 3
    assert [prediction.values.shape for prediction in model.predict([ImageFile("img/red/0.png")])] == [(3,)]
    assert model.kind is Kind.CLASSES and model.preprocessing == make_preprocessing(read_transform("", "x"))
