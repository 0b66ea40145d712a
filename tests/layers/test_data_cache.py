"""Records that are kept in memory and records that are streamed: the same batches, within one budget."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rank_runs
import torch
from numpy.typing import NDArray

from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.files.caffe_log import parse_log, read_log
from imae.files.errors import DataError
from imae.files.limits import bytes_text, memory_size, total_memory
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data import transformer as transformer_module
from imae.layers.data.base_data import Buffers
from imae.layers.data.data import Data, RawFormat
from imae.layers.data.data_resources import DataResources, usable_cores
from imae.layers.data.datum import array_from_datum, datum_from_array
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, Datum, LayerParameter
from imae.prototxt.text import parse_net, parse_text

RECORDS, BATCH = 11, 6
ORDERS = {
    "sequential": "",
    "shuffled": "order: SHUFFLED",
    "balanced": "order: CLASS_BALANCED classes_per_batch: 3 images_per_class: 2",
}


pytestmark = pytest.mark.usefixtures("here")


def pixels(count: int, size: tuple[int, int, int], seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), np.uint8)


def encoded(image: NDArray[np.uint8], label: int, form: str) -> Datum:
    done, data = cv2.imencode(form, image.transpose(1, 2, 0))
    assert done
    return Datum(data=data.tobytes(), encoded=True, label=label)


def write(form: str, size: tuple[int, int, int], path: str = "db", records: int = RECORDS) -> None:
    """A database of pictures of one size; labels 0, 1, 2, 0, ..."""
    images = enumerate(pixels(records, size))
    if form == "raw":
        datums = [datum_from_array(image, i % 3) for i, image in images]
    else:
        datums = [encoded(image, i % 3, form) for i, image in images]
    write_lmdb(path, ((b"%05d" % i, datum) for i, datum in enumerate(datums)))


def build(
    transform: str = "", order: str = "", resources: DataResources | None = None, phase: int = TRAIN
) -> Data:
    return make(
        f'type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f"{f'data_order_param {{ {order} }}' if order else ''} "
        f'data_param {{ source: "db" batch_size: {BATCH} backend: LMDB }}',
        resources,
        phase,
    )


def make(text: str, resources: DataResources | None = None, phase: int = TRAIN) -> Any:
    param = parse_text(f'name: "data" {text}', LayerParameter, "<test>")
    param.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    layer = layer_class(param.type)(param)
    layer.build([], Run(CaffeRandom(7), data_resources=resources))
    return layer


def batches(layer: Any, count: int = 5) -> list[NDArray[Any]]:
    return [top.numpy().copy() for _ in range(count) for top in layer.next_batch()]


def assert_same(got: list[NDArray[Any]], want: list[NDArray[Any]]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def is_kept(layer: Data) -> bool:
    return "stay in memory" in layer.reader.storage or "are kept in memory" in layer.reader.storage


# -- kept or streamed: the same batches ----------------------------------------------------------------------


SMALL, BIG = (3, 20, 23), (3, 90, 81)
TRANSFORMS = {
    "plain": "",
    "crop": "crop_size: 17 mirror: true mean_value: 99.7 mean_value: 120.1 mean_value: 3 scale: 0.37",
    "large crop": "crop_size: 70 mirror: true mean_value: 99.7 mean_value: 0 mean_value: 3 scale: 0.37",
    "mean file": 'crop_size: 17 mirror: true mean_file: "mean"',
    "large mean file": 'crop_size: 70 mirror: true mean_file: "mean" scale: 1.7',
    "mirror": "mirror: true mean_value: 0",
    "last left out": "crop_size: 18 mirror: true exclude_last_crop: true",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["raw", ".png", ".jpg"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_budget_one_byte_too_small_gives_the_same_batches(transform: str, form: str, order: str) -> None:
    size = BIG if "large" in transform else SMALL
    write(form, size)
    mean = np.random.default_rng(2).random((1, *size), np.float32) * 200
    Path("mean").write_bytes(blob_from_array(mean).SerializeToString())
    needed = RECORDS * int(np.prod(size))
    text = TRANSFORMS[transform], ORDERS[order]
    kept = build(*text, DataResources(needed, threads=3))
    streamed = build(*text, DataResources(needed - 1, threads=3))
    alone = build(*text, DataResources(0, threads=1))
    assert is_kept(kept) and not is_kept(streamed) and not is_kept(alone)
    want = batches(kept)
    assert_same(batches(streamed), want)
    assert_same(batches(alone), want)


@pytest.mark.parametrize("force", ["force_color: true", "force_gray: true", ""])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_forced_colours_are_the_same_kept_and_streamed(force: str, channels: int) -> None:
    write(".png", (channels, 70, 66))
    transform = f"{force} crop_size: 65 mirror: true"
    want = batches(build(transform, resources=DataResources(1 << 30)))
    assert_same(batches(build(transform, resources=DataResources(0))), want)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("name", ["large crop", "large mean file", "mirror"])
def test_large_and_small_images_are_transformed_alike(
    name: str, phase: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two ways to do it, one image at a time and all at once, in values that are cut into parts."""
    write("raw", BIG)
    mean = np.random.default_rng(2).random((1, *BIG), np.float32) * 200
    Path("mean").write_bytes(blob_from_array(mean).SerializeToString())
    want = batches(build(TRANSFORMS[name], phase=phase))
    monkeypatch.setattr(transformer_module, "LARGE", 1 << 40)
    monkeypatch.setattr(transformer_module, "CACHED", 2 * 3 * 70 * 70)
    assert_same(batches(build(TRANSFORMS[name], phase=phase)), want)
    assert_same(batches(build(TRANSFORMS[name], phase=phase, resources=DataResources(0))), want)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["raw", ".jpg"])
