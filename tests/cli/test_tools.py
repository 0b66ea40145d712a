"""Caffe's tools as commands: extract_features, the upgrades, draw_net; and Caffe's names for all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from google.protobuf import text_format
from listing import set_of_names as names
from reference import CASES
from tolerances import tolerance

from imae.cli.main import COMMANDS, main
from imae.converters.draw_net import draw_net, get_layer_label, get_layer_lr_mult, get_pydot_graph
from imae.converters.extract_features import blob_datums, extract_features
from imae.files.errors import DataError, LayerError
from imae.layers.data.lmdb_source import open_lmdb
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter
from imae.prototxt.text import parse_net, read_binary, read_net_binary
from imae.pycaffe import draw

FEATURES = CASES / "extract_features"
UPGRADES = sorted((CASES / "upgrade").glob("*.in.prototxt"))
assert len(UPGRADES) == 6
PREFIX = re.compile(r"(?m)^([IWEF])\d{4} \S+ +\d+ ")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "tool",
    [
        "convert_imageset",
        "convert_annoset",
        "compute_image_mean",
        "extract_features",
        "upgrade_net_proto_text",
        "upgrade_net_proto_binary",
        "upgrade_solver_proto_text",
        "device_query",
        "draw_net",
        "parse_log",
    ],
)
def test_caffes_names_are_known(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.replace("_", "-") in COMMANDS
    with pytest.raises(SystemExit) as ended:
        main([tool, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: imae {tool.replace('_', '-')} ")


# -- extract-features ----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recorded net, its weights and its LMDB."""
    monkeypatch.chdir(tmp_path)
    for name in ("net.prototxt", "w.caffemodel"):
        shutil.copy(FEATURES / name, name)
    with np.load(FEATURES / "db.records.npz", allow_pickle=False) as file:
        keys, ends, values = (
            file["keys"].tolist(),
            np.cumsum(file["sizes"]).tolist(),
            file["values"].tobytes(),
        )
    with lmdb.open("db", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, start, end in zip(keys, [0, *ends], ends, strict=False):
            transaction.put(key, values[start:end])
    return tmp_path


COMMAND = ["extract_features", "w.caffemodel", "net.prototxt"]


def test_features_are_caffes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = json.loads((FEATURES / "listing.json").read_text())
    assert main(listing["command"]) == 0
    log = PREFIX.sub(r"\1 ", capsys.readouterr().err)
    said = [line for line in log.splitlines() if line.startswith("E ")]
    assert said == PREFIX.sub(r"\1 ", (FEATURES / "extract.log").read_text()).splitlines()
    rtol, atol, _ = tolerance("golden")
    assert set(listing["databases"]) == {"feat_conv", "feat_fc", "feat_prob"}
    for name, records in listing["databases"].items():
        with open_lmdb(name) as source:
            assert list(map(bytes.decode, source.keys())) == [record["key"] for record in records]
            for index, record in enumerate(records):
                datum = source.datum(index)
                shape = {side: record[side] for side in ("channels", "height", "width")}
                want = np.array(record["float_data"])
                np.testing.assert_allclose(np.array(datum.float_data), want, rtol, atol * np.abs(want).max())
                datum.ClearField("float_data")
                assert {field.name: value for field, value in datum.ListFields()} == shape


def test_more_records_than_a_transaction_has(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "label", "out", "251", "lmdb", "CPU"]) == 0
    log = capsys.readouterr().err
    assert "extract_features.cpp:165] Extracted features of 1000 query images for feature blob label" in log
    assert "extract_features.cpp:176] Extracted features of 1004 query images for feature blob label" in log
    with open_lmdb("out") as source, open_lmdb("db") as data:
        assert len(source) == 1004
        assert source.keys()[-1] == b"0000001003"
        assert source.datum(1003).float_data == [data.datum(1003 % len(data)).label]


