"""Every field of every parameter of every layer type does something, or is said to do nothing, or is refused.

For each type there is a layer that works, in CASES. In it each field of the schema but those that every layer
has (name, bottom, ...) is set to other values: the layer must then do something else, or refuse the field by
name. CHANGES says which values, and in what surroundings. What may do nothing stands in ACCEPTED, with the
reason.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_cases
import numpy as np
import pytest
import torch
from case_types import Change, within
from google.protobuf.descriptor import FieldDescriptor
from layer_cases import CASES, X, make, write_files
from single_layer import build, normal, refused
from torch import Tensor

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.files.errors import ImaeError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import PrefetchingLayer
from imae.layers.data.memory_data import MemoryData
from imae.layers.layer import ENGINE, FIRST_PARAMETER, NOTES
from imae.layers.registry import class_of, layer_class, layer_types
from imae.layers.run import Run
from imae.layers.vision.conv import Convolution
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import LayerParameter
from imae.prototxt.fork_names import FORK_NUMBERS
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.text import parse_net

SEED = 7  # with it, mirror and rand_skip do something at once

# What a type looks at besides the parameter of its own name; Caffe's types as Caffe's sources have it.
NORMALIZED = (
    "loss_param.ignore_label loss_param.normalization loss_param.normalize loss_param.pre_fixed_normalizer"
)
SHARED = {
    "Convolution Deconvolution Im2col": "convolution_param",
    "LSTM RNN": "recurrent_param",
    "Data": "transform_param data_order_param",
    "ImageData WindowData": "transform_param data_param.prefetch",
    "HDF5Data": "transform_param",
    "MemoryData": "transform_param.scale transform_param.mirror transform_param.crop_size "
                  "transform_param.mean_file transform_param.mean_value transform_param.exclude_last_crop",
    "SoftmaxWithLoss DMLoss GCELoss IMAELoss MAELoss MSELoss SCELoss AULLoss AGCELoss AELLoss TCELoss "
    "NCELoss LabelSmoothingLoss BootstrappingLoss CorrectionLoss": f"softmax_param {NORMALIZED}",
    "SigmoidCrossEntropyLoss": NORMALIZED,
    "InfogainLoss": f"softmax_param.engine {NORMALIZED}",
    "ExtractProb": "loss_param.ignore_label",
    "UnifiedWeightLoss": "softmax_param loss_param.ignore_label loss_param.lamda_p loss_param.scale",
    "WeightedSoftmaxWithLoss": "weighted_softmax_loss_param softmax_param loss_param.ignore_label",
    **fork_cases.SHARED,
}  # fmt: skip


# -- which values show that a field does something; where nothing is said, one that is 1 larger --------------


FILLER = {
    "type": Change(["uniform"], {"type": "constant", "value": 0.25}),
    "value": Change([0.5], {"type": "constant"}),
    "min": Change([-2.0], {"type": "uniform"}),
    "max": Change([2.0], {"type": "uniform"}),
    "mean": Change([0.5], {"type": "gaussian"}),
    "std": Change([0.5], {"type": "gaussian"}),
    "sparse": Change([0], {"type": "gaussian"}),
    "variance_norm": Change(["FAN_OUT", "AVERAGE"], {"type": "xavier"}),
    "scale": Change([0.5], {"type": "msra"}),
    "alpha": Change([0.5], {"type": "msra"}),
}
PAIRS = {
    "pad_h": Change([1], {"pad_h": 0, "pad_w": 0}),
    "pad_w": Change([1], {"pad_h": 0, "pad_w": 0}),
    "stride_h": Change([2], {"stride_h": 1, "stride_w": 1}),
    "stride_w": Change([2], {"stride_h": 1, "stride_w": 1}),
    "kernel_h": Change([1], {"kernel_size": None, "kernel_h": 2, "kernel_w": 2}),
    "kernel_w": Change([1], {"kernel_size": None, "kernel_h": 2, "kernel_w": 2}),
}
LEGACY_SHAPE = {"shape": None, "num": [2], "channels": [1], "height": [3], "width": [1]}
OTHER_SIZE = {"new_height": 5, "new_width": 5}
LABEL_1 = {"loss_param.ignore_label": 1}
CHANGES = {
    **within("transform_param", {
        "mean_file": Change(["mean"]),
        "mean_value": Change([[100], [100, 90, 80]]),
        "crop_size": Change([3]),
        "exclude_last_crop": Change([True], {"crop_size": 8}),
    }),
    "data_order_param.order": Change(["SHUFFLED"]),
    **within("data_order_param", dict.fromkeys(("classes_per_batch", "images_per_class"), Change(
        [3], {"order": "CLASS_BALANCED", "classes_per_batch": 2, "images_per_class": 2},
        refusal="batch_size must be classes_per_batch * images_per_class",
    ))),
    "Data transform_param.force_color": Change([True], {"data_param.source": "gray_db"}),
    "Data transform_param.force_gray": Change([True], {"data_param.source": "colour_db"}),
    "HDF5Data transform_param": Change([], refusal="HDF5Data does not transform data."),
    "ImageData transform_param.force_color": Change([], leftover=True),
    "ImageData transform_param.force_gray": Change([], leftover=True),
    "MemoryData transform_param.crop_size": Change([9], {"memory_data_param.width": 9}),
    "MemoryData transform_param.exclude_last_crop": Change(
        [True], {"transform_param.crop_size": 9, "memory_data_param.width": 9}
    ),
    "WindowData transform_param.scale": Change([], leftover=True),
    "WindowData transform_param.exclude_last_crop": Change(
        [], refusal="exclude_last_crop has no effect here"
    ),
    "WindowData transform_param.force_color": Change([], leftover=True),
    "WindowData transform_param.force_gray": Change([], leftover=True),
    "Data data_param.rand_skip": Change([1], leftover=True),
    **within("data_param", {
        "source": Change(["other_db"]),
        "backend": Change(["LEVELDB"], refusal="Failed to open leveldb db"),
        "scale": Change([], leftover=True),
        "mean_file": Change([], leftover=True),
        "crop_size": Change([], leftover=True),
        "mirror": Change([], leftover=True),
        "force_encoded_color": Change([], leftover=True),
    }),
    "hdf5_data_param.source": Change(["hdf5_b"]),
    **within("image_data_param", {
        "source": Change(["other_list"]),
        "batch_size": Change([3]),
        "rand_skip": Change([2]),
        "new_height": Change([6], OTHER_SIZE),
        "new_width": Change([6], OTHER_SIZE),
        "root_folder": Change(["sub/"]),
        "scale": Change([], leftover=True),
        "mean_file": Change([], leftover=True),
        "crop_size": Change([], leftover=True),
        "mirror": Change([], leftover=True),
    }),
    **within("window_data_param", {
        "source": Change(["other_windows"]),
        "fg_threshold": Change([0.7]),
        "bg_threshold": Change([0.2]),
        "crop_mode": Change(["square"]),
        "root_folder": Change(["sub/"]),
        "mean_file": Change([], leftover=True),
        "crop_size": Change([], leftover=True),
        "mirror": Change([], leftover=True),
    }),
    **within("dummy_data_param", {
        "shape.dim": Change([[2, 4]]),
        "num": Change([[4]], LEGACY_SHAPE),
        "channels": Change([[4]], LEGACY_SHAPE),
        "height": Change([[4]], LEGACY_SHAPE),
        "width": Change([[4]], LEGACY_SHAPE),
    }),
    "input_param.shape.dim": Change([[2, 4]]),
    "parameter_param.shape.dim": Change([[2, 4]]),
    **within("convolution_param", {
        **PAIRS,
        "pad": Change([[1], [0, 1]]),
        "stride": Change([[2], [1, 2]]),
        "kernel_size": Change([[1], [2, 1]]),
        "dilation": Change([[2], [1, 2]]),
        "group": Change([3]),
        "axis": Change([2]),
    }),
    **{
        f"Im2col convolution_param.{name}": Change([], leftover=True)
        for name in ("num_output", "bias_term", "group", "weight_filler", "bias_filler")
    },
    **within("pooling_param", {
        **PAIRS,
        "pool": Change(["AVE"]),
        "global_pooling": Change([True], refusal="Filter size cannot specified"),
        "round_mode": Change(["FLOOR"], {"stride": 4}),
    }),
    "spp_param.pool": Change(["AVE"]),
    "crop_param.offset": Change([[1], [1, 2]]),
    "LSTM lstm_param": Change([], leftover=True),  # of the type Lstm
    "recurrent_param.debug_info": Change([True], leftover=True),
    "recurrent_param.expose_hidden": Change([True], refusal="bottom blob(s) as input"),
    "dropout_param.dropout_ratio": Change([0.25]),
    "embed_param.input_dim": Change([6]),
    "exp_param.base": Change([2.0]),
    "log_param.base": Change([2.0]),
    "lrn_param.local_size": Change([3]),
    "scale_param.bias_term": Change([False]),
    "argmax_param.axis": Change([1, 2]),
    "eltwise_param.coeff": Change([[1, 2]]),
    "eltwise_param.stable_prod_grad": Change([False], {"eltwise_param.operation": "PROD"}),
    "reshape_param.shape.dim": Change([[0, 3, -1]]),
    "reshape_param.num_axes": Change([1]),
    "slice_param.slice_point": Change([[1]]),
    "hdf5_output_param.file_name": Change(["other.h5"]),
    **within("python_param", {
        "module": Change(["fields_two"]),
        "layer": Change(["Plus"]),
        "param_str": Change(["3"]),
    }),
    **dict.fromkeys(("accuracy_param.axis", "infogain_loss_param.axis", "softmax_param.axis"), Change([2])),
    **dict.fromkeys(("accuracy_param.ignore_label", "loss_param.ignore_label"), Change([1, 2])),
    "loss_param.normalization": Change(["FULL", "BATCH_SIZE", "NONE"], LABEL_1),
    "loss_param.normalize": Change([False]),
    "SigmoidCrossEntropyLoss loss_param.normalization": Change(["FULL", "VALID", "NONE"], LABEL_1),
    "SigmoidCrossEntropyLoss loss_param.normalize": Change([True]),
    "InfogainLoss loss_param.normalize": Change([], refusal="normalize is deprecated."),
    "infogain_loss_param.source": Change(["other_infogain"]),
    "sce_loss_param.log_zero": Change([-4.0]),
    "nce_loss_param.beta": Change([2.0], {"nce_loss_param.passive": "MAE"}),
    "nce_loss_param.log_zero": Change([-4.0], {"nce_loss_param.passive": "RCE"}),
    "label_smoothing_loss_param.smoothing": Change([0.3]),
    "bootstrapping_loss_param.beta": Change([0.3]),
    "correction_loss_param.transition": Change([[0.8, 0.05, 0.05, 0.05, 0.05] * 5]),
    "correction_loss_param.source": Change(
        ["other_transition"],
        {"correction_loss_param.transition": None, "correction_loss_param.source": "transition"},
    ),
    **fork_cases.CHANGES,
}  # fmt: skip

ACCEPTED = {
    "engine": "CAFFE and CUDNN are two ways to compute the same",
    "convolution_param.force_nd_im2col": "a third way to compute the same",
    "data_param.prefetch": "how far the data run ahead",
    "window_data_param.cache_images": "memory for time",
    "python_param.share_in_parallel": "there is one process",
    **fork_cases.ACCEPTED,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the layers name."""
    folder = tmp_path_factory.mktemp("fields")
    write_files(folder)
    return folder


