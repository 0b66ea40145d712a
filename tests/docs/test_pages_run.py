"""The commands of README.md, docs/bring-your-project.md, docs/forks.md and docs/paper.md run.

They run in their order, in one folder, with files of the pages' names: a small project in Caffe's way, whose
images are handwritten digits in colour. A solver's 1,000 iterations are 20 here.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from page_commands import commands_to_run
from pages import blocks, page, run_lines

from imae import pycaffe
from imae.cli.main import main
from imae.converters.convert_digits import read_digits
from imae.paper.readme import BEGIN, END, readme_lines
from imae.paper.record import read_records

COLOURS = np.linspace(0.4, 1, 3)  # of blue, green and red
LAYERS = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
"""
INPUT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, 3, 8, 8] } }
        transform_param { scale: 0.00390625 mean_value: 128 } }
"""
# As deploy files usually are: it does not say how images are prepared.
SILENT_INPUT = re.sub(r"transform_param \{.*?\} ", "", INPUT)
DATA = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: PHASE }
        transform_param { scale: 0.00390625 mean_value: 128 }
        data_param { source: "SOURCE_lmdb" batch_size: 10 backend: LMDB } }
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "ip1" top: "prob" }\n'
ENDS = """
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip1" bottom: "label" top: "accuracy"
        include { phase: TEST } }