def test_a_run_goes_on_exactly_with_another_budget(form: str, order: str) -> None:
    write(form, SMALL)
    text = TRANSFORMS["crop"], ORDERS[order]
    ways = [lambda: build(*text, DataResources(1 << 30)), lambda: build(*text, DataResources(0))]
    whole = batches(ways[0](), 7)
    for first in ways:
        for second in ways:
            begun = first()
            batches(begun, 3)
            resumed = second()
            resumed.set_state(begun.get_state())
            assert_same(batches(resumed, 4), whole[6:])


def test_images_of_several_sizes_are_streamed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    images = [pixels(1, (3, 20 + i, 24 - i), seed=i)[0] for i in range(RECORDS)]
    write_lmdb("db", ((b"%05d" % i, datum_from_array(image, 0)) for i, image in enumerate(images)))
    layer, resources = build("crop_size: 9 mirror: true"), DataResources(0)
    assert_same(batches(layer), batches(build("crop_size: 9 mirror: true", resources=resources)))
    assert layer.data_resources.free == layer.data_resources.budget
    assert "'db' has images of several sizes, so they are read anew each time" in caplog.messages


def test_records_of_mixed_forms_are_read_as_protobuf_reads_them() -> None:
    """Raw ones of the first one's form, with large labels, with fields in another order, floats, pictures."""
    images = pixels(RECORDS, SMALL)
    datums = [datum_from_array(image, i * 100) for i, image in enumerate(images)]
    values = [datum.SerializeToString() for datum in datums]
    values[2] = Datum(label=5).SerializeToString() + values[2]  # the last label counts
    values[3] = encoded(images[3], 3, ".png").SerializeToString()
    values[4] += Datum(encoded=False).SerializeToString()
    values[5] = datum_from_array(images[5].astype(np.float32), 6).SerializeToString()
    values[6] += Datum(label=-3).SerializeToString()
    write_lmdb("db", ((b"%05d" % i, Datum.FromString(value)) for i, value in enumerate(values)))
    streamed = batches(build(resources=DataResources(0)))
    places = [i % RECORDS for i in range(5 * BATCH)]
    np.testing.assert_array_equal(np.concatenate(streamed[::2]), images[places].astype(np.float32))
    labels = [Datum.FromString(values[place]).label for place in places]
    assert np.concatenate(streamed[1::2]).tolist() == labels
    assert_same(batches(build(resources=DataResources(1 << 30))), streamed)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value,
        lambda value: value[:-1],  # the label's number is missing
        lambda value: value[:-2],  # no label
        lambda value: value[:-3],  # a pixel too few
        lambda value: value + Datum(label=77).SerializeToString(),
        lambda value: value + Datum(encoded=True).SerializeToString(),
        lambda value: value + Datum(channels=4).SerializeToString(),
        lambda value: value + Datum(data=b"x").SerializeToString(),
        lambda value: value + Datum(float_data=[1]).SerializeToString(),
        lambda value: value + b"\xff",
        lambda value: value + b"\x98\x06\x01",  # a field that nobody knows
        lambda value: Datum(height=5).SerializeToString() + value,
        lambda value: b"",
    ],
)
def test_the_short_way_through_a_record_agrees_with_the_long_one(change: Callable[[bytes], bytes]) -> None:
    image = pixels(1, (2, 3, 4))[0]
    form = RawFormat(datum_from_array(image, 1))
    good = datum_from_array(image, 9).SerializeToString()
    value = change(good)
    for _ in range(2):  # what follows the pixels is remembered
        found = form.read([good, value])
        if found is not None:
            datum = Datum.FromString(value)
            images, labels = found
            np.testing.assert_array_equal(images[1], array_from_datum(datum))
            assert labels.tolist() == [9, datum.label]
    known = (good, good[:-2], good + Datum(label=77).SerializeToString())
    assert (found is not None) == (value in known)


