"""`imae tensorboard`: the files, read back as the format's description has them, without our own code."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pytest
from reference import CASES

from imae.cli.main import main
from imae.files.caffe_log import read_log
from imae.files.event_file import FILE_NAME, crc32c
from imae.train.tensorboard_log import run_names

RUNS = CASES / "runs"
DIGITS = str(RUNS / "digits_lenet" / "train.log")
TWO_TEST_NETS = str(RUNS / "adam_multi_test" / "train.log")
NAN = str(RUNS / "bn_nan_at_iteration_0" / "train.log")

Fields = list[tuple[int, int | bytes]]
Curves = dict[str, list[tuple[int, float]]]


def remainder(data: bytes) -> int:
    """CRC-32C by its definition: the remainder of a division of polynomials, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 * (register & 1))
    return register ^ 0xFFFFFFFF


def records(data: bytes) -> list[bytes]:
    """The records of an event file; each checksum must be right."""
    found, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        content = data[place + 12 : place + 12 + length]
        for part, at in ((data[place : place + 8], place + 8), (content, place + 12 + length)):
            crc = remainder(part)
            masked = (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32
            assert struct.unpack_from("<I", data, at) == (masked,)
        found.append(content)
        place += 16 + length
    assert place == len(data)
    return found


def fields(message: bytes) -> Fields:
    """(number, value) of the fields of a protobuf message: whole numbers, or bytes."""

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    parts: Fields = []
    place = 0
    while place < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            parts.append((number, varint()))
            continue
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        parts.append((number, message[place : place + size]))
        place += size
    return parts


def read_events(path: Path) -> tuple[list[float], Curves]:
    """The times of the events, and the curves: tag -> (step, value)."""
    first, *events = records(path.read_bytes())
    assert dict(fields(first))[3] == b"brain.Event:2"
    times, curves = [], Curves()
    for event in events:
        of_event = dict(fields(event))
        time, summary = of_event[1], of_event[5]
        assert isinstance(time, bytes) and isinstance(summary, bytes)
        times += struct.unpack("<d", time)
        for number, value in fields(summary):
            assert number == 1 and isinstance(value, bytes)
            of_value = dict(fields(value))
            tag, simple = of_value[1], of_value[2]
            assert isinstance(tag, bytes) and isinstance(simple, bytes)
            step = of_event.get(2, 0)
            assert isinstance(step, int)
            curves.setdefault(tag.decode(), []).append((step, struct.unpack("<f", simple)[0]))
    return times, curves


def written(log: str, folder: Path) -> tuple[list[float], Curves]:
    """What the command writes of one log."""
    assert main(["tensorboard", log, "--output", str(folder / "runs")]) == 0
    return read_events(folder / "runs" / Path(log).stem / FILE_NAME)


def values(log: str, what: str, name: str, net: int = 0) -> list[tuple[int, float]]:
    """The numbers of an output in a log, rounded to single precision."""
    return [
        (n.iteration, struct.unpack("<f", struct.pack("<f", n.value))[0])
        for n in read_log(log)
        if (n.what, n.name, n.net) == (what, name, net)
    ]


def test_each_number_of_a_log_is_in_its_curve(tmp_path: Path) -> None:
    _, curves = written(DIGITS, tmp_path)
    assert curves["train/smoothed loss"] == values(DIGITS, "loss", "loss")
    assert curves["train/learning rate"] == values(DIGITS, "lr", "lr")
    assert curves["train/loss"] == values(DIGITS, "train", "loss")
    assert curves["test/accuracy"] == values(DIGITS, "test", "accuracy")
    assert sum(map(len, curves.values())) == len(read_log(DIGITS))


def test_the_outputs_of_a_second_test_net_have_a_group_of_their_own(tmp_path: Path) -> None:
    _, curves = written(TWO_TEST_NETS, tmp_path)
    name = next(n.name for n in read_log(TWO_TEST_NETS) if (n.what, n.net) == ("test", 1))
    assert curves[f"test net 1/{name}"] == values(TWO_TEST_NETS, "test", name, 1)
    assert sum(map(len, curves.values())) == len(read_log(TWO_TEST_NETS))


def test_nan_stays_nan(tmp_path: Path) -> None:
    _, curves = written(NAN, tmp_path)
    assert any(math.isnan(value) for curve in curves.values() for _, value in curve)


def test_elements_of_a_vector_are_told_apart(tmp_path: Path) -> None:
    log = tmp_path / "vector.log"
    line = "I1121 02:13:11.119556  3203 solver.cpp:239] "
    log.write_text(
        line + "Iteration 0, Testing net (#0)\n"
        f"{line}    Test net output #0: of_class = 0.25\n{line}    Test net output #1: of_class = 0.5\n"
        f"{line}Test loss: 2\n"
    )
    _, curves = written(str(log), tmp_path)
    assert curves == {
        "test/of_class[0]": [(0, 0.25)],
        "test/of_class[1]": [(0, 0.5)],
        "test/mean loss": [(0, 2.0)],
    }


def test_times_end_when_the_log_was_written(tmp_path: Path) -> None:
    log = tmp_path / "timed.log"
    log.write_text(
        "".join(
            f"I1121 02:13:{second}.000000  3203 solver.cpp:239] {text}\n"
            for second, text in (
                (10, "Solving"),
                (12, "Iteration 0, loss = 2"),
                (17, "Iteration 5, loss = 1"),
            )
        )
    )
    os.utime(log, (1_700_000_000, 1_700_000_000))
    times, _ = written(str(log), tmp_path)
    assert times == [1_699_999_995, 1_700_000_000]


def test_each_log_is_a_run_and_is_replaced_when_it_is_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert main(["tensorboard", DIGITS, NAN, "--output", str(tmp_path / "runs")]) == 0
    files = sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert len(files) == 2 and len({path.parent for path in files}) == 2
    assert {path.name for path in files} == {FILE_NAME}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.log", "b/c"], ["a", "c"]),
        (["a/train.log", "b/train.log"], ["a_train", "b_train"]),
        (["../train.log", "./train.log", "train.log"], ["train_0", "train_1", "train_2"]),
        ([".log"], ["log"]),
        (["a/...log"], ["a_.."]),
        (["/", ".."], ["_0", "_1"]),
    ],
)
def test_names_of_runs_are_folders_within_the_output(paths: list[str], names: list[str]) -> None:
    assert run_names(paths) == names


def test_a_log_that_cannot_be_read_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.log").write_text("nothing\n")
    arguments = ["tensorboard", DIGITS, str(tmp_path / "empty.log"), "--output", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "no loss, rate or output in it" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    assert main(["tensorboard", DIGITS, "--output", str(tmp_path / "runs")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_the_checksum_is_that_of_its_definition() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogue of such checksums
    assert crc32c(bytes(range(256))) == remainder(bytes(range(256)))