@pytest.fixture(autouse=True)
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests work in that folder."""
    monkeypatch.chdir(files)


# -- the walk ----------------------------------------------------------------------------------------------


def fields(descriptor: Any, path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Path and descriptor of each field of LayerParameter that is not every layer's and no message."""
    for field in descriptor.fields:
        if not path and (field.number < FIRST_PARAMETER or field.name == ENGINE):
            continue
        if field.message_type is None:
            yield f"{path}{field.name}", field
        else:
            yield from fields(field.message_type, f"{path}{field.name}.")


FIELDS = dict(fields(LayerParameter.DESCRIPTOR))


def prefixes(path: str) -> list[str]:
    """a.b.c, a.b, a"""
    names = path.split(".")
    return [".".join(names[:end]) for end in range(len(names), 0, -1)]


def find(table: dict[str, Any], type_name: str, path: str) -> Any:
    """The entry for a field or a message it is in: for this type, else for all types; None without one."""
    keys = [f"{type_name} {prefix}" for prefix in prefixes(path)] + prefixes(path)
    return next((table[key] for key in keys if key in table), None)


def change_of(type_name: str, path: str) -> Change:
    field = FIELDS[path]
    change: Change = find(CHANGES, type_name, path) or Change([])
    if change.values:
        return change
    message = path.rpartition(".")[0]
    if message.endswith("filler") and change.refusal is None and not change.leftover:
        return within(message, FILLER)[path]
    values: list[Any] = ["other"]
    if field.enum_type is not None:
        values = [value.name for value in field.enum_type.values if value.number != field.default_value]
        if field.is_repeated:
            values = [[name] for name in values]
    elif field.is_repeated:
        values = [["other"] if field.type == FieldDescriptor.TYPE_STRING else [1]]
    elif field.type == FieldDescriptor.TYPE_BOOL:
        values = [not field.default_value]
    elif field.type != FieldDescriptor.TYPE_STRING:
        values = [field.default_value + 1]
    return change._replace(values=values)


