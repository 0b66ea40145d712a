"""The orders of a Data layer: what is in a batch, where its random numbers come from, resuming, refusals."""

from __future__ import annotations

import logging
import re
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import tolerance

from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import ImaeError, SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data import Data
from imae.layers.data.datum import datum_from_array
from imae.layers.data.record_order import draw_rows
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, LayerParameter
from imae.prototxt.text import parse_net, parse_solver, parse_text
from imae.train.solver import Solver

SHUFFLED = "order: SHUFFLED"
BALANCED = "order: CLASS_BALANCED classes_per_batch: 3 images_per_class: 2"
ORDERS = {"SHUFFLED": (SHUFFLED, 4), "CLASS_BALANCED": (BALANCED, 6)}  # and the batch sizes


pytestmark = pytest.mark.usefixtures("here")


def make_lmdb(labels: list[int], path: str = "db") -> None:
    """Record i is an image of 6 x 6 pixels of value i, from 256 on i - 256."""
    images = (np.full((1, 6, 6), i % 256, np.uint8) for i in range(len(labels)))
    write_lmdb(
        path,
        [
            (b"%05d" % i, datum_from_array(image, label))
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ],
    )


def data_text(order: str, batch_size: int, transform: str = "") -> str:
    order = f"data_order_param {{ {order} }}" if order else ""
    return (
        f'name: "data" type: "Data" top: "data" top: "label" {order} transform_param {{ {transform} }} '
        f'data_param {{ source: "db" batch_size: {batch_size} backend: LMDB }}'
    )


def build(order: str, batch_size: int, transform: str = "", seed: int = 1) -> Data:
    param = parse_text(data_text(order, batch_size, transform), LayerParameter, "<test>")
    param.phase = TRAIN
    layer = Data(param)
    layer.build([], Run(CaffeRandom(seed)))
    return layer


def rows_of(layer: Data, batches: int) -> list[list[int]]:
    """The records of the next batches: the pixels' value."""
    return [layer.next_batch()[0][:, 0, 0, 0].int().tolist() for _ in range(batches)]


def batches_of(layer: Data, count: int) -> list[NDArray[Any]]:
    return [top.numpy().copy() for _ in range(count) for top in layer.next_batch()]


