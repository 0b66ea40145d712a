"""A valid layer of each type, and the files that these layers name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import h5py
import lmdb
import numpy as np
import torch
from case_types import Case
from fork_cases import CASES as FORK_CASES
from google.protobuf import text_format
from google.protobuf.message import Message
from numpy.typing import NDArray
from single_layer import normal

from imae.layers.blob import blob_from_array
from imae.layers.data.datum import datum_from_array
from imae.layers.registry import class_of
from imae.prototxt import Datum, LayerParameter
from imae.prototxt.caffe_pb2 import AnnotatedDatum

X, ROWS = normal(2, 3, 4, 6), normal(4, 6)
SCORES = normal(4, 5, 5)  # labels fit both axes of 5
LABELS = torch.tensor([[1.0, 2, 1, 0, 3], [2, 1, 3, 4, 0], [3, 1, 2, 0, 4], [0, 0, 2, 4, 1]])
LOSS = Case("", (SCORES, LABELS))
PROBABILITIES = Case("", (torch.softmax(SCORES[..., 0], 1), LABELS[:, 0]))
FILLED = 'weight_filler { type: "uniform" }'
CONVOLUTION = Case(f"convolution_param {{ num_output: 6 kernel_size: 2 {FILLED} }}", (X,))
RECURRENT = Case(
    f"recurrent_param {{ num_output: 2 {FILLED} }}",
    (normal(3, 2, 4), torch.tensor([[0.0, 1], [1, 1], [1, 0]])),
)
TRAIN = 'top: "data" top: "label" phase: TRAIN'
ONE_BOTTOM = """AbsVal BNLL BatchNorm Bias Dropout ELU Exp Flatten LRN MVN PReLU ReLU Reduction Sigmoid
    Softmax Swish TanH"""
LOSSES = """AELLoss AGCELoss AULLoss BootstrappingLoss DMLoss GCELoss IMAELoss LabelSmoothingLoss MAELoss
    MSELoss NCELoss SCELoss SoftmaxWithLoss TCELoss UnifiedWeightLoss WeightedSoftmaxWithLoss"""
# Of 5 classes, row by row: each label stays with probability 0.6.
TRANSITION = [0.6 if row == column else 0.1 for row in range(5) for column in range(5)]

CASES = {
    **dict.fromkeys(ONE_BOTTOM.split(), Case("phase: TRAIN", (X,))),
    **dict.fromkeys(LOSSES.split(), LOSS),
    "Accuracy": LOSS._replace(learn=()),
    "ArgMax": Case("", (X,), ()),
    "BatchReindex": Case("", (ROWS, torch.tensor([0.0, 2, 2]))),
    "Clip": Case("clip_param { min: -2 max: 2 }", (X * 3,)),
    "Concat": Case("", (X, X + 1), (0, 1)),
    "ContrastiveLoss": Case("", (ROWS, ROWS / 2, torch.tensor([0.0, 1, 0, 1])), (0, 1)),
    "Convolution": CONVOLUTION,
    "CorrectionLoss": LOSS._replace(text=f"correction_loss_param {{ transition: {TRANSITION} }}"),
    "Crop": Case("", (X, normal(2, 2, 3, 4))),
    "Data": Case(f'{TRAIN} data_param {{ source: "db" batch_size: 4 backend: LMDB }}'),
    "Deconvolution": CONVOLUTION,
    "DummyData": Case("dummy_data_param { shape { dim: 2 dim: 3 } }"),
    "Eltwise": Case("", (X.clamp(min=0), X + 1), (0, 1)),
    "Embed": Case(f"embed_param {{ num_output: 3 input_dim: 5 {FILLED} }}", (LABELS,), ()),
    "EuclideanLoss": Case("", (X, X / 2), (0, 1)),
    "ExtractProb": PROBABILITIES._replace(learn=()),
    "Filter": Case("", (ROWS, torch.tensor([0.0, 1, 1, 0]))),
    "HDF5Data": Case('top: "data" top: "label" hdf5_data_param { source: "hdf5_a" batch_size: 2 }'),
    "HDF5Output": Case('hdf5_output_param { file_name: "out.h5" }', (ROWS, LABELS), ()),
    "HingeLoss": PROBABILITIES,
    "Im2col": Case("convolution_param { kernel_size: 2 }", (X,)),
    "ImageData": Case(f'{TRAIN} image_data_param {{ source: "list" batch_size: 2 }}'),
    "InfogainLoss": Case('infogain_loss_param { source: "infogain" }', LOSS.bottoms),
    "InnerProduct": Case(f"inner_product_param {{ num_output: 4 {FILLED} }}", (X,)),
    "Input": Case("input_param { shape { dim: 2 dim: 3 } }"),
    "LSTM": RECURRENT,
    "LSTMUnit": Case(
        'top: "c" top: "h"', (normal(1, 2, 3), normal(1, 2, 12), torch.tensor([[0.0, 1]])), (0, 1)
    ),
    "Log": Case("", (X.abs(),)),
    "MemoryData": Case(f"{TRAIN} memory_data_param {{ batch_size: 3 channels: 3 height: 9 width: 11 }}"),
    "MultinomialLogisticLoss": PROBABILITIES,
    "Parameter": Case("parameter_param { shape { dim: 2 dim: 3 } }"),
    "Pooling": Case("pooling_param { kernel_size: 2 }", (X,)),
    "Power": Case("", (X.abs(),)),
    "Python": Case('python_param { module: "fields_one" layer: "Times" param_str: "2" }', (X,)),
    "RNN": RECURRENT,
    "Reshape": Case("reshape_param { shape { dim: 0 dim: -1 } }", (X,)),
    "SPP": Case("spp_param { pyramid_height: 2 }", (X,)),
    "Scale": Case("scale_param { bias_term: true }", (X,)),
    "SigmoidCrossEntropyLoss": Case("", (LABELS - 1.5, LABELS)),
    "Silence": Case("", (X,), ()),
    "Slice": Case('top: "a" top: "b"', (normal(2, 4, 6),)),
    "Split": Case('top: "a" top: "b"', (X,)),
    "Threshold": Case("", (X,), ()),
    "Tile": Case("tile_param { tiles: 2 }", (X,)),
    "WindowData": Case(
        f"{TRAIN} transform_param {{ crop_size: 5 }} "
        'window_data_param { source: "windows" batch_size: 4 fg_fraction: 0.5 }'
    ),
    **FORK_CASES,
}  # fmt: skip


def put(message: Message, path: str, value: Any) -> None:
    """Set the field at `path`, in the last element of a repeated message; None clears it."""
    *parents, name = path.split(".")
    for parent in parents:
        child = getattr(message, parent)
        if message.DESCRIPTOR.fields_by_name[parent].is_repeated:
            child = child[-1] if child else child.add()
        message = child
    field = message.DESCRIPTOR.fields_by_name[name]
    message.ClearField(name)
    if value is None:
        return
    if isinstance(value, str) and field.enum_type is not None:
        value = field.enum_type.values_by_name[value].number
    if field.is_repeated:
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


@cache
def parsed(key: str) -> LayerParameter:
    """The layer of CASES; a key is a type, or TYPE:VARIANT."""
    case = CASES[key]
    param = text_format.Parse(f'name: "it" type: "{key.partition(":")[0]}" {case.text}', LayerParameter())
    param.bottom.extend(f"bottom{index}" for index in range(len(case.bottoms)))
    if not param.top and class_of(param).num_tops != 0:
        param.top.append("top")
    return param


def make(key: str, given: Mapping[str, Any]) -> LayerParameter:
    """The layer of CASES with these fields changed."""
    param = LayerParameter()
    param.CopyFrom(parsed(key))
    for path, value in given.items():
        put(param, path, value)
    return param


# -- the files that the layers name ------------------------------------------------------------------------

MODULE = """
import caffe