def observe(key: str, param: LayerParameter) -> list[Any]:
    """What a layer does: shapes, parameters, tops and gradients of two passes, files."""
    bottoms, learn = CASES[key].bottoms, CASES[key].learn
    before = set(os.listdir())
    layer = class_of(param)(param)
    seen: list[Any] = [layer.build([tuple(bottom.shape) for bottom in bottoms], Run(CaffeRandom(SEED)))]
    seen += [blob.detach().clone() for blob in layer.blobs]
    if isinstance(layer, MemoryData):
        margin = 2 if param.transform_param.crop_size else 0
        channels, height, width = layer.size
        images = np.random.default_rng(0).integers(
            0, 256, (2 * layer.batch_size, channels, height + margin, width + margin), np.uint8
        )
        layer.add(list(images), list(range(len(images))))
    passes = {"Input": 0, "HDF5Output": 1}.get(param.type, 2)
    for _ in range(passes):
        leaves = [bottom.clone().requires_grad_(index in learn) for index, bottom in enumerate(bottoms)]
        result = layer(*leaves)
        tops = [result] if isinstance(result, Tensor) else list(result)
        ends = [top for top in tops if top.requires_grad]
        if ends:
            torch.autograd.backward(ends, [normal(*top.shape, seed=1) for top in ends])
        seen += [top.detach().clone() for top in tops]
        seen += [leaf.grad for leaf in leaves]
        seen += [blob.grad for blob in layer.blobs]
    seen += [blob.detach().clone() for blob in layer.blobs]
    if isinstance(layer, PrefetchingLayer):
        layer.close()
    written = sorted(set(os.listdir()) - before)
    seen += [Path(name).read_bytes() for name in written if name.endswith((".txt", ".json"))]
    for name in written:
        os.remove(name)
    return [*seen, written]


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return bool(a == b)


