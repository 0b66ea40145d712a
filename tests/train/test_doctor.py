"""imae doctor: a good project, each kind of trouble by its name; it writes, runs and follows nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
from reference import CASES

from imae.layers.blob import blob_from_array
from imae.layers.layer import Layer
from imae.layers.registry import layer_class
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST, Datum, filter_net, read_net, read_solver
from imae.train.doctor import survey as survey_module
from imae.train.doctor.examiner import examine
from imae.train.doctor.report import as_html, as_text
from imae.train.doctor.row import Row
from imae.train.doctor.survey import Survey, examine_project
from imae.train.doctor.unknown import unknown_words
from imae.train.solver import Solver

TRAIN_NET = """
name: "tiny"
layer { name: "data" type: "Data" top: "data" top: "label"
        transform_param { mean_file: "mean.binaryproto" }
        data_param { source: "train_lmdb" batch_size: 2 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
BODY = TRAIN_NET[TRAIN_NET.index('layer { name: "conv"') : TRAIN_NET.index('layer { name: "loss"')]
DEPLOY = 'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n' + BODY
SOLVER = """
net: "train_val.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 2 random_seed: 1
snapshot: 2 snapshot_prefix: "tiny"
"""


@pytest.fixture
def project(here: Path) -> Path:
    """A project of which everything is well; it is the working directory."""
    Path("train_val.prototxt").write_text(TRAIN_NET)
    Path("deploy.prototxt").write_text(DEPLOY)
    Path("solver.prototxt").write_text(SOLVER)
    mean = blob_from_array(np.ones((1, 3, 8, 8), np.float32))
    Path("mean.binaryproto").write_bytes(mean.SerializeToString())
    with lmdb.open("train_lmdb", map_size=1 << 20) as environment, environment.begin(write=True) as records:
        for index in range(4):
            datum = Datum(channels=3, height=8, width=8, data=bytes(range(192)), label=index)
            records.put(b"%08d" % index, datum.SerializeToString())
    Path("images.txt").write_text("a.jpg 0\nb.jpg 1\n")
    Path("a.jpg").write_bytes(b"")
    solver = Solver(read_solver("solver.prototxt"))
    solver.step(2)
    solver.snapshot()
    return here


class InThisProcess:
    """In place of the Examiner, where a test is not about its process, which takes seconds to start."""

    def __init__(self, seconds: float) -> None:
        assert seconds > 0

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, kind: str, file: Path, root: Path) -> Any:
        return survey_module._examined(json.loads(json.dumps(examine(kind, file, root))))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "Examiner", InThisProcess)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files and folders."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]
    }


def row_of(kind: str, path: str) -> Row:
    """The row of one file, examined in this process."""
    return Row.from_dict(examine(kind, Path(path).absolute(), Path.cwd())["row"])


def verdict(row: Row) -> tuple[str, str, str, str]:
    return row.reads, row.builds, row.trains, row.exports


def stops(row: Row) -> str:
    return "\n".join(f"{stop.what} [{stop.owner}] {stop.remedy}" for stop in row.stops)


# -- a whole project -----------------------------------------------------------------------------------------


def test_a_project_of_which_all_is_well(project: Path) -> None:
    before = listing(project)
    survey = examine_project(project)
    assert listing(project) == before
    rows = {row.path: row for row in survey.rows}
    assert survey.all_well, as_text(survey)
    assert {path: (row.kind, *verdict(row)) for path, row in rows.items()} == {
        "deploy.prototxt": ("net", "yes", "yes", "", "yes"),
        "images.txt": ("list", "yes", "", "", ""),
        "mean.binaryproto": ("mean", "yes", "", "", ""),
        "solver.prototxt": ("solver", "yes", "", "yes", ""),
        "tiny_iter_2.caffemodel": ("weights", "yes", "", "", ""),
        "tiny_iter_2.solverstate": ("solver state", "yes", "", "", ""),
        "train_lmdb": ("LMDB", "yes", "", "", ""),
        "train_val.prototxt": ("net", "yes", "yes", "yes", "yes"),
    }
    weights = rows["tiny_iter_2.caffemodel"].facts
    assert (
        "fits deploy.prototxt: 2 of 2 layers" in weights
        and "fits train_val.prototxt: 2 of 2 layers" in weights
    )
    assert "its weights: tiny_iter_2.caffemodel" in rows["deploy.prototxt"].facts
    assert "1 of the first 2 files are there" in " ".join(rows["images.txt"].facts)
    assert "the first is 3x8x8, label 0" in rows["train_lmdb"].facts
    assert json.loads(json.dumps(survey.to_dict()))["all_well"] is True
    assert "Convolution" in survey.differences
    assert "differ from Caffe's, on purpose" in as_text(survey, every_file=True)


