"""Reading and writing messages as text and binary."""

import errno
import random
import time
from pathlib import Path

import pytest

from imae.files.errors import PrototxtError
from imae.prototxt import (
    BlobProto,
    LayerParameter,
    NetParameter,
    SolverParameter,
    SolverState,
    parse_net,
    parse_text,
    read_binary,
    read_net,
    read_net_binary,
    read_solver,
    read_text,
    to_text,
    write_text,
)

CASES = Path(__file__).parents[1] / "cases"
INVALID = sorted((CASES / "invalid").glob("*.prototxt"))
VALID = sorted(path for path in CASES.rglob("*.prototxt") if path not in INVALID)


def test_cases_are_there() -> None:
    assert len(INVALID) >= 50
    assert len(VALID) > 15


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid(path: Path) -> None:
    """Each is refused with the message that stands beside it, after the path."""
    read = read_solver if path.name.startswith("solver") else read_net
    with pytest.raises(PrototxtError) as error:
        read(path)
    assert str(error.value) == f"{path}{path.with_suffix('.txt').read_text(encoding='utf-8').strip()}"


@pytest.mark.parametrize("path", VALID, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_text_message_text(path: Path) -> None:
    kind = SolverParameter if "solver" in path.name else NetParameter
    message = read_text(path, kind)
    text = to_text(message)
    assert parse_text(text, kind, "again") == message
    assert to_text(parse_text(text, kind, "again")) == text
    assert kind.FromString(message.SerializeToString()) == message


@pytest.mark.parametrize(
    ("written", "printed"),
    [("1", "1"), ("0", "0"), ("-0.0", "-0"), ("1e6", "1e+06"), ("123456", "123456"), ("1234567", "1234567"),
     ("0.1", "0.1"), ("1e-8", "1e-08"), ("0.00390625", "0.00390625"), ("0.12345678", "0.12345678"),
     ("16777216", "16777216"), (".5", "0.5"), ("1.f", "1"), ("1e39", "inf"), ("-inf", "-inf")],
)  # fmt: skip
def test_floats_are_printed_as_caffe_does(written: str, printed: str) -> None:
    layer = parse_text(f"loss_weight: {written}", LayerParameter, "a float")
    assert to_text(layer) == f"loss_weight: {printed}\n"


def test_only_floats_are_shortened() -> None:
    text = 'name: "1.0"\ninput: "2.50e1"\ninput: "\\n: 1.0\\n"\ninput_dim: 1000000\n'
    assert to_text(parse_text(text, NetParameter, "strings")) == text


def test_doubles_keep_their_digits() -> None:
    blob = BlobProto(double_data=[1 / 3, 1e15, 2])
    assert parse_text(to_text(blob), BlobProto, "doubles") == blob


def test_text_is_as_lenient_as_caffe() -> None:
    text = """layer < name: 'a' "b"; bottom: ["x", "y"], >,
              force_backward: t; # comment
              input_dim: 0x10 input_dim: 010"""
    message = parse_text(text, NetParameter, "lenient")
    expected = NetParameter(force_backward=True, input_dim=[16, 8])
    expected.layer.add(name="ab", bottom=["x", "y"])
    assert message == expected


def test_comments_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(
        "# 网络 \"\nname: 'a#b'  # 'é\n".encode("gbk", errors="replace")
        + b'#\xff\nlayer { name: "\xc3\xa9" }'
    )
    net = read_net(path)
    assert net.name == "a#b"
    assert net.layer[0].name == "é"


@pytest.mark.parametrize(
    "text", ["layer {" * 10_000, "layer { include {" * 10_000, "{" * 10_000, "<" * 10_000, "[" * 10_000]
)
def test_deep_nesting(text: str) -> None:
    with pytest.raises(PrototxtError, match=r"^deep:1:\d+: "):
        parse_net(text, "deep")


@pytest.mark.parametrize("alphabet", [bytes(range(256)), b"abc{}:\"'#\n\\<>[]1.- ", b"a", b'"', b"1", b"\\"])
def test_garbage(tmp_path: Path, alphabet: bytes) -> None:
    """A MiB of anything is refused in one short line, whatever it is read as."""
    path = tmp_path / "garbage"
    path.write_bytes(bytes(random.Random(1).choices(alphabet, k=2**20)))
    for read in (read_net, read_solver, read_net_binary):
        with pytest.raises(PrototxtError) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    missing = tmp_path / "no.prototxt"
    for read in (read_net, read_solver, read_net_binary):
        with pytest.raises(PrototxtError) as error:
            read(missing)
        assert str(error.value) == f"{missing}: no such file"
        with pytest.raises(PrototxtError) as error:
            read(tmp_path)
        assert str(error.value) == f"{tmp_path}: is a folder, expected a file"


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("imae.prototxt.text.read_bytes", refuse)
    with pytest.raises(PrototxtError, match=r"^net: cannot be read: Permission denied$"):
        read_net("net")


def test_binary(tmp_path: Path) -> None:
    net = NetParameter(name="n")
    net.layer.add(name="a", type="InnerProduct").blobs.add(data=[1.5] * 1000)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert read_net_binary(path) == net
    assert read_binary(path, NetParameter) == net


def test_binary_cut_short(tmp_path: Path) -> None:
    net = NetParameter(name="n")
    net.layer.add(name="a", type="InnerProduct").blobs.add(data=[1.5] * 1000)
    data = net.SerializeToString()
    path = tmp_path / "net.caffemodel"
    for size in (4, 10, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(
            PrototxtError, match=r"caffemodel: not a binary caffe\.NetParameter, or cut short: "
        ):
            read_net_binary(path)
    path.write_bytes(b"")
    with pytest.raises(PrototxtError, match="the file is empty"):
        read_net_binary(path)


def test_binary_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "solver.solverstate"
    path.write_bytes(SolverState(iter=3).SerializeToString())
    with pytest.raises(
        PrototxtError, match=r"not a binary caffe\.NetParameter: nothing in it has a meaning there"
    ):
        read_binary(path, NetParameter)


def test_binary_string_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(
        NetParameter(layer=[LayerParameter(name="??")]).SerializeToString().replace(b"??", b"\xff\xfe")
    )
    with pytest.raises(PrototxtError, match="can't decode byte 0xff"):
        read_net_binary(path)


def test_write_text(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    net = NetParameter(name="é")
    write_text(net, path)
    assert path.read_bytes() == 'name: "é"\n'.encode()
    assert read_net(path) == net


def test_a_read_solver_knows_its_snapshot_prefix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "my.solver.prototxt"
    stem = f"{tmp_path}/my.solver"
    for given, prefix, line in [
        ("", stem, f"snapshot_prefix was not specified and is set to {stem}"),
        (f"prefix: '{tmp_path}'", stem, f"snapshot_prefix was a directory and is replaced to {stem}"),
        ("prefix: 'lenet'", "lenet", None),
    ]:
        caplog.clear()
        path.write_text(f"net: 'net.prototxt' {given.replace('prefix', 'snapshot_prefix')}", encoding="utf-8")
        assert read_solver(path).snapshot_prefix == prefix
        assert caplog.messages == ([line] if line else [])


@pytest.mark.parametrize("pairs", [99, 100, 101, 500_000])
@pytest.mark.parametrize("end", ["", "x", r"\n", r"\"", "123", r"\x41"])
def test_runs_of_backslashes_take_time_in_proportion(pairs: int, end: str) -> None:
    """protobuf's reader took 35 s for 40 kB of them, and would have taken hours for a mebibyte."""
    begun = time.process_time()
    one, two = "\\" * pairs, "\\\\" * pairs
    net = parse_net(f'name: "a{two}{end}" # {one}')
    assert net.name == "a" + "\\" * pairs + {r"\n": "\n", r"\"": '"', r"\x41": "A"}.get(end, end)
    assert time.process_time() - begun < 5


def test_quotes_in_a_text_that_is_not_utf8_take_time_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(b'name: "' + rb"\"" * 300_000 + b"\xff")
    begun = time.process_time()
    with pytest.raises(PrototxtError, match=r"net\.prototxt:1:600008: byte 0xff is not UTF-8"):
        read_net(path)
    assert time.process_time() - begun < 5