def looks_at(type_name: str, path: str) -> bool:
    """Whether the type should look at the field: it bears the type's name, or SHARED has it."""
    own = path.partition(".")[0].replace("_", "") == f"{type_name.partition(':')[0].lower()}param"
    shared = " ".join(value for key, value in SHARED.items() if type_name in key.split())
    return own or not set(prefixes(path)).isdisjoint(shared.split())


def is_unread(param: LayerParameter, path: str) -> bool:
    """Whether the type says that it does not look at the field, in so many words."""
    try:
        leftovers = class_of(param)(param).leftovers
    except ImaeError as error:
        words = f"layer 'it' ({param.type}): {param.type} does not look at "
        return str(error) in [f"{words}{prefix}; remove it" for prefix in prefixes(path)
                              if ours(prefix) or param.type in PLUGINS]  # fmt: skip
    named = {leftover.partition(" (")[0] for leftover in leftovers}
    return not named.isdisjoint(prefixes(path))


# Types that Caffe lacks: of messages that they read in part, the other parts are refused.
PLUGINS = ("ExtractProb", "UnifiedWeightLoss", "WeightedSoftmaxWithLoss")


def ours(path: str) -> bool:
    """Whether Caffe's schema lacks the field or message, and no fork passes over it either."""
    if "." not in path and LayerParameter.DESCRIPTOR.fields_by_name[path].number in FORK_NUMBERS:
        return False
    message: Any = LayerParameter.DESCRIPTOR
    for name in path.split("."):
        field = message.fields_by_name[name]
        message = field.message_type
    return field.number >= 1000 or path in ("loss_param.lamda_p", "loss_param.scale")