def test_values_of_many_records_are_those_of_each() -> None:
    """Whatever their order, near and far, some twice, some as large as many others."""
    images = [pixels(1, (3, 9 if i % 7 else 400, 10 + i), seed=i)[0] for i in range(60)]
    write_lmdb("db", ((b"%05d" % i, datum_from_array(image, i)) for i, image in enumerate(images)))
    with open_lmdb("db") as source:
        for rows in (
            np.arange(60),
            np.random.default_rng(1).integers(0, 60, 90),
            np.array([59]),
            np.arange(0),
        ):
            assert source.values(rows) == [source.value(int(row)) for row in rows]


# -- one budget for all --------------------------------------------------------------------------------------


def test_layers_take_from_one_budget_in_turn_and_give_back() -> None:
    write("raw", SMALL)
    write("raw", SMALL, "other")
    needed = RECORDS * int(np.prod(SMALL))
    resources = DataResources(2 * needed - 1)
    first = build(resources=resources)
    assert is_kept(first) and resources.free == needed - 1
    other = 'type: "Data" top: "data" data_param { source: "other" batch_size: 2 backend: LMDB }'
    second = make(other, resources)
    assert second.reader.storage == (
        f"11 records, {bytes_text(needed)} decoded, are read anew each time; {bytes_text(needed - 1)} are "
        f"free of a budget of {bytes_text(2 * needed - 1)} (--data-cache)"
    )
    batches(first, 1)
    first.close()
    del first
    gc.collect()
    assert resources.free == resources.budget
    assert is_kept(make(other, resources))


def test_layers_that_read_the_same_records_share_them() -> None:
    write(".png", SMALL)
    needed = RECORDS * int(np.prod(SMALL))
    resources = DataResources(needed)
    train, test = build(resources=resources), build(resources=resources, phase=TEST)
    gray = build("force_gray: true", resources=resources)
    assert "where another layer has them, too" in test.reader.storage and is_kept(train)
    assert not is_kept(gray)
    want = batches(build(resources=DataResources(0)))
    assert_same(batches(train), want)
    assert_same(batches(test), want)
    assert np.shares_memory(train.reader._kept.images, test.reader._kept.images)  # type: ignore[union-attr]


def test_a_net_hands_its_resources_to_its_layers_and_ranks_divide_them() -> None:
    write("raw", SMALL)
    text = 'layer { name: "d" type: "Data" top: "x" data_param { source: "db" batch_size: 2 backend: LMDB } }'
    resources = DataResources(5)
    net = Net(parse_net(text, "<test>"), Run(data_resources=resources))
    assert net.data_layers()[0].data_resources is resources
    assert DataResources().budget == total_memory() // 4 and DataResources().threads == usable_cores()
    assert DataResources(ranks=2).budget == int(total_memory() * 0.25) // 2
    assert DataResources(1000, 1, ranks=3).budget == 333 and DataResources(1000, 1, ranks=3).threads == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("0%", 0),
        ("123", 123),
        ("7B", 7),
        ("64k", 64 << 10),
        ("1.5 MiB", 3 << 19),
        ("512M", 512 << 20),
        (".25G", 1 << 28),
        ("0.5GB", 1 << 29),
        ("25%", int(total_memory() * 0.25)),
        ("100%", total_memory()),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "4X", "G", "1e3", "%", "4iB", "nan", "0x10", "1,5G"])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(
        ValueError, match="expected a size such as 4G or 512M, a share such as 25%, or 0; got"
    ):
        memory_size(text)