def test_axes_that_a_blob_lacks_are_one() -> None:
    (only,) = blob_datums(np.float32(3).reshape(()), "loss")
    assert (only.channels, only.height, only.width, list(only.float_data)) == (1, 1, 1, [3])
    first, _ = blob_datums(np.arange(10, dtype=np.float32).reshape(2, 5), "fc")
    assert (first.channels, first.height, first.width) == (5, 1, 1)
    with pytest.raises(DataError, match="blob x: Cannot use legacy accessors on Blobs with > 4 axes"):
        list(blob_datums(np.zeros((2, 3, 5, 7, 1), np.float32), "x"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["conv,nope", "a,b", "1", "lmdb"],
            "Unknown feature blob name nope in the network features; known: data,",
        ),
        (
            ["conv,fc", "a", "1", "lmdb"],
            "the number of blob names and dataset names must be equal; got 2 and 1",
        ),
        (["conv,fc", "a,a", "1", "lmdb"], "a database is named twice: a,a"),
        (["conv,conv", "a,b", "1", "lmdb"], "a blob is named twice: conv,conv"),
        (["conv", "a", "0", "lmdb"], "NUM_MINI_BATCHES must be at least 1, got 0"),
        (["conv", "a", "1", "leveldb"], "argument DB_TYPE: invalid choice: 'leveldb'"),
        (["conv", "db", "1", "lmdb"], "cannot write 'db': it exists already"),
        (["conv", "a", "1", "lmdb", "GPU", "99"], "GPU 99: "),
        (["conv", "a", "1", "lmdb", "GPU", "x"], "DEVICE_ID must be the number of a GPU, got 'x'"),
    ],
)
def test_extract_features_refuses(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(here)
    assert main([*COMMAND, *arguments]) == 2
    assert message in last_line(capsys)
    assert names(here) == before


def test_a_net_without_data_is_refused_and_no_database_stays(tmp_path: Path) -> None:
    param = parse_net('layer { name: "i" type: "Input" top: "x" input_param { shape { dim: 2 } } }')
    param.state.phase = TEST
    with pytest.raises(LayerError, match="input x is not given"):
        extract_features(Net(param), ["x"], [tmp_path / "out"], 1)
    assert names(tmp_path) == set()


# -- upgrades ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UPGRADES, ids=lambda path: path.name.split(".")[0])
def test_upgrades_are_caffes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, path.name)
    name = path.name.removesuffix(".in.prototxt")
    tool = "upgrade_solver_proto_text" if name.startswith("solver") else "upgrade_net_proto_text"
    assert main([tool, path.name, f"{name}.out.prototxt"]) == 0
    log = path.with_name(f"{name}.log").read_text()
    assert PREFIX.sub(r"\1 ", capsys.readouterr().err) == PREFIX.sub(r"\1 ", log)
    assert Path(f"{name}.out.prototxt").read_bytes() == path.with_name(f"{name}.out.prototxt").read_bytes()


V0_NET = """name: "old"
layers { layer { name: "c" type: "conv" num_output: 3 kernelsize: 2 mirror: true scale: 2 local_size: 5 }
         bottom: "x" top: "c" }
input: "x" input_dim: 1 input_dim: 1 input_dim: 5 input_dim: 5
"""


def test_what_is_left_out_makes_the_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text(V0_NET)
    assert main(["upgrade-net-proto-text", str(old), str(new)]) == 1
    log = capsys.readouterr().err
    assert re.search(r"(?m)^E.* Unknown parameter local_size for layer type conv", log)
    assert re.search(
        r"(?m)^E\d+ .* upgrade_net_proto_text\.cpp:39\] Encountered error\(s\) while upgrading", log
    )
    assert 'type: "Convolution"' in new.read_text()
    binary, upgraded = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel"
    binary.write_bytes(text_format.Parse(V0_NET, NetParameter()).SerializeToString())
    assert main(["upgrade-net-proto-binary", str(binary), str(upgraded)]) == 1
    assert read_binary(upgraded, NetParameter) == parse_net(new.read_text())
    assert main(["upgrade-net-proto-binary", str(upgraded), str(binary)]) == 0
    assert "upgrade_net_proto_binary.cpp:43] File already in latest proto format" in capsys.readouterr().err