class Times(caffe.Layer):
    def setup(self, bottom, top):
        self.factor = FACTOR * float(self.param_str)
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.factor
    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff * self.factor

class Plus(Times):
    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + self.factor
"""
WINDOWS = "# {0}\n{0}.png\n3 9 11\n4\n1 0.9 1 1 8 7\n2 0.6 2 0 9 4\n3 0.1 0 2 5 7\n3 0.3 1 0 5 8\n"


def annotated_records(picture: Callable[..., NDArray[np.uint8]]) -> dict[str, list[AnnotatedDatum]]:
    """Databases of images with boxes; `picture` makes an image of a size."""

    def record(label: int, *size: int, typed: bool = True) -> AnnotatedDatum:
        image = picture(*size)
        datum = Datum(data=bytes(cv2.imencode(".png", image)[1]), encoded=True, label=label)
        datum.channels, datum.height, datum.width = (*size, 1)[2], *size[:2]
        made = AnnotatedDatum(datum=datum)
        if typed:
            made.type = AnnotatedDatum.BBOX
        for group, (x, y, side) in enumerate(((0.1, 0.2, 0.5), (0.4, 0.3, 0.55))):
            annotations = made.annotation_group.add(group_label=group + 1)
            box = annotations.annotation.add(instance_id=0).bbox
            box.xmin, box.ymin, box.xmax, box.ymax = x, y, x + side, y + side
        return made

    return {
        "boxes_db": [record(label, 24, 32, 3) for label in range(3)],
        "other_boxes_db": [record(label, 24, 32, 3) for label in range(3)],
        "gray_boxes_db": [record(0, 24, 32)],
        "untyped_boxes_db": [record(label, 24, 32, 3, typed=False) for label in range(3)],
    }


def write_files(folder: Path) -> None:
    """Write all files that the layers name."""
    shutil.copytree(_written_once().name, folder, dirs_exist_ok=True)


@cache
def _written_once() -> tempfile.TemporaryDirectory[str]:
    """A folder with these files, from which each test gets a copy: making them takes five times as long."""
    made = tempfile.TemporaryDirectory(prefix="layer_cases_")
    _write(Path(made.name))
    return made


def _write(folder: Path) -> None:
    rng = np.random.default_rng(0)

    def picture(*size: int) -> NDArray[np.uint8]:
        return rng.integers(0, 256, size, np.uint8)

    def png(*size: int) -> bytes:
        return bytes(cv2.imencode(".png", picture(*size))[1])

    def write_db(name: str, datums: Sequence[Message]) -> None:
        with lmdb.open(str(folder / name), map_size=1 << 20) as database:
            for index, datum in enumerate(datums):
                with database.begin(write=True) as transaction:
                    transaction.put(b"%d" % index, datum.SerializeToString())

    write_db("db", [datum_from_array(picture(3, 9, 11), label) for label in range(3)])
    write_db("other_db", [datum_from_array(picture(3, 9, 11), label) for label in range(3)])
    write_db("gray_db", [Datum(data=png(9, 11), encoded=True)])
    write_db("colour_db", [Datum(data=png(9, 11, 3), encoded=True)])
    for name, made in annotated_records(picture).items():
        write_db(name, made)
    (folder / "sub").mkdir()
    for name in ("0.png", "1.png", "2.png", "sub/0.png", "sub/1.png", "sub/2.png"):
        (folder / name).write_bytes(png(9, 11, 3))
    (folder / "list").write_text("0.png 0\n1.png 1\n2.png 2\n")
    (folder / "other_list").write_text("2.png 2\n")
    (folder / "pairs").write_text("0.png 1.png\n1.png 2.png\n2.png 0.png\n")
    (folder / "other_pairs").write_text("2.png 0.png\n")
    (folder / "windows").write_text("".join(WINDOWS.format(index) for index in range(3)))
    (folder / "other_windows").write_text(WINDOWS.format(0))
    for name, shape in (("mean", (1, 3, 9, 11)), ("infogain", (5, 5)), ("other_infogain", (5, 5))):
        (folder / name).write_bytes(blob_from_array(rng.random(shape, np.float32)).SerializeToString())
    for name, kept in (("transition", 0.6), ("other_transition", 0.8)):
        matrix = np.where(np.eye(5), kept, (1 - kept) / 4)
        (folder / name).write_text("# by class\n" + "".join(f"{' '.join(map(str, row))}\n" for row in matrix))
    for name in ("a", "b"):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"], file["label"] = rng.random((5, 2)), rng.random(5)
        (folder / f"hdf5_{name}").write_text(f"{name}.h5\n")
    (folder / "fields_one.py").write_text(MODULE.replace("FACTOR", "1"))
    (folder / "fields_two.py").write_text(MODULE.replace("FACTOR", "2"))
    (folder / "sizes").write_text("a 5 3\nb 4 6\n")
    (folder / "nine_sizes").write_text("a 5 3\n" * 9)
    items = 'item { name: "%s" label: 1 } item { name: "dog" label: 2 }'
    for name in ("cat", "bird"):
        (folder / f"{name}_map").write_text(items % name)