@pytest.mark.parametrize("text", ["101%", "999999999G", "9" * 400])
def test_more_memory_than_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"is more than the .* of memory that there are"):
        memory_size(text)


# -- several threads -----------------------------------------------------------------------------------------


def test_work_for_several_threads_is_done_in_order() -> None:
    resources = DataResources(0, threads=4)
    assert resources.map_indices(lambda i: i * i, 101) == [i * i for i in range(101)]

    def fail(i: int) -> None:
        if i in (70, 13, 99):
            raise DataError(str(i))

    with pytest.raises(DataError, match="13"):
        resources.map_indices(fail, 101)
    assert resources.map_indices(lambda i: i, 0) == []


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_the_first_damaged_picture_is_named_and_tried_again(budget: int) -> None:
    datums = [encoded(image, 0, ".png") for image in pixels(RECORDS, SMALL)]
    for i in (5, 3):
        datums[i].data = datums[i].data[:60]
    write_lmdb("db", ((b"%05d" % i, datum) for i, datum in enumerate(datums)))
    layer = build(resources=DataResources(budget, threads=4))
    for _ in range(2):
        with pytest.raises(DataError, match=r"^lmdb 'db', key '00003': could not decode"):
            layer.next_batch()


def test_image_data_is_the_same_with_any_number_of_threads() -> None:
    images = pixels(9, (3, 71, 75))
    for i, image in enumerate(images):
        cv2.imwrite(f"p{i}.png", image.transpose(1, 2, 0))
    Path("list.txt").write_text("".join(f"p{i}.png {i}\n" for i in range(9)))
    text = (
        'type: "ImageData" top: "data" top: "label" transform_param { crop_size: 66 mirror: true } '
        'image_data_param { source: "list.txt" batch_size: 5 shuffle: true new_height: 70 new_width: 68 }'
    )
    want = batches(make(text, DataResources(threads=1)))
    assert_same(batches(make(text, DataResources(threads=4))), want)


def test_memory_of_a_batch_is_used_again_once_nobody_refers_to_it() -> None:
    buffers = Buffers()
    first = torch.from_numpy(buffers.new((2, 3, 4)))
    place = first.data_ptr()
    view = first.view(-1)[5:7].numpy()[1:]
    del first
    second = torch.from_numpy(buffers.new((2, 3, 4)))
    assert second.data_ptr() != place  # the view holds it
    del view
    third = torch.from_numpy(buffers.new((4, 3, 2)))
    assert third.data_ptr() == place
    assert buffers.new((5,)).shape == (5,)


def test_batches_that_are_held_do_not_change() -> None:
    write("raw", SMALL)
    layer = build(TRANSFORMS["crop"])
    held = [layer.next_batch()[0] for _ in range(12)]
    copies = [batch.clone() for batch in held]
    batches(layer, 12)
    assert all(torch.equal(batch, copy) for batch, copy in zip(held, copies, strict=True))


# -- the command line and its log ----------------------------------------------------------------------------