def test_a_binary_net_is_upgraded_with_its_blobs(tmp_path: Path) -> None:
    old = CASES / "weights" / "weights_v1_legacy_dims" / "v1.caffemodel"
    new = tmp_path / "new.caffemodel"
    assert main(["upgrade_net_proto_binary", str(old), str(new)]) == 0
    written = read_binary(new, NetParameter)
    assert written == read_net_binary(old)
    assert sum(len(blob.data) for layer in written.layer for blob in layer.blobs) > 100


@pytest.mark.parametrize(
    "tool", ["upgrade-net-proto-text", "upgrade-net-proto-binary", "upgrade-solver-proto-text"]
)
def test_upgrades_refuse(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([tool, str(tmp_path / "nope"), str(tmp_path / "out")]) == 2
    assert last_line(capsys).endswith("nope: no such file")
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe nonsense {")
    assert main([tool, str(broken), str(tmp_path / "out")]) == 2
    assert str(broken) in last_line(capsys)
    assert names(tmp_path) == {"broken"}


# -- draw-net ------------------------------------------------------------------------------------------------

DRAWN = r"""
name: "a \"net\""
layer { name: "data" type: "Data" top: "d|a" top: "label" include { phase: TRAIN }
        data_param { batch_size: 32 } }
layer { name: "c<1>" type: "Convolution" bottom: "d|a" top: "c" param { lr_mult: 1 } param { lr_mult: 2 }
        convolution_param { num_output: 7 kernel_h: 3 kernel_w: 5 stride: 2 } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" exclude { stage: "x" } }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE kernel_size: 3 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "p" top: "fc" inner_product_param { num_output: 11 } }
layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" exclude { phase: TRAIN } }
"""

GRAPH = r"""digraph "a \"net\"" {
rankdir=LR;
"data_Data" [label="data\n(Data)", shape=record, fillcolor="#6495ED", style=filled];
"d|a_blob" [label="d\|a", shape=octagon, fillcolor="#E0E0E0", style=filled];
"label_blob" [label="label"];
"c<1>_Convolution" [label="c\<1\>\n(Convolution)\nkernel size: 3 x 5\nstride: 2\npad: 0\nlr mult: 1.0, 2.0", shape=record, fillcolor="#FF5050", style=filled];
"c_blob" [label="c", shape=octagon, fillcolor="#E0E0E0", style=filled];
"relu_ReLU" [label="relu\n(ReLU)", shape=record, fillcolor="#90EE90", style=filled];
"pool_Pooling" [label="pool\n(Pooling AVE)\nkernel size: 3\nstride: 1\npad: 1", shape=record, fillcolor="#FF9900", style=filled];
"p_blob" [label="p", shape=octagon, fillcolor="#E0E0E0", style=filled];
"fc_InnerProduct" [label="fc\n(InnerProduct)\nlr mult: 1.0, 1.0", shape=record, fillcolor="#CC33FF", style=filled];
"fc_blob" [label="fc"];
"data_Data" -> "d|a_blob" [label="Batch 32"];
"data_Data" -> "label_blob" [label="Batch 32"];
"d|a_blob" -> "c<1>_Convolution" [label=""];
"c<1>_Convolution" -> "c_blob" [label=7];
"c_blob" -> "relu_ReLU" [label=""];
"relu_ReLU" -> "c_blob" [label=""];
"c_blob" -> "pool_Pooling" [label=""];
"pool_Pooling" -> "p_blob" [label=""];
"p_blob" -> "fc_InnerProduct" [label=""];
"fc_InnerProduct" -> "fc_blob" [label=11];
}
"""  # noqa: E501


def test_graphviz_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, drawing = tmp_path / "net.prototxt", tmp_path / "net.dot"
    net.write_text(DRAWN)
    assert main(["draw_net", str(net), str(drawing), "--phase", "TRAIN", "--display_lrm"]) == 0
    assert capsys.readouterr().out == f"Drawing net to {drawing}\n"
    assert drawing.read_text() == GRAPH
    assert b"acc_Accuracy" in draw_net(parse_net(DRAWN), "LR", "raw")
    assert b"data_Data" not in draw_net(parse_net(DRAWN), "LR", "raw", phase=TEST)
    assert b"(Pooling AVE) kernel size: 3 stride: 1" in draw_net(parse_net(DRAWN), "TB", "gv")
    assert b"rankdir=BT" in draw_net(parse_net(DRAWN), "BT", "dot")
    assert b"Batch" not in get_pydot_graph(parse_net(DRAWN), "LR", label_edges=False).to_string().encode()


def test_caffes_names_for_drawing() -> None:
    assert draw.draw_net is draw_net
    assert draw.get_pooling_types_dict() == {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
    layer = LayerParameter(name="x", type="ReLU")
    assert get_layer_label(layer, "TB") == '"x (ReLU)"'
    assert draw.choose_color_by_layertype("Deconvolution") == "#FF5050"
    with pytest.raises(LayerError, match="ReLU layers do not have a learning rate multiplier"):
        get_layer_lr_mult(layer)
    both = parse_net('layer { name: "b" type: "ReLU" include { } exclude { } }')
    with pytest.raises(LayerError, match="either include rules or exclude rules; not both"):
        draw_net(both, "LR", "raw", phase=TRAIN)


def put_dot(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program `dot` be this script."""
    program = folder / "bin" / "dot"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent) + os.pathsep + os.environ["PATH"])


STRING = re.compile(r'"(?:\\\\|\\"|[^"\\]|\\[^"\\])*"')  # as Graphviz reads one, which takes \\\\ as a pair


@pytest.mark.parametrize(
    "name", ["x\\", "x\\\\", 'x\\"]; evil [image="/etc/passwd', 'a"b', "a\nb", '\\"', "{|}<>", "\\N\\G"]
)
def test_names_stay_in_their_quotes(name: str) -> None:
    net = NetParameter(name=name)
    net.layer.add(name=name, type="ReLU", bottom=[name], top=[name + "2"])
    for rankdir in ("LR", "TB"):
        text = draw_net(net, rankdir, "dot").decode()
        rest = STRING.sub("", text)
        assert '"' not in rest and "evil" not in rest and "/etc" not in rest
        assert rest.count("[label=") == 5 and rest.count("->") == 2


def test_pictures_are_drawn_by_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dot(tmp_path, "print(sys.argv[1:], sys.stdin.read()[:7])", monkeypatch)
    (tmp_path / "net.prototxt").write_text(DRAWN)
    assert main(["draw-net", str(tmp_path / "net.prototxt"), str(tmp_path / "net.SVG")]) == 0
    assert (tmp_path / "net.SVG").read_text() == "['-Tsvg'] digraph\n"


def test_what_graphviz_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_dot(tmp_path, "sys.exit('Format: \"xyz\" not recognized.\\nUse one of ...')", monkeypatch)
    (tmp_path / "net.prototxt").write_text(DRAWN)
    assert main(["draw-net", str(tmp_path / "net.prototxt"), str(tmp_path / "net.xyz")]) == 2
    assert last_line(capsys) == "imae: `dot` cannot draw the net as 'xyz': Format: \"xyz\" not recognized."
    assert names(tmp_path) == {"net.prototxt", "bin"}


def test_drawing_without_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.prototxt").write_text(DRAWN)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["draw-net", str(tmp_path / "net.prototxt")]
    assert main([*command, str(tmp_path / "net.png")]) == 2
    assert "drawing as 'png' needs Graphviz's program `dot`, which is not here" in last_line(capsys)
    assert main([*command, str(tmp_path / "net")]) == 2
    assert "give the drawing an ending: .png, .svg" in last_line(capsys)
    monkeypatch.setitem(sys.modules, "pydot", None)
    assert main([*command, str(tmp_path / "net.dot")]) == 2
    assert last_line(capsys) == "imae: drawing needs the package pydot: pip install 'imae[draw]'"
    assert names(tmp_path) == {"net.prototxt"}