def assert_same(got: list[NDArray[Any]], want: list[NDArray[Any]]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# -- what is in a batch --------------------------------------------------------------------------------------


def test_sequential_is_the_order_without_the_message() -> None:
    make_lmdb([0, 1, 2, 3, 4])
    assert rows_of(build("order: SEQUENTIAL", 3), 3) == rows_of(build("", 3), 3) == [
        [0, 1, 2], [3, 4, 0], [1, 2, 3]
    ]  # fmt: skip


def test_shuffled_goes_round_in_a_new_order_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_lmdb([0] * 7)
    layer = build(SHUFFLED, 4, seed=5)
    got = [row for rows in rows_of(layer, 7) for row in rows]
    run = CaffeRandom(5)  # nothing is random in the transformer: its seeds are not drawn
    stream = run.fork()
    want = [stream.shuffle(7).tolist() for _ in range(4)]
    assert got == [row for order in want for row in order]
    assert len({tuple(order) for order in want}) == 4
    layer.close()
    assert caplog.messages.count("Restarting data prefetching from start.") >= 3


def test_a_batch_may_hold_several_rounds() -> None:
    make_lmdb([0, 1])
    (rows,) = rows_of(build(SHUFFLED, 6), 1)
    assert [sorted(rows[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3


def test_class_balanced_by_the_rules_said_slowly() -> None:
    """Classes from a list that is shuffled when too few are left; images by a shuffle that stops early."""
    labels = [i * i % 5 if i * i % 5 else 2 for i in range(40)]
    labels = [{1: 0, 2: 1, 4: 2}[label] for label in labels] + [3, 4] * 9 + [3]
    make_lmdb(labels)
    got = rows_of(build(BALANCED, 6, "mirror: true", seed=8), 9)
    run = CaffeRandom(8)
    run.word()  # the transformer's first seed
    stream = run.fork()
    waiting: list[int] = []
    for batch in got:
        if len(waiting) < 3:
            waiting = stream.shuffle(5).tolist()
        want = []
        for _ in range(3):
            label = waiting.pop(0)
            members = [row for row, other in enumerate(labels) if other == label]
            for i in range(2):
                j = i + stream.uniform_int(len(members) - 1 - i)
                members[i], members[j] = members[j], members[i]
            want += members[:2]
        assert batch == want


def test_class_balanced_as_the_authors_had_it() -> None:
    """100 classes, 32 x 8: three batches hold 96 different classes, then the list is shuffled anew."""
    labels = (np.arange(2000) * 37 % 100).tolist()
    make_lmdb(labels)
    layer = build("order: CLASS_BALANCED classes_per_batch: 32 images_per_class: 8", 256)
    epochs = []
    for _ in range(4):
        classes: list[int] = []
        for _ in range(3):
            groups = layer.next_batch()[1].numpy().reshape(32, 8)
            assert (groups == groups[:, :1]).all()
            classes += groups[:, 0].astype(int).tolist()
        assert len(set(classes)) == 96
        epochs.append(classes)
    assert len({tuple(classes) for classes in epochs}) == 4


def test_every_image_and_class_is_as_likely_as_any_other() -> None:
    """Also where classes differ in size: a class is drawn as often as another, then an image within it."""
    labels = [0] * 3 + [1] * 5 + [2] * 4 + [3] * 8
    make_lmdb(labels)
    order = build("order: CLASS_BALANCED classes_per_batch: 2 images_per_class: 2", 4).order
    batches = 20000  # two batches take the four classes
    drawn = Counter(np.concatenate([order.next_rows(4) for _ in range(batches)]).tolist())
    for row, label in enumerate(labels):
        assert abs(drawn[row] / batches - 0.5 * 2 / labels.count(label)) < tolerance("drawn share").atol


def test_a_small_class_gives_all_its_images_equally_often() -> None:
    make_lmdb([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    for rows in rows_of(build("order: CLASS_BALANCED classes_per_batch: 2 images_per_class: 8", 16), 5):
        counts = Counter(rows)
        assert sorted(counts[row] for row in (0, 1, 2)) == [2, 3, 3]
        assert all(counts[row] == 1 for row in range(3, 11))


def test_every_draw_is_as_likely_as_any_other() -> None:
    random, times = CaffeRandom(1), 20000
    drawn = Counter(tuple(draw_rows(4, 2, random).tolist()) for _ in range(times))
    assert set(drawn) == set(permutations(range(4), 2))
    for count in drawn.values():
        assert abs(count / times - 1 / 12) < tolerance("drawn share").atol
    assert sorted(draw_rows(50, 50, random).tolist()) == list(range(50))


def test_the_label_in_the_database_is_the_class() -> None:
    """Noisy labels: that of the record counts, which is all that the layer can see."""
    make_lmdb([2, 0, 1, 2, 0, 1])
    layer = build("order: CLASS_BALANCED classes_per_batch: 3 images_per_class: 1", 3)
    for _ in range(4):
        data, label = layer.next_batch()
        assert [[2, 0, 1, 2, 0, 1][row] for row in data[:, 0, 0, 0].int().tolist()] == label.int().tolist()


# -- data_param { shuffle cache } ----------------------------------------------------------------------------


def of_fork(fields: str, phase: int = TRAIN, batch_size: int = 4, order: str = "") -> Data:
    text = data_text(order, batch_size).replace("backend:", f"{fields} backend:")
    param = parse_text(text, LayerParameter, "<test>")
    param.phase = phase
    layer = Data(param)
    layer.build([], Run(CaffeRandom(1)))
    return layer


def test_intels_shuffle_is_the_order_shuffled() -> None:
    make_lmdb([0] * 7)
    want = rows_of(build(SHUFFLED, 4), 7)
    for phase in (TRAIN, TEST):
        assert rows_of(of_fork("shuffle: true", phase), 7) == want


def test_nvidias_shuffle_is_by_key_at_first() -> None:
    make_lmdb([0] * 7)
    rows = [row for batch in rows_of(of_fork("shuffle: true cache: true"), 7) for row in batch]
    rounds = [rows[i : i + 7] for i in range(0, 28, 7)]
    assert rounds[0] == list(range(7))
    assert all(sorted(order) == rounds[0] != order for order in rounds[1:])
    assert len({tuple(order) for order in rounds}) == 4


@pytest.mark.parametrize(
    ("fields", "phase"),
    [("shuffle: true cache: false", TRAIN), ("shuffle: true cache: true", TEST), ("cache: true", TRAIN)],
)
def test_nvidias_shuffle_that_does_nothing(fields: str, phase: int) -> None:
    make_lmdb([0] * 7)
    layer = of_fork(fields, phase)
    assert layer.leftovers == (["data_param.shuffle"] if "shuffle" in fields else [])
    assert rows_of(layer, 3) == rows_of(of_fork("", phase), 3)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_nvidias_shuffle_goes_on_where_it_stood(stop: int) -> None:
    make_lmdb([0] * 7)
    whole, resumed = (of_fork("shuffle: true cache: true", batch_size=3) for _ in range(2))
    rows_of(whole, stop)
    resumed.set_state(whole.get_state())
    assert rows_of(resumed, 8) == rows_of(whole, 8)


def test_two_orders_are_refused() -> None:
    make_lmdb([0])
    with pytest.raises(ImaeError, match="choose two orders; remove one"):
        of_fork("shuffle: true", order=SHUFFLED)


# -- random numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("transform", ["", "mirror: true"])
def test_an_order_draws_one_word_of_the_runs(order: str, transform: str) -> None:
    make_lmdb([0, 1, 2] * 4)
    text, batch_size = ORDERS[order]
    with_order, without = build(text, batch_size, transform), build("", batch_size, transform)
    without.random.word()
    assert with_order.random.word() == without.random.word()


def test_layers_of_one_net_have_streams_of_their_own() -> None:
    make_lmdb([0] * 20)
    two = data_text(SHUFFLED, 20).replace('"data"', '"more"').replace('"label"', '"less"')
    net = Net(parse_net(f"layer {{ {data_text(SHUFFLED, 20)} }} layer {{ {two} }}"), Run(CaffeRandom(3)))
    first, second = net.data_layers()
    assert isinstance(first, Data) and isinstance(second, Data)
    run = CaffeRandom(3)
    one = run.fork()
    run.word()  # the thread's
    other = run.fork()
    for _ in range(3):
        assert rows_of(second, 1) == [other.shuffle(20).tolist()]
    assert rows_of(first, 1) == [one.shuffle(20).tolist()]


# -- resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("order", ORDERS)
def test_a_saved_state_goes_on_as_if_nothing_had_been(order: str, ahead: int) -> None:
    make_lmdb([0, 1, 2, 3, 3] * 3)
    text, batch_size = ORDERS[order]

    def layer(seed: int) -> Data:
        made = build(text, batch_size, "crop_size: 4 mirror: true", seed)
        made.prefetch = ahead
        return made

    straight = batches_of(layer(3), 20)
    for stop in range(0, 14, 3):
        first = layer(3)
        assert_same(batches_of(first, stop), straight[: 2 * stop])
        resumed = layer(77)
        resumed.next_batch()
        resumed.set_state(first.get_state())
        assert_same(batches_of(resumed, 20 - stop), straight[2 * stop :])
        first.close()
        resumed.close()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_a_solver_goes_on_with_the_same_batches(order: str, form: str) -> None:
    make_lmdb([0, 1, 2, 3, 3] * 3)
    text, batch_size = ORDERS[order]
    Path("net.prototxt").write_text(f"""
        layer {{ {data_text(text, batch_size, "crop_size: 4 mirror: true")} }}
        layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                 inner_product_param {{ num_output: 4 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}""")
    param = parse_solver(f"""net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" random_seed: 5 max_iter: 20
        snapshot_prefix: "s" snapshot_format: {form} snapshot: 7 test_iter: 2 test_interval: 3""")

    def next_batches(solver: Solver, count: int) -> list[NDArray[Any]]:
        nets = (solver.net, *solver.test_nets)
        layers = [layer for net in nets for layer in net.data_layers() if isinstance(layer, Data)]
        assert len(layers) == 2
        return [batch for layer in layers for batch in batches_of(layer, count)]

    solver = Solver(param)
    solver.step(7)
    want = next_batches(solver, 9)
    resumed = Solver(param)
    resumed.restore("s_iter_7.solverstate" + (".h5" if form == "HDF5" else ""))
    assert_same(next_batches(resumed, 9), want)


def test_states_of_other_orders_and_databases_are_refused() -> None:
    make_lmdb([0, 1, 2, 3] * 2)
    balanced = build(BALANCED, 6)
    with pytest.raises(
        SnapshotError,
        match=re.escape(
            "layer 'data' (Data): the saved state holds index, records, transformer, expected waiting, "
            "draws, records, transformer; the snapshot is of another net"
        ),
    ):
        balanced.set_state(build("", 6).get_state())
    balanced.next_batch()
    balanced.close()
    state = balanced.get_state() | {"waiting": np.array([0, 4])}
    with pytest.raises(SnapshotError, match="the database has 4 classes, fewer than when the snapshot was"):
        balanced.set_state(state)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "batch_size", "labels", "message"),
    [
        ("classes_per_batch: 2", 4, [0, 1],
         "classes_per_batch has no effect in this order; write order: CLASS_BALANCED, or remove it"),
        ("order: SHUFFLED images_per_class: 2", 4, [0, 1],
         "images_per_class has no effect in this order; write order: CLASS_BALANCED, or remove it"),
        ("order: CLASS_BALANCED", 4, [0, 1],
         "order: CLASS_BALANCED needs classes_per_batch and images_per_class, 1 or more; got 0 and 0"),
        ("order: CLASS_BALANCED classes_per_batch: 4", 4, [0, 1],
         "order: CLASS_BALANCED needs classes_per_batch and images_per_class, 1 or more; got 4 and 0"),
        ("order: CLASS_BALANCED classes_per_batch: 32 images_per_class: 8", 128, [0, 1],
         "batch_size must be classes_per_batch * images_per_class = 32 * 8 = 256; got 128"),
        ("order: CLASS_BALANCED classes_per_batch: 3 images_per_class: 2", 6, [0, 1, 1, 0],
         "database 'db' has 2 classes, fewer than classes_per_batch 3; lower that"),
        ("order: CLASS_BALANCED classes_per_batch: 3 images_per_class: 2", 6, [0, 1, 3, 0],
         "database 'db' has labels from 0 to 3, but no record of class 2; order: CLASS_BALANCED needs some "
         "of every class from 0 on"),
        ("order: CLASS_BALANCED classes_per_batch: 1 images_per_class: 1", 1, [-1, 0, 1],
         "database 'db' has labels from -1 to 1, but no record of class 0; order: CLASS_BALANCED needs some "
         "of every class from 0 on"),
        ("order: CLASS_BALANCED classes_per_batch: 1 images_per_class: 1", 1, [2**31 - 1],
         "database 'db' has labels from 2147483647 to 2147483647, but no record of class 0; order: "
         "CLASS_BALANCED needs some of every class from 0 on"),
    ],
)  # fmt: skip
def test_refused(order: str, batch_size: int, labels: list[int], message: str) -> None:
    make_lmdb(labels)
    with pytest.raises(ImaeError) as error:
        build(order, batch_size)
    assert str(error.value) == f"layer 'data' (Data): {message}"