@pytest.mark.parametrize("type_name", sorted(CASES))
def test_every_field_does_something_or_is_refused(type_name: str) -> None:
    plain: dict[str, list[Any]] = {}
    for path in FIELDS:
        change = change_of(type_name, path)
        for value in change.values:
            param = make(type_name, {**change.given, path: value})
            what = f"{path}: {value}"
            unread = is_unread(param, path)
            assert unread != looks_at(type_name, path) or change.leftover, what
            if unread and not change.leftover:
                continue
            if change.refusal is not None:
                with pytest.raises(ImaeError, match=re.escape(change.refusal)):
                    observe(type_name, param)
                continue
            surroundings = str(dict(change.given))
            if surroundings not in plain:
                plain[surroundings] = observe(type_name, make(type_name, change.given))
            does_nothing = equal(observe(type_name, param), plain[surroundings])
            if change.leftover:
                assert unread, f"{what} has no effect; say so"
                assert does_nothing, f"{what} has an effect"
            elif find(ACCEPTED, type_name, path) or FIELDS[path].name in ACCEPTED:
                assert does_nothing, f"{what} has an effect; take it out of ACCEPTED"
            else:
                assert not does_nothing, f"{what} has no effect; honour it, or refuse it"


@pytest.mark.parametrize("key", sorted(CASES))
def test_a_buffer_that_is_no_state_is_called_a_constant(key: str) -> None:
    """States begin at 0. What begins otherwise is of the prototxt, and no snapshot may replace it."""
    param = make(key, {})
    layer = class_of(param)(param)
    layer.build([tuple(bottom.shape) for bottom in CASES[key].bottoms], Run(CaffeRandom(SEED)))
    buffers = {name for name, buffer in layer.named_buffers(recurse=False) if bool((buffer != 0).any())}
    assert buffers == set(layer.constant_buffers)
    if isinstance(layer, PrefetchingLayer):
        layer.close()


def test_every_parameter_belongs_to_a_type() -> None:
    names = {path.partition(".")[0] for path in FIELDS}
    for type_name in CASES:
        for name in list(names):
            param = make(type_name, {})
            getattr(param, name).SetInParent()
            if not is_unread(param, name):
                names.remove(name)
    assert names <= NOTES.keys()


def test_the_tables_name_fields_of_the_schema() -> None:
    known = {prefix for path in FIELDS for prefix in prefixes(path)} | {"engine"}
    assert {key.rpartition(" ")[2] for key in (*CHANGES, *ACCEPTED)} <= known
    assert {name for value in SHARED.values() for name in value.split()} <= known
    assert {name for key in SHARED for name in key.split()} <= set(CASES)
    # Other tests of this process may have registered types of their own.
    own = {name for name in layer_types() if layer_class(name).__module__.startswith("imae.layers.")}
    assert {key.partition(":")[0] for key in CASES} == own


def test_a_field_that_a_type_does_not_look_at_is_named() -> None:
    layer = build('type: "Softmax" relu_param { negative_slope: 0.1 }', (1, 2, 3, 3))
    assert layer.leftovers == ["relu_param"]
    layer = layer_class("ImageData")(make("ImageData", {"data_param.prefetch": 2, "data_param.source": "db"}))
    assert layer.leftovers == ["data_param.source"]
    layer = layer_class("Data")(make("Data", {"data_param.mirror": True}))
    assert layer.leftovers == ["data_param.mirror (write transform_param { mirror: ... })"]


def test_a_field_that_caffe_does_not_know_is_refused() -> None:
    with refused("layer 'it' (ImageData): ImageData does not look at data_order_param; remove it"):
        build('type: "ImageData" data_order_param { order: SHUFFLED }')
    with refused("layer 'it' (MemoryData): MemoryData does not look at imae_loss_param; remove it"):
        build('type: "MemoryData" imae_loss_param {}')