"""
SOLVER = """
net: "train_val.prototxt" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 random_seed: 1 solver_mode: GPU
max_iter: 20 snapshot: 10 display: 5 test_iter: 2 test_interval: 10 snapshot_prefix: "snapshots/x"
"""
ANNOTATION = """<annotation><size><width>8</width><height>8</height></size><object><name>digit</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>7</xmax><ymax>7</ymax></bndbox></object></annotation>"""
LABEL_MAP = 'item { name: "none" label: 0 display_name: "none" } item { name: "digit" label: 1 }\n'


def write_images(folder: Path, count: int) -> list[tuple[str, int]]:
    """Digits as FOLDER/CLASS/NUMBER.png; their paths in the folder, and labels."""
    images, labels = read_digits()[0]
    paths = []
    for index, (image, label) in enumerate(zip(images[:count], labels[:count].tolist(), strict=True)):
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (image[0, :, :, None] * COLOURS).astype(np.uint8))
        paths.append((path.relative_to(folder).as_posix(), label))
    return paths


@pytest.fixture
def project(here: Path) -> Path:
    """The working directory, with a project: prototxts, LMDBs, images."""
    Path("train_val.prototxt").write_text(
        DATA.replace("PHASE", "TRAIN").replace("SOURCE", "train")
        + DATA.replace("PHASE", "TEST").replace("SOURCE", "test")
        + LAYERS
        + ENDS
    )
    Path("deploy.prototxt").write_text(INPUT + LAYERS + PROB)
    Path("solver.prototxt").write_text(SOLVER)
    Path("snapshots").mkdir()
    Path("list.txt").write_text(
        "".join(f"{name} {label}\n" for name, label in write_images(Path("images"), 60))
    )
    for name in ("train_lmdb", "test_lmdb"):
        assert main(["convert-imageset", "images/", "list.txt", name]) == 0
    Path("names.txt").write_text("".join(f"digit {label}\n" for label in range(10)))
    return here


def write_annotated_images(folder: Path) -> None:
    """Two images and their boxes as VOC has them; the label map."""
    (folder / "Annotations").mkdir(parents=True)
    names = [name for name, _ in write_images(folder / "JPEGImages", 2)]
    for index in range(2):
        (folder / "Annotations" / f"{index}.xml").write_text(ANNOTATION)
    lines = [f"JPEGImages/{name} Annotations/{index}.xml\n" for index, name in enumerate(names)]
    Path("boxes.txt").write_text("".join(lines))
    Path("labelmap.prototxt").write_text(LABEL_MAP)


def fewer_iterations(line: str) -> str:
    """A command with the iterations of SOLVER in the names of snapshots."""
    return line.replace("_iter_500.", "_iter_10.").replace("_iter_1000.", "_iter_20.")


def test_readme(project: Path) -> None:
    """README.md: the four ways on."""
    Path("solver.prototxt").write_text(SOLVER.replace("GPU", "CPU"))
    Path("deploy.prototxt").write_text(SILENT_INPUT + LAYERS + PROB)
    Path("images").rename("photos")
    Path("names.txt").rename("synset_words.txt")
    pycaffe.Net("deploy.prototxt", pycaffe.TEST).save("x.caffemodel")
    lines = commands_to_run("README.md")
    assert main(["caffe", "train", "-solver=solver.prototxt"]) == 0  # as the text says
    printed = run_lines(["imae train solver.prototxt 2> cce.log", "imae train solver.prototxt 2> imae.log"])
    printed |= run_lines(lines)
    assert [line.split()[1] for line in lines] == [
        *("doctor", "train", "test", "export", "run", "corrupt-labels", "compare", "new-plugin")
    ]
    assert "largest difference from the net" in printed[lines[3]]
    assert "accuracy" in printed[lines[4]]  # photos lie in class folders
    assert Path("runs.png").exists() and Path("imae-xyz", "pyproject.toml").exists()


def test_bring_your_project(project: Path) -> None:
    """docs/bring-your-project.md: all commands but those of a GPU and CIFAR-10; its Python."""
    text = page("docs/bring-your-project.md")
    write_annotated_images(Path("VOCdevkit"))
    cpu = Path("solver.prototxt").read_text().replace("GPU", "CPU")
    Path("solver.prototxt").write_text(cpu)
    lines = commands_to_run("docs/bring-your-project.md")
    printed = run_lines(lines, fewer_iterations)
    assert len(printed) > 28
    assert {path.name for path in Path("snapshots").iterdir()} >= {
        *("x_iter_10.solverstate", "x_iter_20.caffemodel")
    }
    assert Path("csv", "train.log.train").exists() and Path("train.png").exists()
    assert Path("features_lmdb", "data.mdb").exists() and Path("boxes_lmdb", "data.mdb").exists()
    accuracy = next(out for line, out in printed.items() if line.startswith("imae run x.onnx images"))
    assert "digit 3" in accuracy and "accuracy" in accuracy
    names: dict[str, object] = {}
    (load, install) = [block.text for block in blocks(text) if block.language == "python"]
    exec(compile(fewer_iterations(load), "the page", "exec"), names)
    assert names["net"].blobs["prob"].data.shape == (1, 10)  # type: ignore[attr-defined]
    assert "install_as_caffe()" in install  # pycaffe/test_pycaffe_package.py calls it, in processes


def test_forks(here: Path) -> None:
    """docs/forks.md: what needs no trained SSD."""
    write_annotated_images(Path("VOCdevkit"))
    Path("boxes.txt").rename("trainval.txt")
    Path("path", "to", "project").mkdir(parents=True)
    Path("path", "to", "project", "deploy.prototxt").write_text(INPUT + LAYERS + PROB)
    lines = commands_to_run("docs/forks.md")
    printed = run_lines(lines)
    assert "1 nets: 1 read, 1 build, 0 train, 1 export" in printed[lines[0]]
    assert Path("trainval_lmdb", "data.mdb").exists()


def test_paper(here: Path) -> None:
    """docs/paper.md: what needs no CIFAR-10."""
    Path("paper").mkdir()
    Path("README.md").write_text(f"{BEGIN}\n{END}\n")
    Path("mars.json").write_text('{"IMAE": {"mAP": 0.7, "CMC-1": 0.8}}')
    Path("clothing1m.json").write_text('{"IMAE": 0.7321}')
    lines = commands_to_run("docs/paper.md")
    printed = run_lines(lines)
    assert (
        "resnet20_cce_symmetric20_seed2" in printed["imae paper table2 --only resnet20 --seeds 1,2 --dry-run"]
    )
    mars = printed["imae paper table3 --mars mars.json"]
    assert re.search(r"\| CMC-1 +\| IMAE +\| +83.5 \| +80.0 \|", mars)
    clothing = printed["imae paper later-tables --show --clothing1m clothing1m.json"]
    assert re.search(r"\| IMAE +\| +73.2 \| +73.2 \|", clothing)
    assert printed[lines[-1]].count("layer {") > 60
    assert Path("figure1.png").exists() and Path("figure5.png").exists() and Path("report.html").exists()
    assert readme_lines(read_records()) in Path("README.md").read_text()
    assert Path("paper", "RESULTS.md").read_text() == page("paper/RESULTS.md")