SOLVER = """
net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" random_seed: 3 display: 1 max_iter: 4 snapshot: 2
snapshot_prefix: "s" test_iter: 1 test_interval: 2
"""
NET = """
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.01 mirror: true }
        data_param { source: "db" batch_size: 4 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
WAITED = re.compile(
    r"solver\.py:\d+\] Waited for data: \d+\.\d s of \d+\.\d s of training \(\d+\.\d %\)$", re.M
)


def train(capsys: pytest.CaptureFixture[str], *flags: str, status: int = 0) -> str:
    assert main(["train", "solver.prototxt", *flags]) == status
    return capsys.readouterr().err


@pytest.fixture
def project(here: Path) -> None:
    write("raw", SMALL)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)


@pytest.mark.usefixtures("project")
def test_training_is_the_same_with_any_budget(capsys: pytest.CaptureFixture[str]) -> None:
    logs = {size: train(capsys, "--data-cache", size) for size in ("0", "25%", "14k", "20000")}
    numbers = {size: [n[:6] for n in parse_log(log.splitlines())] for size, log in logs.items()}
    assert len(numbers["0"]) > 4 and all(found == numbers["0"] for found in numbers.values())
    streamed = "11 records, 14.8 KiB decoded, are read anew each time; {0} are free of a budget of {0}"
    assert logs["0"].count(f"layer 'data' (Data): {streamed.format('0 bytes')} (--data-cache)") == 2
    assert logs["14k"].count(streamed.format("14 KiB")) == 2  # train net, test net
    assert logs["20000"].count("stay in memory once they are read") == 1
    assert logs["20000"].count("are kept in memory, where another layer has them, too") == 1


@pytest.mark.usefixtures("project")
def test_ranks_of_a_machine_divide_the_budget_and_one_tells(here: Path) -> None:
    log = rank_runs.train(here, 2, "solver.prototxt", "--data-cache", "20000")
    found = re.findall(r"layer 'data' \(Data\): (.*)", log)
    want = "are read anew each time; 9.77 KiB are free of a budget of 9.77 KiB (--data-cache)"
    assert [line.partition("decoded, ")[2] for line in found] == [want] * 2
    assert len(WAITED.findall(log)) == 1


@pytest.mark.usefixtures("project")
def test_a_size_that_is_none_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "test"):
        assert main([command, "--data-cache", "lots"]) == 2
        assert capsys.readouterr().err == (
            f"imae: {command}: argument --data-cache: expected a size such as 4G or 512M, a share such as "
            "25%, or 0; got 'lots'\n"
        )
    log = train(capsys, "--data-cache", "200%", status=2)
    assert re.fullmatch(r"imae: train: argument --data-cache: 200% is more than the .* that there are\n", log)


@pytest.mark.usefixtures("project")
def test_the_log_says_last_how_long_data_was_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    log = train(capsys)
    assert len(WAITED.findall(log)) == 1
    words = [line.partition("] ")[2] for line in log.splitlines()]
    assert words[words.index("Optimization Done.") - 1].startswith("Waited for data: ")
    resumed = train(capsys, "--snapshot", "s_iter_2.solverstate")
    assert len(WAITED.findall(resumed)) == 1
    # Caffe's own lines, and what is read from them, stay as they are.
    for text in (log, resumed):
        without = [line for line in text.splitlines() if "Waited for data" not in line]
        assert list(parse_log(without)) == list(parse_log(text.splitlines()))
    Path("a.log").write_text(log)
    Path("b.log").write_text("".join(line for line in log.splitlines(True) if "Waited" not in line))
    assert read_log("a.log") == read_log("b.log")
    assert main(["compare-logs", "a.log", "b.log"]) == 0


@pytest.mark.usefixtures("project")
def test_nobody_waits_for_data_where_there_are_no_prefetching_layers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("net.prototxt").write_text(
        re.sub(
            r"(?s)^\nlayer.*?LMDB } }",
            'layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { '
            "shape { dim: 4 dim: 3 } shape { dim: 4 } } }",
            NET,
        )
    )
    assert "Waited for data" not in train(capsys)


@pytest.mark.usefixtures("project")
def test_a_model_is_scored_alike_with_any_budget(capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys)
    Path("net.prototxt").write_text(NET.replace("mirror: true", ""))  # the commands draw from no seed
    command = ["test", "--model", "net.prototxt", "--weights", "s_iter_4.caffemodel", "--iterations", "4"]
    found = []
    for size in ("0", "25%"):
        assert main([*command, "--verbose", "--data-cache", size]) == 0
        lines = capsys.readouterr().err.splitlines()
        found.append([line.partition("] ")[2] for line in lines if "caffe.cpp" in line])
        assert sum("layer 'data' (Data): 11 records" in line for line in lines) == 1
    assert found[0] == found[1] and len(found[0]) > 5
