"""Batches that are made ahead, by several threads: what comes out is what one thread makes in its turn."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_solver import DATA, FIVE_OUTPUTS, LOSS, TINY_SOLVER, write_solver

from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data import drawn_ahead
from imae.layers.data.base_data import AheadLayer
from imae.layers.data.data_resources import DataResources
from imae.layers.data.drawn_ahead import DrawnAhead
from imae.layers.data.dummy_data import DummyData
from imae.layers.data.pixels import WriteWindow
from imae.layers.data.transformer import DataTransformer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.executor import NetExecutor
from imae.net.net import Net
from imae.prototxt import TRAIN, Datum, LayerParameter, SolverParameter, TransformationParameter
from imae.prototxt.text import parse_net, parse_text, read_text
from imae.train.solver import Solver

pytestmark = pytest.mark.usefixtures("here")

Array = NDArray[Any]
CPU = torch.device("cpu")
LARGE = (3, 70, 66)  # images from 64 x 64 on are made one by one


def images(count: int, size: tuple[int, int, int] = LARGE) -> list[Array]:
    return list(np.random.default_rng(1).integers(0, 256, (count, *size), np.uint8))


def encoded(image: Array, label: int = 0) -> Datum:
    done, data = cv2.imencode(".png", image.transpose(1, 2, 0))
    assert done
    return Datum(data=data.tobytes(), encoded=True, label=label)


def write_database(datums: list[Datum]) -> None:
    write_lmdb("db", ((b"%03d" % i, datum) for i, datum in enumerate(datums)))


def build(text: str, resources: DataResources, seed: int = 7) -> Any:
    param = parse_text(f'name: "data" {text}', LayerParameter, "<test>")
    param.phase = TRAIN
    layer = layer_class(param.type)(param)
    layer.build([], Run(CaffeRandom(seed), data_resources=resources))
    return layer


def data(transform: str = "crop_size: 65 mirror: true", batch_size: int = 4) -> str:
    return (
        f'type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f'data_param {{ source: "db" batch_size: {batch_size} backend: LMDB }}'
    )


def batches(layer: AheadLayer, count: int) -> list[Array]:
    return [top.numpy().copy() for _ in range(count) for top in layer.next_batch()]


def assert_same(got: list[Array], want: list[Array]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# -- large images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_images_go_on_over_the_ends_of_batches(threads: int) -> None:
    write_database([encoded(image, i) for i, image in enumerate(images(11))])
    alone = build(data(), DataResources(0, 1))
    alone.prefetch = 0
    want = batches(alone, 9)
    layer = build(data(), DataResources(0, threads))
    assert_same(batches(layer, 3), want[:6])
    state = layer.get_state()
    batches(layer, 2)
    layer.set_state(state)  # while threads work on the next batches
    assert_same(batches(layer, 6), want[6:])
    layer.close()


def test_the_next_batch_is_begun_before_the_last_images_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are in work at most: one that is nearly done, and the next one."""
    write_database([encoded(image) for image in images(4)])
    layer = build(data(batch_size=2), DataResources(0, 2))
    gate, begun = threading.Event(), []
    load, plan = layer.load_batch, layer.transformer.plan_windows

    def load_batch() -> Any:
        begun.append(load())
        second.set() if len(begun) == 2 else None
        return begun[-1]

    def slow_plan(*of_batch: Any) -> WriteWindow:
        write = plan(*of_batch)

        def slow_write(*args: Any) -> None:
            assert gate.wait(20)
            write(*args)

        return slow_write

    second = threading.Event()
    monkeypatch.setattr(layer, "load_batch", load_batch)
    monkeypatch.setattr(layer.transformer, "plan_windows", slow_plan)
    waiting = threading.Thread(target=layer.next_batch)
    waiting.start()
    assert second.wait(20)  # no image is there yet
    assert len(begun) == 2 and layer.get_state()["index"] == 0
    gate.set()
    waiting.join(20)
    assert layer.get_state()["index"] == 2
    layer.close()


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_image_is_an_error_of_its_batch_again_and_again(ahead: int, threads: int) -> None:
    datums = [encoded(image) for image in images(8)]
    for place in (5, 4):
        datums[place].data = datums[place].data[:60]
    write_database(datums)
    layer = build(data(batch_size=2), DataResources(0, threads))
    layer.prefetch = ahead
    batches(layer, 2)
    state = layer.get_state()
    for _ in range(2):
        with pytest.raises(DataError, match=r"^lmdb 'db', key '004': could not decode"):
            layer.next_batch()
    assert layer.get_state() == state
    layer.close()