def test_a_type_looks_at_the_fields_of_the_type_that_it_is_made_from() -> None:
    class Depthwise(Convolution):
        pass

    param = make("Convolution", {})
    param.type = "Depthwise"
    assert Depthwise(param).build([tuple(X.shape)], Run(CaffeRandom(1))) == [(2, 6, 3, 5)]
    param.pooling_param.SetInParent()
    assert Depthwise(param).leftovers == ["pooling_param"]


NET = """
    name: "net" force_backward: true
    layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } }
            transform_param { scale: 0.1 } }
    layer { name: "cat" type: "Concat" bottom: "x" top: "y" concat_param { axis: 0 } scale_param { axis: 2 } }
    layer { name: "prob" type: "Softmax" bottom: "y" top: "prob"
            relu_param {} loss_param { normalize: true } }
"""
FOUND = ("layer 'data' (Input): transform_param; layer 'cat' (Concat): scale_param; "
         "layer 'prob' (Softmax): loss_param, relu_param")  # fmt: skip


def test_one_warning_of_a_net_lists_all_that_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    net = Net(parse_net(NET))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"net 'net' (TEST): these fields do nothing, as in Caffe: {FOUND}"
    ]
    x = normal(2, 3)
    assert equal(net({"x": x})["prob"], torch.softmax(x, 1))


def test_a_net_without_such_fields_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    Net(parse_net(re.sub(r"(transform|scale|relu|loss)_param \{.*?\}", "", NET)))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_strict_makes_an_error_of_them() -> None:
    want = f"net 'net' (TEST): these fields do nothing: {FOUND}; remove them, or leave --strict out"
    with strict_fields(), refused(want):
        Net(parse_net(NET))
    with strict_fields(False):
        Net(parse_net(NET))
    with strict_fields(), strict_fields(False), refused(want):
        Net(parse_net(NET))


@pytest.mark.parametrize(
    "command",
    ["train --solver solver.prototxt", "test --model net.prototxt --weights w.caffemodel",
     "time --model net.prototxt --iterations 1",
     "export --model net.prototxt --weights w.caffemodel --output out.onnx",
     "extract-features w.caffemodel net.prototxt prob out.lmdb 1 lmdb"],
)  # fmt: skip
def test_commands_take_strict(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = """name: "net"
        layer { name: "data" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 3 } }
                transform_param { scale: 2 } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
        layer { name: "prob" type: "Softmax" bottom: "y" top: "prob" loss_param { normalize: true } }"""
    Path("net.prototxt").write_text(text)
    Path("solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1')
    save_caffemodel(Net(parse_net(text)), "w.caffemodel")
    assert main(command.split()) == 0
    assert "these fields do nothing, as in Caffe: layer" in capsys.readouterr().err
    for path in tmp_path.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([*command.split(), "--strict"]) == 2
    assert "layer 'prob' (Softmax): loss_param; remove them, or leave --strict out" in capsys.readouterr().err


def test_pycaffe_takes_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed"')
    assert list(caffe.Net("net.prototxt", caffe.TEST).blobs) == ["x", "y", "prob"]
    with refused("leave --strict out"):
        caffe.Net("net.prototxt", caffe.TEST, strict=True)
    caffe.SGDSolver("solver.prototxt")
    for make_solver in (caffe.SGDSolver, caffe.get_solver):
        with refused("leave --strict out"):
            make_solver("solver.prototxt", strict=True)


def test_blobs_of_a_prototxt_are_counted() -> None:
    def text(count: int) -> str:
        return 'type: "InnerProduct" inner_product_param { num_output: 1 }' + "blobs { data: 1 }" * count

    assert len(build(text(2), (2, 1)).blobs) == 2
    with refused("Incorrect number of weight blobs.; its prototxt has 3, it needs 2"):
        build(text(3), (2, 1))
    with refused("its prototxt has 1 blobs; more are needed"):
        build(text(1), (2, 1))
    with refused("Incorrect number of weight blobs.; its prototxt has 1, it needs 0"):
        build('type: "ReLU" blobs { data: 1 }', (2, 1))
