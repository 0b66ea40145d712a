"""imae.Dataset: the images of Caffe's Data layer; imae.Net and imae.Solver from their files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_solver import TINY_SOLVER, write_solver

import imae
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError, ImaeError, PrototxtError
from imae.layers.data.datum import datum_from_array
from imae.prototxt.text import read_net
from imae.train.options import Options

RECORDS = 11
TRANSFORM = "crop_size: 5 mirror: true mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.5"
STEADY = TRANSFORM.replace("mirror: true", "")  # Caffe mirrors in TEST, too
NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ {0} }}
         data_param {{ source: "db" batch_size: {1} backend: LMDB }} }}
layer {{ name: "silence" type: "Silence" bottom: "data" bottom: "label" }}
"""


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.RandomState(3)
    images = random.randint(0, 256, (RECORDS, 3, 8, 7)).astype(np.uint8)
    write_lmdb("db", ((f"{i:03}".encode(), datum_from_array(image, i % 4)) for i, image in enumerate(images)))


def of_the_layer(phase: str, transform: str = TRANSFORM) -> dict[str, torch.Tensor]:
    """The first batch, of all records, of the Data layer of a net."""
    Path("net.prototxt").write_text(NET.format(transform, RECORDS))
    return imae.Net("net.prototxt", phase=phase, random_seed=5).next_batch()  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_images_are_those_of_the_data_layer(phase: str) -> None:
    dataset = imae.Dataset("db", TRANSFORM, phase, random_seed=5)  # type: ignore[arg-type]
    batch = of_the_layer(phase)
    assert len(dataset) == RECORDS
    images, labels = zip(*dataset, strict=True)
    assert torch.equal(torch.stack(images), batch["data"])
    assert list(labels) == batch["label"].tolist() == [i % 4 for i in range(RECORDS)]


def test_images_are_found_by_their_places() -> None:
    dataset, batch = imae.Dataset("db", STEADY), of_the_layer("TEST", STEADY)
    for place in (7, 0, -1, 7):
        image, label = dataset[place]
        assert torch.equal(image, batch["data"][place]) and label == batch["label"][place]
    for place in (RECORDS, -RECORDS - 1):
        with pytest.raises(IndexError, match=f"record {place} of {RECORDS}"):
            dataset[place]


def test_random_images_differ_from_one_time_to_the_next() -> None:
    dataset = imae.Dataset("db", TRANSFORM, "TRAIN", random_seed=5)
    assert len({dataset[0][0].numpy().tobytes() for _ in range(20)}) > 5


def test_a_copy_reads_the_same() -> None:
    dataset = imae.Dataset("db", STEADY)
    # Written by this test itself.
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):  # noqa: S301
        assert torch.equal(other[4][0], dataset[4][0])


def test_the_workers_of_a_loader_give_all_records() -> None:
    dataset = imae.Dataset("db", STEADY)
    dataset[0]  # opened in this process, too
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, multiprocessing_context="forkserver"
    )
    images, labels = zip(*loader, strict=True)
    batch = of_the_layer("TEST", STEADY)
    assert torch.equal(torch.cat(images), batch["data"])
    assert torch.cat(labels).dtype == torch.int64 and torch.cat(labels).tolist() == batch["label"].tolist()


def test_the_workers_of_each_epoch_draw_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader starts its workers anew in each epoch, with other seeds, which torch.manual_seed fixes."""
    dataset = imae.Dataset("db", TRANSFORM, "TRAIN", random_seed=5)

    def images(worker: int, base_seed: int) -> bytes:
        info = SimpleNamespace(id=worker, seed=base_seed + worker)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)
        copied = copy.deepcopy(dataset)
        return b"".join(copied[0][0].numpy().tobytes() for _ in range(20))

    epochs = [images(worker, base_seed) for base_seed in (2**62 + 7, 11) for worker in (0, 1)]
    assert len(set(epochs)) == 4
    assert images(1, 11) == epochs[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "nothing"),
        (("db", "crop_size: 9"), "crop_size"),
        (("db", "crop: 9"), 'transform_param.*has no field.*"crop"'),
        (("db", "", "Train"), "phase must be TRAIN or TEST, got 'Train'"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ImaeError, match=message) as caught:
        imae.Dataset(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_another_backend_is_an_error() -> None:
    with pytest.raises(DataError, match="backend must be LMDB or LEVELDB, got 'HDF5'"):
        imae.Dataset("db", backend="HDF5")  # type: ignore[arg-type]


def test_a_net_from_its_file_is_the_net_of_its_message() -> None:
    write_solver(TINY_SOLVER)
    net = imae.Net("net.prototxt", phase="TRAIN", random_seed=1)
    assert isinstance(net, imae.net.net.Net)
    assert net.layer_names == [layer.name for layer in read_net("net.prototxt").layer]
    again = imae.Net("net.prototxt", phase="TRAIN", random_seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.learnable, again.learnable, strict=True))
    assert set(net()) == {"loss"}
    with pytest.raises(DataError, match="phase must be TRAIN or TEST, got 'train'"):
        imae.Net("net.prototxt", phase="train")  # type: ignore[arg-type]
    with pytest.raises(PrototxtError, match=r"no\.prototxt"):
        imae.Net("no.prototxt")


def test_a_solver_from_its_file_trains_and_its_net_reads_the_weights() -> None:
    write_solver(TINY_SOLVER + "max_iter: 3")
    solver = imae.Solver("solver.prototxt", Options(keep=1), dtype=torch.float64)
    solver.solve()
    assert solver.iteration == 3 and solver.net.dtype == torch.float64
    assert sorted(path.name for path in Path().glob("s_iter_*")) == [
        "s_iter_3.caffemodel", "s_iter_3.solverstate",
    ]  # fmt: skip
    net = imae.Net("net.prototxt", "s_iter_3.caffemodel", dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(net.learnable, solver.net.learnable, strict=True))