TRANSFORMS = {
    "mean values": "mirror: true mean_value: 99.7 mean_value: 0 mean_value: 3e38 scale: 0.37",
    "infinite scale": "mirror: true mean_value: -0.1 scale: 3e38",
    "a whole number": "crop_size: 65 mean_value: 128",
    "nothing": "",
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_both_orders_in_memory_have_the_same_values(transform: str) -> None:
    """Decoded images, raw ones among them, and one of floats."""
    made = [image.transpose(1, 2, 0).copy().transpose(2, 0, 1) for image in images(6)]
    made[2] = np.ascontiguousarray(made[2])
    made[3] = made[3].astype(np.float32) + np.float32(0.3)
    param = parse_text(TRANSFORMS[transform], TransformationParameter, "<test>")
    batch = {}
    for channels_last in (False, True):
        transformer = DataTransformer(param, TRAIN, "it")
        transformer.channels_last = channels_last
        transformer.seed(CaffeRandom(3))
        batch[channels_last] = transformer.transform_list(made, str)
    assert batch[False].flags.c_contiguous and batch[True].transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(batch[True], batch[False])


NET = """
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.01 crop_size: 64 }
        data_param { source: "db" batch_size: 4 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 5 stride: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize("fast", [True, False])
def test_a_net_computes_the_same_bits_from_kept_and_from_streamed_images(fast: bool) -> None:
    write_database([encoded(image, i % 3) for i, image in enumerate(images(5))])
    found = []
    for budget in (0, 1 << 30):
        net = Net(parse_net(NET, "<test>"), Run(CaffeRandom(1), data_resources=DataResources(budget)))
        loss, _ = NetExecutor(net, CPU, fast).forward_backward()
        gradients = [p.grad.clone() for p in net.learnable if p.grad is not None]
        assert net.next_batch()["data"].is_contiguous()
        found.append([loss, *gradients])
    assert len(found[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# -- HDF5Data ------------------------------------------------------------------------------------------------

HDF5 = 'type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "list" batch_size: 3 shuffle: true }'


def write_hdf5(*rows: int) -> None:
    for index, count in enumerate(rows):
        with h5py.File(f"{index}.h5", "w") as file:
            file["x"] = np.arange(count * 2).reshape(count, 2) + 100 * index
            file["y"] = np.arange(count)
    Path("list").write_text("\n".join(f"{index}.h5" for index in range(len(rows))))


def test_rows_made_ahead_are_those_made_in_turn() -> None:
    write_hdf5(4, 3, 2)
    states, runs = [], []
    for ahead in (0, 1, 5):
        layer = build(HDF5, DataResources(0))
        layer.prefetch = ahead
        runs.append(batches(layer, 7))
        states.append({name: np.asarray(value).tolist() for name, value in layer.get_state().items()})
        layer.close()
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])
    assert states[1] == states[0] == states[2]


def test_a_file_that_is_gone_is_an_error_of_the_batch_that_needs_it() -> None:
    write_hdf5(6, 6)
    layer = build(HDF5.replace("shuffle: true", ""), DataResources(0))
    Path("1.h5").unlink()
    batches(layer, 1)
    for _ in range(2):
        with pytest.raises(DataError, match=r"1\.h5"):
            layer.next_batch()
    write_hdf5(6, 6)
    assert batches(layer, 2)[1].tolist() == [3, 4, 5]
    layer.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_rows_go_on_after_a_time_when_no_file_could_be_read(ahead: int) -> None:
    """Not even the one that it would go back to."""
    write_hdf5(4, 4)
    layer = build(HDF5.replace("shuffle: true", ""), DataResources(0))
    layer.prefetch = 0
    batches(layer, 1)
    layer.prefetch = ahead
    for name in ("0.h5", "1.h5"):
        Path(name).unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"\.h5"):
            layer.next_batch()
    write_hdf5(4, 4)
    assert batches(layer, 1)[1].tolist() == [3, 0, 1]
    layer.close()


def test_a_copy_goes_on_after_the_last_batch_that_was_returned() -> None:
    write_hdf5(4, 3, 2)
    layer = build(HDF5, DataResources(0))
    batches(layer, 2)
    twin = copy.deepcopy(layer)  # threads, and what waits, cannot be copied
    want = batches(layer, 4)
    assert_same(batches(twin, 4), want)
    for one in (layer, twin):
        one.close()


@pytest.mark.parametrize("waits_in", ["exception", "result"])
def test_no_batch_is_lost_where_the_wait_for_it_is_interrupted(
    waits_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, whose next cell asks again."""
    write_hdf5(12)
    layer = build(HDF5.replace("shuffle: true", ""), DataResources(0))
    batches(layer, 1)

    def interrupted(future: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Future, waits_in, interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer.next_batch()
    assert batches(layer, 1)[1].tolist() == [3, 4, 5]
    layer.close()


# -- DummyData -----------------------------------------------------------------------------------------------

DUMMY = """type: "DummyData" top: "a" top: "b" top: "c" dummy_data_param {
    shape { dim: 5 dim: 7 } shape { dim: 2 } shape { dim: 30 } data_filler { type: "gaussian" mean: 1 std: 2 }
    data_filler { value: 3 } data_filler { type: "uniform" min: -1 } }"""


@pytest.fixture
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrawnAhead, "WORTHWHILE", 1)


def in_turn(random: CaffeRandom) -> list[list[float]]:
    return [random.gaussian(35, 1, 2).tolist(), [3, 3], random.uniform(30, -1, 0).tolist()]


def drawn(layer: Any) -> list[list[float]]:
    return [top.flatten().tolist() for top in layer()]


@pytest.mark.usefixtures("worthwhile")
def test_what_is_drawn_ahead_is_what_would_be_drawn_whatever_others_draw() -> None:
    layer, plain = build(DUMMY.replace("min: -1", "min: -1 max: 0"), DataResources(0)), CaffeRandom(7)
    words = [9, 9, 9, 0, 9, 9, 300_000, 300_000, 300_000, 9, 2, 2, 0]
    for count in words:
        assert drawn(layer) == in_turn(plain)
        assert layer.random.words(count).tolist() == plain.words(count).tolist()
        assert layer.random.get_state() == plain.get_state()
    # From the third pass on; not after another number than before, nor where that comes a second time.
    assert layer.ahead.used == 5


@pytest.mark.usefixtures("worthwhile")
def test_another_state_or_seed_of_the_stream_is_noticed() -> None:
    layer = build(DUMMY.replace("min: -1", "min: -1 max: 0"), DataResources(0))
    for _ in range(3):
        drawn(layer)
    state = layer.random.get_state()
    want = [drawn(layer) for _ in range(3)]
    layer.random.set_state(state)
    assert [drawn(layer) for _ in range(3)] == want
    layer.random.reseed(11)
    assert drawn(layer) == in_turn(CaffeRandom(11))
    used = layer.ahead.used
    assert used >= 5
    twin = copy.deepcopy(layer)  # has a stream of its own, and no thread yet
    assert twin.ahead.used == 0 and drawn(twin) == drawn(layer)
    assert layer.ahead.used == used + 1


@pytest.mark.usefixtures("worthwhile")
def test_what_is_not_needed_any_more_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others draw another number of words in each pass, and the thread is slow."""
    layer = build(DUMMY.replace("min: -1", "min: -1 max: 0"), DataResources(0))
    gate, begun, foresee = threading.Event(), [], drawn_ahead._foresee

    def slow(*args: Any) -> Any:
        begun.append(1)
        assert gate.wait(20)
        return foresee(*args)

    monkeypatch.setattr(drawn_ahead, "_foresee", slow)
    for count in range(9):
        drawn(layer)
        layer.random.words(count)
    gate.set()
    layer.ahead._executor.shutdown()
    assert 1 <= len(begun) <= 2  # the first, and the last


def test_few_values_start_no_thread() -> None:
    layer = build(DUMMY.replace("min: -1", "min: -1 max: 0"), DataResources(0))
    for _ in range(4):
        drawn(layer)
    assert layer.ahead._executor is None


DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "a" top: "a" }\n'


@pytest.mark.usefixtures("worthwhile")
def test_a_training_and_its_resume_are_those_of_draws_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Dropout and a test net, which draw from the same stream."""
    more = "max_iter: 9 test_iter: 1 test_interval: 4"
    write_solver(
        TINY_SOLVER.replace("snapshot: 2", "snapshot: 5") + more, DATA + FIVE_OUTPUTS + DROPOUT + LOSS
    )
    param = read_text("solver.prototxt", SolverParameter)

    def trained(resume: str | None = None) -> tuple[list[torch.Tensor], int]:
        solver = Solver(param)
        solver.solve(resume)
        used = [layer.ahead.used for layer in solver.net.layers if isinstance(layer, DummyData)]
        return [p.detach() for p in solver.net.learnable], sum(used)

    straight, used = trained()
    resumed, _ = trained("s_iter_5.solverstate")
    monkeypatch.setattr(DrawnAhead, "WORTHWHILE", 1 << 40)
    in_turn, never = trained()
    assert used > 0 and never == 0
    for a, b, c in zip(straight, resumed, in_turn, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