@pytest.mark.usefixtures("in_process")
def test_from_another_folder_paths_are_found_and_said_so(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    survey = examine_project(project)
    assert survey.all_well, as_text(survey)
    assert any(
        f"start imae in the folder from which they are there ({project})" in note for note in survey.notes
    )
    assert {row.path: row.trains for row in survey.rows}["solver.prototxt"] == "yes"


def test_troubles_do_not_hide_each_other(project: Path) -> None:
    """One file of each kind is broken; the others are as they were."""
    os.remove("train_lmdb/data.mdb")
    Path("other.caffemodel").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    Path("page.caffemodel").write_text("<!DOCTYPE html><html></html>")
    Path("cut.caffemodel").write_bytes(Path("tiny_iter_2.caffemodel").read_bytes()[:-7])
    Path("fork.prototxt").write_text(
        'layer { name: "p" type: "NoSuchLayer" bottom: "x" top: "y" foo_param { a: 1 } }'
    )
    Path("empty.prototxt").write_text("\n")
    os.symlink("/", "link")
    os.symlink("deploy.prototxt", "link.prototxt")
    os.mkfifo("pipe.prototxt")
    before = listing(project)
    survey = examine_project(project)
    assert listing(project) == before
    rows = {row.path: row for row in survey.rows}
    assert not survey.all_well
    assert "Git-LFS pointer" in stops(rows["other.caffemodel"]) and "git lfs pull" in stops(
        rows["other.caffemodel"]
    )
    assert "web page" in stops(rows["page.caffemodel"])
    assert "damaged or cut short" in stops(rows["cut.caffemodel"])
    assert 'has no field "foo_param"' in stops(rows["fork.prototxt"])
    assert "Unknown layer type: NoSuchLayer" in stops(rows["fork.prototxt"])
    assert "the file is empty" in stops(rows["empty.prototxt"])
    assert rows["deploy.prototxt"].exports == "yes" and not rows["deploy.prototxt"].stops
    assert rows["train_val.prototxt"].trains == rows["solver.prototxt"].trains == "no"
    assert "train_val.prototxt does not train" in stops(rows["solver.prototxt"])
    assert "2 symbolic links were not followed: link, link.prototxt" in survey.notes
    assert not {"link", "link.prototxt", "pipe.prototxt"} & rows.keys()


def test_hostile_files_are_rows(here: Path) -> None:
    """Huge files without content, deep nesting, names that are no text: each is a row, and soon."""
    for name in ("a.caffemodel", "b.solverstate", "c.binaryproto", "d.h5", "e.prototxt", "f.caffemodel.h5"):
        with open(name, "wb") as file:
            file.truncate(1 << 40)
    Path("deep.prototxt").write_text("layer { " * 100_000)
    Path("wide.prototxt").write_text('layer { name: "a" type: "Slice" ' + 'top: "t" ' * 100_000 + "}")
    Path("words.prototxt").write_text(
        "".join(f"word{index} {{ a: 1 }}\n" for index in range(5000)) + "layer { }"
    )
    Path(os.fsdecode(b"name\xff\n\x1b[2J.prototxt")).write_text("layer { ")
    Path("db").mkdir()
    Path("db/data.mdb").write_bytes(b"\0" * 16 + b"\xde\xc0\xef\xbe\x01\0\0\0" + b"\xff" * 9000)
    Path("level").mkdir()
    Path("level/CURRENT").write_text("../../etc/passwd")
    Path("level/MANIFEST-1").write_text("")
    survey = examine_project(here, seconds=60)
    assert len(survey.rows) == 12
    for row in survey.rows:
        assert row.stops, row.path
        assert "fault of imae" not in stops(row), stops(row)
    assert "\x1b" not in as_text(survey) and as_html(survey).encode()


def test_a_list_is_recognised_in_time_by_its_length(here: Path) -> None:
    """Not by its square: this is done before the process whose time is limited."""
    Path("a.txt").write_text("a" + 10_000 * ".jpg a" + "\v\n")
    Path("b.txt").write_text("a b.jpg c d.png 1\r\nc.jpg\n")
    Path("c.txt").write_text("a.jpg 1\nb.jpgs 1\n")
    before = time.process_time()
    kinds = [survey_module._recognise(here / name, here)[0] for name in ("a.txt", "b.txt", "c.txt")]
    assert kinds == ["list", "list", ""]
    assert time.process_time() - before < 5


def test_a_folder_that_may_be_listed_but_not_entered(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have no status: each is a row."""
    for name in ("db/data.mdb", "level/CURRENT", "level/MANIFEST-1", "text/net.prototxt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    real = os.stat

    def stat(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if str(path).startswith(tuple(str(here / name) + "/" for name in ("db", "level", "text"))):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    kinds = {}
    for file in survey_module._walk(here, []):
        kind, row = survey_module._recognise(file, here)
        kinds[file.name] = kind
        if file.name == "net.prototxt":
            assert row is not None and "Permission denied" in stops(row)
    assert kinds == {"db": "LMDB", "level": "LevelDB", "net.prototxt": ""}
    for kind in ("db", "level"):
        assert "Permission denied" in stops(row_of({"db": "LMDB", "level": "LevelDB"}[kind], kind))


def test_a_leveldb_of_pipes_and_folders(here: Path) -> None:
    """Neither is waited for."""
    for name in ("pipe", "folder", "zero"):
        Path(name).mkdir()
        Path(name, "MANIFEST-1").write_text("")
    os.mkfifo("pipe/CURRENT")
    Path("folder/CURRENT").mkdir()
    Path("zero/CURRENT").write_text("MANIFEST-1\0")
    assert "its file CURRENT cannot be read: it is a pipe" in stops(row_of("LevelDB", "pipe"))
    assert "its file CURRENT cannot be read: Is a directory" in stops(row_of("LevelDB", "folder"))
    assert "is not there" in stops(row_of("LevelDB", "zero"))


def test_an_error_of_a_file_without_lines_names_no_line(here: Path) -> None:
    Path("a.caffemodel").write_bytes(b"\x0a\xff\xff\xff\xff\x0f")
    assert stops(row_of("weights", "a.caffemodel")).startswith("damaged or cut short")
    Path("a.prototxt").write_text("layer {\n nome: 1 }")
    assert "line 2" in stops(row_of("net", "a.prototxt"))


def test_unknown_types_without_end(here: Path) -> None:
    """Each error compares the type with all others: the first ones are enough."""
    texts = [f'layer {{ name: "a" type: "T{index}" }}\n' for index in range(20_000)]
    Path("types.prototxt").write_text("".join(texts))
    Path("type.prototxt").write_text(20_000 * texts[0] + 'layer { name: "b" type: "U" }')
    before = time.process_time()
    many, one = row_of("net", "types.prototxt"), row_of("net", "type.prototxt")
    assert time.process_time() - before < 20
    assert len(many.stops) == 40 and many.builds == "no"
    assert "the layers after the first 40 unknown types were not looked at" in many.facts
    assert "T0" in stops(one) and "(20000 layers)" in stops(one) and "type: U" in stops(one)


def test_a_python_module_with_a_long_name(here: Path) -> None:
    Path("a.prototxt").write_text(
        'layer { name: "p" type: "Python" top: "p" python_param { module: "%s" layer: "L" } }' % ("m" * 5000)
    )
    row = row_of("net", "a.prototxt")
    assert row.reads == "yes" and "layer of type Python" in stops(row)


@pytest.mark.usefixtures("in_process")
def test_one_file_can_be_examined(project: Path) -> None:
    survey = examine_project("deploy.prototxt")
    assert [row.path for row in survey.rows] == ["deploy.prototxt"]


def test_a_file_that_takes_too_long_is_given_up(project: Path) -> None:
    survey = examine_project("deploy.prototxt", seconds=0.01)
    assert "takes more than 0.01 seconds" in stops(survey.rows[0])


def test_an_examiner_that_dies_is_a_row_and_the_next_file_gets_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(project / "broken"))
    (project / "broken" / "torch").mkdir(parents=True)
    (project / "broken" / "torch" / "__init__.py").write_text("raise SystemError('broken on purpose')")
    survey = examine_project("deploy.prototxt")
    assert "ended with status 1: SystemError: broken on purpose" in stops(survey.rows[0])
    monkeypatch.delenv("PYTHONPATH")
    assert examine_project("deploy.prototxt").all_well


def test_more_files_than_it_looks_at(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "MOST_PROJECT_FILES", 3)
    notes: list[str] = []
    assert len(list(survey_module._walk(project, notes))) == 3
    assert notes == ["only the first 3 files and folders were looked at"]


def test_folders_deep_down_are_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "DEEPEST_FOLDER", 2)
    Path("a/b/c/d").mkdir(parents=True)
    for folder in ("a/b", "a/b/c"):
        Path(folder, "net.prototxt").write_text("x")
    notes: list[str] = []
    assert [path.name for path in survey_module._walk(here, notes)] == ["net.prototxt"]
    assert notes == ["a/b/c: nested too deeply, not looked at"]


# -- nets ----------------------------------------------------------------------------------------------------


def test_data_that_are_not_there(here: Path) -> None:
    Path("net.prototxt").write_text(TRAIN_NET)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "no", "yes")
    assert "data_param.source 'train_lmdb' is not there [the project]" in stops(row)
    assert "transform_param.mean_file 'mean.binaryproto' is not there" in stops(row)
    assert "with an assumed shape (layer 'data' (Data): 2x3x224x224 2)" in " ".join(row.facts)


def test_a_list_outside_of_the_project_is_not_quoted(
    tmp_path_factory: pytest.TempPathFactory, here: Path
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "passwords"
    secret.write_text("root:secret\n")
    Path("link").symlink_to(secret)
    for source in (str(secret), os.path.relpath(secret), "link"):
        Path("net.prototxt").write_text(
            f'layer {{ name: "d" type: "ImageData" top: "x" top: "y" '
            f'image_data_param {{ source: "{source}" batch_size: 2 }} }}'
        )
        row = row_of("net", "net.prototxt")
        assert "secret\n" not in str(row) and "root:" not in str(row)
        assert any("lies outside of the project, and is not read" in fact for fact in row.facts)


def test_an_absolute_path_of_another_machine(here: Path) -> None:
    Path("net.prototxt").write_text(TRAIN_NET.replace("train_lmdb", "/nowhere/train_lmdb"))
    assert "an absolute path of another machine" in stops(row_of("net", "net.prototxt"))


def test_a_leveldb_is_not_opened(project: Path) -> None:
    Path("level").mkdir()
    Path("level/CURRENT").write_text("MANIFEST-000002\n")
    Path("level/MANIFEST-000002").write_bytes(b"x")
    net = TRAIN_NET.replace("train_lmdb", "level").replace("backend: LMDB", "")
    Path("net.prototxt").write_text(net)
    before = listing(project)
    row, database = row_of("net", "net.prototxt"), row_of("LevelDB", "level")
    assert listing(project) == before
    assert row.trains == "yes" and "LevelDB writes into a database" in " ".join(row.facts)
    assert "not opened" in " ".join(database.facts)
    os.remove("level/MANIFEST-000002")
    assert "its list of files, 'MANIFEST-000002', is not there" in stops(row_of("LevelDB", "level"))


def test_every_unknown_word_is_named_with_its_fork(here: Path) -> None:
    Path("net.prototxt").write_text(
        DEPLOY.replace("num_output: 4", "num_output: 4 hole: 2 nothing_known { a: { b: '}' } } # }\n")
        + 'layer { name: "m" type: "MatWrite" bottom: "fc" top: "m" matwrite_param { a: 1 } }\n'
        + 'layer { name: "n" type: "MatWrite" bottom: "m" top: "n" }\n'
    )
    row = row_of("net", "net.prototxt")
    text = stops(row)
    assert verdict(row) == ("no", "no", "no", "no")
    assert 'no field "nothing_known"' in text and 'no field "matwrite_param"' in text
    assert "Unknown layer type: MatWrite (2 layers) [DeepLab's fork (cdmh/deeplab-public-ver2)]" in text
    assert len(row.stops) == 4 and any("hole" in stop.what and "DeepLab" in stop.owner for stop in row.stops)


def test_a_text_without_its_unknown_words_keeps_the_others() -> None:
    text = 'name: "a" x: 1 y { z: "}" # }\n } layer { name: "l" type: "ReLU" w: [1, 2] }'
    found = unknown_words(text, type(read_net(CASES / "extract_features/net.prototxt")), "t")
    assert [str(error).partition('field "')[2][0] for error in found.errors] == ["x", "y", "w"]
    assert (
        found.message is not None
        and str(found.message) == 'name: "a"\nlayer {\n  name: "l"\n  type: "ReLU"\n}\n'
    )


def test_python_layers_are_named_and_not_imported(here: Path) -> None:
    Path("lib").mkdir()
    Path("lib/strange.py").write_text("open('ran', 'w')")
    Path("strange2.py").write_text("print 'this is Python 2'; open('ran', 'w')")
    Path("net.prototxt").write_text(
        DEPLOY
        + 'layer { name: "p" type: "Python" bottom: "fc" top: "p"\n'
        + '        python_param { module: "strange" layer: "L" } }\n'
        + 'layer { name: "q" type: "Python" bottom: "fc" top: "q"\n'
        + '        python_param { module: "strange2" layer: "M" } }\n'
        + 'layer { name: "s" type: "Softmax" bottom: "p" top: "s" }\n'
        + 'layer { name: "t" type: "Softmax" bottom: "fc" top: "t" }\n'
    )
    row = row_of("net", "net.prototxt")
    assert not Path("ran").exists()
    assert verdict(row) == ("yes", "partly", "", "partly")
    assert "layer of type Python: strange.L [the project's Python code]" in stops(row)
    assert "the code of strange is lib/strange.py" in row.facts
    assert "the code of strange2 is strange2.py, and is no Python 3: bring it up to date" in row.facts
    assert "TEST: 1 of its layers depend on Python layers or missing files" in row.facts


def test_a_net_whose_data_python_makes_is_not_judged(here: Path) -> None:
    data = 'layer { name: "data" type: "Python" top: "data" top: "label"\n'
    data += '        python_param { module: "m" layer: "L" } }\n'
    begin, end = TRAIN_NET.index('layer { name: "data"'), TRAIN_NET.index('layer { name: "conv"')
    Path("net.prototxt").write_text(TRAIN_NET[:begin] + data + TRAIN_NET[end:])
    assert verdict(row_of("net", "net.prototxt")) == ("yes", "unknown", "unknown", "unknown")


def test_a_bottom_that_nothing_makes_is_no_fault_of_the_text(here: Path) -> None:
    Path("net.prototxt").write_text(BODY)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "no", "", "no") and "Unknown bottom blob 'data'" in stops(row)


def test_a_solvers_train_net_is_not_built_in_phase_test(project: Path) -> None:
    text = TRAIN_NET.replace('top: "label"', 'top: "label" include { phase: TRAIN }', 1)
    Path("train.prototxt").write_text(text)
    row = row_of("net", "train.prototxt")
    assert verdict(row) == ("yes", "yes", "yes", "") and not row.stops
    assert "a net of phase TRAIN alone, so it has nothing to export" in row.facts


@pytest.mark.usefixtures("in_process")
def test_weights_alone_are_compared_with_no_net(project: Path) -> None:
    (row,) = examine_project("tiny_iter_2.caffemodel").rows
    assert "no net was built to compare it with; look at the folder of both" in row.facts


@pytest.mark.usefixtures("in_process")
def test_of_a_solver_alone_nobody_knows_whether_it_trains(project: Path) -> None:
    (row,) = examine_project("solver.prototxt").rows
    assert row.trains == "unknown" and row.facts[-1].endswith("was not looked at; look at the folder of both")


def test_the_label_map_of_annotated_data_is_not_missed(here: Path) -> None:
    data = 'layer { name: "data" type: "AnnotatedData" top: "data" top: "label"\n'
    data += '        annotated_data_param { label_map_file: "none" } data_param { source: "nowhere" } }\n'
    Path("net.prototxt").write_text(data + BODY)
    assert "'nowhere' is not there" in stops(row := row_of("net", "net.prototxt"))
    assert "label_map_file" not in stops(row)


def test_a_path_of_the_working_folder_outside_the_project_is_named_so(project: Path) -> None:
    Path("other").mkdir()
    Path("other/net.prototxt").write_text(TRAIN_NET)
    other = Path("other").absolute()
    row = Row.from_dict(examine("net", other / "net.prototxt", other)["row"])
    assert verdict(row) == ("yes", "yes", "yes", "yes")
    assert any(fact.endswith(f"'train_lmdb' is there in the working folder, {project}") for fact in row.facts)


def test_an_error_that_says_what_to_do_gets_no_other_remedy(here: Path) -> None:
    layer = 'layer { name: "d" type: "Dropout" bottom: "fc" top: "d"\n'
    layer += "        dropout_param { sample_weights_test: true } transform_param { scale: 2 } }\n"
    Path("net.prototxt").write_text(DEPLOY + layer)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "no")
    until = "; or cut the net before it with --until fc"
    assert stops(row).endswith(f"set it to false for the mean{until} [imae] ")
    assert len([line for line in row.warnings if "these fields do nothing" in line]) == 1


def test_a_deployed_net_is_not_built_in_phase_train(here: Path) -> None:
    data = 'layer { name: "data" type: "Input" top: "data" include { phase: TEST }\n'
    data += "        input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }\n"
    Path("net.prototxt").write_text(data + BODY)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "yes") and not row.stops


def test_what_caffe_overwrites_and_what_does_nothing_are_warnings(here: Path) -> None:
    Path("net.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" transform_param { scale: 2 }\n'
        "        input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }\n"
        'layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }\n'
        'layer { name: "exp" type: "Exp" bottom: "flat" top: "flat" }\n'
        'layer { name: "sum" type: "Reduction" bottom: "data" top: "sum" }\n'
    )
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "yes")
    assert any("these fields do nothing" in line and "transform_param" in line for line in row.warnings)
    assert any("layer 'exp' (Exp), in place, has overwritten" in line for line in row.warnings)


def test_a_net_that_does_not_fit_together(here: Path) -> None:
    Path("net.prototxt").write_text(DEPLOY.replace("dim: 8", "dim: 2"))
    row = row_of("net", "net.prototxt")
    assert row.builds == row.exports == "no" and "layer 'conv' (Convolution)" in stops(row)


def test_a_layer_without_an_onnx_form(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net.prototxt").write_text(DEPLOY)
    monkeypatch.setattr(layer_class("ReLU"), "to_onnx", Layer.to_onnx)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "no")
    assert "layer 'relu': type ReLU has no ONNX form; its class gives it one by Layer.to_onnx; or" in stops(
        row
    )


def test_an_input_without_a_shape(here: Path) -> None:
    Path("net.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" }\n'
        'layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }\n'
    )
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "no")
    assert "export: input 'data' has no shape in the prototxt; give --input-shape" in row.facts


def test_a_net_writes_no_hdf5(here: Path) -> None:
    Path("net.prototxt").write_text(
        DEPLOY + 'layer { name: "out" type: "HDF5Output" bottom: "fc" bottom: "fc"\n'
        '        hdf5_output_param { file_name: "out.h5" } }\n'
    )
    assert verdict(row_of("net", "net.prototxt"))[:2] == ("yes", "yes")
    assert not Path("out.h5").exists()


def test_a_net_too_large_for_the_memory(here: Path) -> None:
    Path("net.prototxt").write_text(DEPLOY.replace("num_output: 5", "num_output: 2000000000"))
    row = row_of("net", "net.prototxt")
    assert row.builds == "no" and "blob size exceeds INT_MAX" in stops(row)


def test_weights_of_many_parameters_take_no_memory(here: Path) -> None:
    """400 million parameters, 1.6 GB, in a process that may take 8 GB of addresses, and touches little."""
    Path("net.prototxt").write_text(
        DEPLOY.replace("num_output: 5", "num_output: 400000").replace("dim: 8", "dim: 18")
    )
    program = (
        "import resource; from pathlib import Path; from imae.train.doctor.examiner import examine;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "row = examine('net', Path('net.prototxt').absolute(), Path.cwd())['row'];"
        "print(row['builds'], row['exports'],"
        " (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    builds, exports, mebibytes = done.stdout.split()
    assert (builds, exports) == ("yes", "yes") and int(mebibytes) < 300


def test_nvidias_nets_are_recognised(here: Path) -> None:
    Path("net.prototxt").write_text("default_forward_type: FLOAT16\n" + DEPLOY)
    row = row_of("net", "net.prototxt")
    assert verdict(row) == ("yes", "yes", "", "yes") and any("--dialect nvidia" in fact for fact in row.facts)


# -- solvers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base_lr", "base_rl"), 'no field "base_rl"'),
        (('"fixed"', '"fixde"'), "Unknown learning rate policy: fixde"),
        (("max_iter: 2", "max_iter: -2"), "max_iter must be at least 0, got -2"),
        (("max_iter: 2", 'max_iter: 2 type: "SDG"'), "Unknown solver type: SDG"),
        (('"tiny"', '"snapshots/tiny"'), "the folder of snapshot_prefix 'snapshots/tiny' is not there"),
        (('"train_val', '"nowhere/train_val'), "net 'nowhere/train_val.prototxt' is not there [the project]"),
        (('net: "train_val.prototxt"', ""), "it names no net"),
        (("max_iter: 2", 'max_iter: 2 weights: "a.caffemodel"'), "weights 'a.caffemodel' is not there"),
    ],
)
def test_what_stops_a_solver(here: Path, change: tuple[str, str], message: str) -> None:
    Path("train_val.prototxt").write_text(TRAIN_NET)
    Path("solver.prototxt").write_text(SOLVER.replace(*change))
    row = row_of("solver", "solver.prototxt")
    assert row.trains == "no" and message in stops(row)


@pytest.mark.usefixtures("in_process")
def test_a_solver_whose_net_has_no_loss_or_is_pythons(project: Path) -> None:
    python = (
        'layer { name: "p" type: "Python" bottom: "fc" top: "p" python_param { module: "m" layer: "L" } }'
    )
    for net, trains in ((DEPLOY, "no"), (TRAIN_NET + python, "unknown")):
        Path("train_val.prototxt").write_text(net)
        rows = {row.path: row for row in examine_project(project).rows}
        assert rows["solver.prototxt"].trains == trains
        assert ("it has no loss" in stops(rows["solver.prototxt"])) is (trains == "no")


def test_fields_of_a_solver_that_do_nothing_are_warnings(project: Path) -> None:
    Path("solver.prototxt").write_text(SOLVER + "gamma: 0.1")
    row = row_of("solver", "solver.prototxt")
    assert row.trains == "yes" and any(line.startswith("gamma has no effect") for line in row.warnings)


# -- weights and data ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_weights_of_another_net_fit_in_part(project: Path) -> None:
    Path("deploy.prototxt").write_text(DEPLOY.replace("num_output: 5", "num_output: 6"))
    Path("train_val.prototxt").unlink()
    Path("solver.prototxt").unlink()
    row = {row.path: row for row in examine_project(project).rows}["tiny_iter_2.caffemodel"]
    assert (
        "fits deploy.prototxt in part: 1 of 2 layers; layer 'fc' has 5x144 5, the net needs 6x144 6"
        in row.facts
    )


def test_weights_in_hdf5_and_of_the_old_form_fit(project: Path) -> None:
    net = Net(filter_net(read_net("deploy.prototxt"), TEST))
    save_caffemodel(net, "w.caffemodel.h5", hdf5=True)
    answer = examine("weights", Path("w.caffemodel.h5").absolute(), project)
    assert answer["row"]["reads"] == "yes"
    assert answer["blobs"]["fc"] == [((5, 144), False), ((5,), False)]
    old = examine("weights", CASES / "weights/weights_v1_legacy_dims/v1.caffemodel", CASES)
    assert old["blobs"]["ip1"] == [((1, 1, 5, 432), True), ((1, 1, 1, 5), True)]


@pytest.mark.parametrize("kind", ["weights", "solver state", "mean", "HDF5", "label map", "net", "solver"])
def test_a_file_of_another_kind_is_a_row(project: Path, kind: str) -> None:
    for path in ("a.jpg", "images.txt", "train_lmdb/data.mdb"):
        row = row_of(kind, path)
        assert row.reads == "no" and row.stops, f"{kind}: {path}"


@pytest.mark.usefixtures("in_process")
def test_other_files(project: Path) -> None:
    Path("labelmap.prototxt").write_text('item { name: "none" label: 0 display_name: "background" }')
    with h5py.File("data.h5", "w") as file:
        file["data"] = np.zeros((2, 3), np.float32)
    wrong = blob_from_array(np.ones((3, 8, 8), np.float32))
    Path("wrong.binaryproto").write_bytes(wrong.SerializeToString())
    rows = {row.path: row for row in examine_project(project).rows}
    assert rows["labelmap.prototxt"].kind == "label map" and rows["labelmap.prototxt"].facts == ["1 labels"]
    assert rows["data.h5"].facts == ["data sets data 2x3"]
    assert "a mean has the shape 1xCxHxW, this is 3x8x8" in stops(rows["wrong.binaryproto"])
    os.remove("tiny_iter_2.caffemodel")
    assert "its model 'tiny_iter_2.caffemodel' is not there" in stops(
        row_of("solver state", "tiny_iter_2.solverstate")
    )


# -- the sandbox ---------------------------------------------------------------------------------------------

ACTS = {
    "write": "open('made', 'w')",
    "append": "open('there', 'a')",
    "descriptor": "import os; os.open('made', os.O_CREAT)",
    "folder": "import os; os.mkdir('made')",
    "remove": "import os; os.remove('there')",
    "rename": "import os; os.rename('there', 'made')",
    "program": "import subprocess; subprocess.run(['touch', 'made'])",
    "shell": "import os; os.system('touch made')",
    "import": "import sys; sys.path.insert(0, ''); import strange",
    "temporary file": "import tempfile; tempfile.NamedTemporaryFile(dir='.')",
}


@pytest.mark.parametrize("act", ACTS)
def test_the_examiner_can_do_no_harm(here: Path, act: str) -> None:
    Path("there").write_text("x")
    Path("strange.py").write_text("")
    program = (
        "import subprocess, tempfile, os\nfrom imae.train.doctor import sandbox\nsandbox.enter()\n"
        + "open('there').read(); open('/dev/null', 'w').close()\n"
        + f"try:\n    exec({ACTS[act]!r})\nexcept sandbox.ForbiddenError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "forbidden" in done.stdout
    assert {path.name for path in here.iterdir()} == {"there", "strange.py"} and Path(
        "there"
    ).read_text() == "x"


# -- the report ----------------------------------------------------------------------------------------------


def hostile() -> Survey:
    row = Row("<script>alert(1)</script>\x1b[2J\n.prototxt", "net", reads="no")
    row.stop('"><img src=x onerror=alert(2)>', "<b>", "&amp;")
    row.warnings.append("<i>\x1b]0;title\x07")
    row.facts.append("</td></table>")
    return Survey("<project>", [row], ["<note>"], {"<T>": "<differs>"})


def test_the_page_escapes_everything_and_loads_nothing() -> None:
    page = as_html(hostile())
    for word in (
        "<script",
        "<img",
        "<b>",
        "<i>",
        "</td></table>",
        "<note>",
        "<project>",
        "<T>",
        "\x1b",
        "\x07",
    ):
        assert word not in page.replace("</td></tr>", "")
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<tr>") == 2 and "&lt;script&gt;" in page


def stopped(path: str, *stops: tuple[str, str, str], kind: str = "net", builds: str = "no") -> Row:
    row = Row(path, kind, reads="yes", builds=builds, trains="no", exports=builds)
    for what, owner, remedy in stops:
        row.stop(what, owner, remedy)
    return row


MISSING = "layer '{0}' (Data): data_param.source '{1}' is not there"
FETCH = ("the project", "fetch or make it")
NO_HAND = ("Unknown layer type: Hand", "HandCaffe (who/caffe)", "write it as a plugin")
# Four files lack data, of which two are of a fork, one is not text; a solver stops as its net does.
STOPPED = (
    stopped(
        "a.prototxt",
        (MISSING.format("data", "a_lmdb"), *FETCH),
        (MISSING.format("data", "t_lmdb"), *FETCH),
        NO_HAND,
    ),
    stopped("b.prototxt", (MISSING.format("d2", "b_lmdb"), *FETCH), builds="yes"),
    stopped("c.prototxt", (MISSING.format("data", "a_lmdb"), *FETCH), builds="yes"),
    stopped("d.prototxt", (MISSING.format("data", "d_lmdb"), *FETCH), NO_HAND),
    stopped("e.prototxt", ("line 7:5: expected an integer, got x", "the file", "")),
    stopped("f.prototxt", ("line 9:1: expected an integer, got x", "the file", "")),
    stopped("s.prototxt", ("its net a.prototxt does not train: x", "the project", ""), kind="solver"),
)
SUMMARY = """project /p

6 nets: 6 read, 2 build, 0 train, 2 export. net 6, solver 1: something stops 7 of them
do first: Data: data_param.source is not there (4 files): fetch or make it
forks: HandCaffe (who/caffe) (2 files)

what stops files, and how many:
    4  Data: data_param.source is not there [the project]: fetch or make it
       a.prototxt (a_lmdb, t_lmdb), b.prototxt (b_lmdb), c.prototxt (a_lmdb) and 1 more
    2  Unknown layer type: Hand [HandCaffe (who/caffe)]: write it as a plugin
       a.prototxt, d.prototxt
    2  expected an integer, got x [the file]
       e.prototxt, f.prototxt
    1  its net does not train [the project]
       s.prototxt

two links

--all lists 7 files, 1 warnings, 1 layer types that differ from Caffe's on purpose
"""


def test_equal_stops_are_one_line_and_the_summary_comes_first() -> None:
    survey = Survey("/p", list(STOPPED), ["two links"], {"ReLU": "differs"})
    survey.rows[0].warnings = ["w"]
    assert as_text(survey) == SUMMARY
    every_file = as_text(survey, every_file=True)
    assert every_file.startswith(SUMMARY[: SUMMARY.index("--all lists")])
    assert sum(line.startswith(f"{row.path} ") for row in STOPPED for line in every_file.splitlines()) == 7
    assert "    warning: w\n" in every_file and "--all" not in every_file


def test_the_page_has_the_summary_then_the_reasons_then_every_file() -> None:
    page = as_html(Survey("/p", list(STOPPED)))
    parts = ("6 nets: 6 read", "do first: Data", "forks: HandCaffe", "What stops files", "4 files:", "<tr>")
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    reason = page[page.index("4 files:") : page.index("2 files:", page.index("4 files:"))]
    assert reason.count('<li class="path">') == 4


def test_of_many_reasons_the_first_are_listed() -> None:
    rows = [stopped(f"{index:02}.prototxt", (f"reason {index:02}", "the file", "")) for index in range(23)]
    text = as_text(Survey("/p", rows))
    assert "reason 19 [the file]" in text and "reason 20" not in text
    assert text.endswith("\n--all lists 23 files, 3 more reasons\n")
    assert "    1  reason 22 [the file]" in as_text(Survey("/p", rows), every_file=True)


def test_of_few_files_the_table_is_shown_at_once() -> None:
    text = as_text(Survey("/p", list(STOPPED[:2])))
    assert "    stops: layer 'd2' (Data): data_param.source 'b_lmdb' is not there [the project]" in text
    assert "what stops files" not in text and "--all" not in text and "reads: the file is whole" in text


@pytest.mark.parametrize("colours", [False, True])
def test_the_table_controls_no_terminal(colours: bool) -> None:
    text = as_text(hostile(), colours)
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\\x1b[2J" in text
    assert ("\x1b[31m" in text) is colours


@pytest.mark.usefixtures("in_process")
def test_an_empty_project(here: Path) -> None:
    survey = examine_project(here)
    assert survey.all_well and "no net, solver, weights or data of Caffe was found" in as_text(survey)


@pytest.mark.usefixtures("in_process")
def test_json_has_all(project: Path) -> None:
    values: dict[str, Any] = examine_project("deploy.prototxt").to_dict()
    assert set(values) == {"imae", "project", "all_well", "notes", "files", "differences"}
    assert set(values["files"][0]) == {
        "path", "kind", "reads", "builds", "trains", "exports", "facts", "stops", "warnings",
    }  # fmt: skip
