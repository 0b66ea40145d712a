"""Nets and solvers of earlier Caffes as today's messages, upgraded as Caffe does it (upgrade_proto.cpp).

    V0     layers { layer { name: "c" type: "conv" num_output: 3 } bottom: "x" top: "y" }
    V1     layers { name: "c" type: CONVOLUTION bottom: "x" top: "y" convolution_param { num_output: 3 } }
    today  layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 3 } }

Each upgrade is a pure function; `upgrade_net` and `upgrade_solver` apply those that are needed, in Caffe's
order.

V0 fields that no newer form has are dropped with a warning. Differs: Caffe drops some of them silently, and
does not upgrade nets that are written inside a solver.
"""

import logging
import os
from pathlib import PurePath
from typing import Any

from google.protobuf.message import Message

from imae.files.caffe_log import log_line
from imae.files.errors import PrototxtError, check_utf8
from imae.prototxt.caffe_pb2 import (
    BlobShape,
    InputParameter,
    LayerParameter,
    NetParameter,
    SolverParameter,
    V1LayerParameter,
)
from imae.prototxt.leftovers import report_leftovers

logger = logging.getLogger(__name__)

# The V1 type of each V0 type, and where V1 keeps the parameters of that type.
V0_TYPES = {
    "accuracy": ("ACCURACY", ""),
    "bnll": ("BNLL", ""),
    "concat": ("CONCAT", "concat_param"),
    "conv": ("CONVOLUTION", "convolution_param"),
    "data": ("DATA", "data_param"),
    "dropout": ("DROPOUT", "dropout_param"),
    "euclidean_loss": ("EUCLIDEAN_LOSS", ""),
    "flatten": ("FLATTEN", ""),
    "hdf5_data": ("HDF5_DATA", "hdf5_data_param"),
    "hdf5_output": ("HDF5_OUTPUT", ""),
    "im2col": ("IM2COL", ""),
    "images": ("IMAGE_DATA", "image_data_param"),
    "infogain_loss": ("INFOGAIN_LOSS", "infogain_loss_param"),
    "innerproduct": ("INNER_PRODUCT", "inner_product_param"),
    "lrn": ("LRN", "lrn_param"),
    "multinomial_logistic_loss": ("MULTINOMIAL_LOGISTIC_LOSS", ""),
    "pool": ("POOLING", "pooling_param"),
    "relu": ("RELU", ""),
    "sigmoid": ("SIGMOID", ""),
    "softmax": ("SOFTMAX", ""),
    "softmax_loss": ("SOFTMAX_LOSS", ""),
    "split": ("SPLIT", ""),
    "tanh": ("TANH", ""),
    "window_data": ("WINDOW_DATA", "window_data_param"),
}

# V0 field -> its name in V1 and the V0 types that have it.
V0_FIELDS = {
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "stride": ("stride", ("conv", "pool")),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}
V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}

# Where V1 data layers keep the fields that are now in transform_param.
DATA_PARAMS = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
DATA_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")

# The names of V1 types that are not simply the capitalised words of the enum's name.
V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
    "BN": "BN",
}

SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}


def upgrade_net(param: NetParameter, path: str = "<net>", problems: list[str] | None = None) -> NetParameter:
    """Today's form of a net; `param` itself if it has that form already.

    `path` is for the log and errors. V0 fields that no newer form has are dropped. One warning lists them
    (under `strict_fields` a PrototxtError); with a list for `problems`, each is logged on a line instead, as
    Caffe's tools do, and appended to the list.
    """
    dropped: list[str] = []
    try:
        upgraded = _upgrade_net(param, path, dropped, log_each=problems is not None)
    except PrototxtError as error:
        raise PrototxtError(f"{path}: {error}") from None
    if problems is None:
        report_leftovers(logger, path, dropped, PrototxtError)
    else:
        problems += dropped
    return upgraded


def _upgrade_net(param: NetParameter, path: str, dropped: list[str], log_each: bool) -> NetParameter:
    """The upgrade itself; fields that it drops are added to `dropped`."""
    attempt = "Attempting to upgrade input file specified using deprecated"
    success = "Successfully upgraded file specified using deprecated"
    if any(layer.HasField("layer") for layer in param.layers):
        log_line("upgrade_proto.cpp:28", f"{attempt} V0LayerParameter: {path}")
        param, problems_of_v0 = upgrade_v0(param)
        dropped += problems_of_v0
        if problems_of_v0 and log_each:
            for problem in problems_of_v0:
                logger.error("%s", problem)
            log_line(
                "upgrade_proto.cpp:33",
                "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); "
                "continuing anyway.",
                logging.ERROR,
            )
        elif not problems_of_v0:
            log_line("upgrade_proto.cpp:36", f"{success} V0LayerParameter")
        log_line(
            "upgrade_proto.cpp:39",
            "Note that future Caffe releases will not support V0NetParameter; use "
            "./build/tools/upgrade_net_proto_text for prototxt and ./build/tools/upgrade_net_proto_binary "
            "for model weights upgrade this and any other net protos to the new format.",
            logging.WARNING,
        )
    if any(_old_transform_fields(layer) for layer in param.layers):
        log_line("upgrade_proto.cpp:46", f"{attempt} transformation parameters: {path}")
        param = upgrade_data_transform(param)
        log_line("upgrade_proto.cpp:49", f"{success} data transformation parameters.")
        log_line(
            "upgrade_proto.cpp:51",
            "Note that future Caffe releases will only support transform_param messages "
            "for transformation fields.",
            logging.WARNING,
        )
    if param.layers:
        log_line("upgrade_proto.cpp:55", f"{attempt} V1LayerParameter: {path}")
        param = upgrade_v1(param)
        log_line("upgrade_proto.cpp:63", f"{success} V1LayerParameter")
    if param.input or param.input_shape or param.input_dim:
        log_line("upgrade_proto.cpp:69", f"{attempt} input fields: {path}")
        param = upgrade_input(param)
        log_line("upgrade_proto.cpp:72", f"{success} input fields.")
        note = "Note that future Caffe releases will only support input layers and not input fields."
        log_line("upgrade_proto.cpp:74", note, logging.WARNING)
    if any(_is_old_batch_norm(layer) for layer in param.layer):
        log_line(
            "upgrade_proto.cpp:79", f"Attempting to upgrade batch norm layers using deprecated params: {path}"
        )
        param = upgrade_batch_norm(param)
        log_line("upgrade_proto.cpp:82", "Successfully upgraded batch norm layers using deprecated params.")
    return upgrade_intels_batch_norm(param)


def upgrade_v0(param: NetParameter) -> tuple[NetParameter, list[str]]:
    """A V0 net as a V1 net, and a line for each field that V1 has no place for."""
    dropped = [field for field, _ in _fields(param)
               if field not in ("name", "layers", "input", "input_dim", "force_backward")]  # fmt: skip
    problems = [f"Unknown field {field} in a V0 net" for field in dropped]
    upgraded = _without(param, "layers", *dropped)
    for layer in fold_v0_padding(param).layers:
        problems += _upgrade_v0_layer(layer, upgraded.layers.add(bottom=layer.bottom, top=layer.top))
    return upgraded, problems


def fold_v0_padding(param: NetParameter) -> NetParameter:
    """The net without padding layers: their `pad` goes to the convolution or pooling that reads them."""
    folded = _without(param, "layers")
    source: dict[str, V1LayerParameter | None] = dict.fromkeys(param.input)  # the last layer to make a blob
    for old in param.layers:
        who = f"layer '{old.layer.name}' ({old.layer.type})"
        new = folded.layers.add() if old.layer.type != "padding" else V1LayerParameter()
        new.CopyFrom(old)
        for index, bottom in enumerate(old.bottom):
            if bottom not in source:
                raise PrototxtError(f"Unknown blob input {bottom} to {who}")
            padding = source[bottom]
            if padding is None or padding.layer.type != "padding":
                continue
            if old.layer.type not in ("conv", "pool"):
                raise PrototxtError(f"Padding layer input to non-convolutional / non-pooling {who}")
            if len(old.bottom) != 1 or len(padding.bottom) != 1 or len(padding.top) != 1:
                raise PrototxtError(f"a padding layer and the {who} that reads it take a single blob each")
            new.layer.pad = padding.layer.pad
            new.bottom[index] = padding.bottom[0]
        source.update(dict.fromkeys(old.top, old))
    return folded


def _upgrade_v0_layer(old: V1LayerParameter, new: V1LayerParameter) -> list[str]:
    """Fill `new`, which has its bottoms and tops, from the V0 layer in `old`.

    Returns a line for each field that does not fit.
    """
    name, kind = old.layer.name, old.layer.type
    if kind and kind not in V0_TYPES:
        raise PrototxtError(f"Unknown layer name: {kind} (layer '{name}'); known: {', '.join(V0_TYPES)}")
    type_name, type_param = V0_TYPES.get(kind, ("NONE", ""))
    problems = [f"Unknown field {field} beside V0 layer '{name}'" for field, _ in _fields(old)
                if field not in ("bottom", "top", "layer")]  # fmt: skip
    for field, value in _fields(old.layer):
        new_field, kinds = V0_FIELDS.get(field, ("", ()))
        if field == "type":
            new.type = getattr(V1LayerParameter, type_name)
        elif field in ("name", "blobs", "blobs_lr", "weight_decay"):
            _set(new, field, value)
        elif field in V0_TRANSFORM:
            _set(new.transform_param, V0_TRANSFORM[field], value)
        elif kind in kinds:
            _set(getattr(new, type_param), new_field, value)
        elif field == "hdf5_output_param" and kind == "hdf5_output":
            _set(new, field, value)
        else:
            problems.append(f"Unknown parameter {field} for layer type {kind} (layer '{name}')")
    return problems


def upgrade_data_transform(param: NetParameter) -> NetParameter:
    """A V1 net whose data layers have their scale, mean_file, crop_size and mirror in transform_param."""
    upgraded = NetParameter()
    upgraded.CopyFrom(param)
    for layer in upgraded.layers:
        data_param = _data_param(layer)
        if data_param is None:
            continue
        data_param.SetInParent()  # Caffe keeps both messages, even if they are empty
        layer.transform_param.SetInParent()
        for field in _old_transform_fields(layer):
            setattr(layer.transform_param, field, getattr(data_param, field))
            data_param.ClearField(field)
    return upgraded


def _data_param(layer: V1LayerParameter) -> Message | None:
    field = DATA_PARAMS.get(V1LayerParameter.LayerType.Name(layer.type))
    return getattr(layer, field) if field else None


def _old_transform_fields(layer: V1LayerParameter) -> list[str]:
    data_param = _data_param(layer)
    return [field for field in DATA_TRANSFORM if data_param is not None and data_param.HasField(field)]


def upgrade_v1(param: NetParameter) -> NetParameter:
    """A V1 net with `layer` for `layers`: types are strings, a blob's settings are in one `param`."""
    if param.layer:
        raise PrototxtError(
            "the net has both 'layers' (old) and 'layer' (new) fields; write all as layer { type: \"...\" }"
        )
    upgraded = _without(param, "layers")
    for old in param.layers:
        fields = dict(_fields(old))
        old_type = V1LayerParameter.LayerType.Name(fields.pop("type", V1LayerParameter.NONE))
        settings = {
            "name": fields.pop("param", []),
            "share_mode": fields.pop("blob_share_mode", []),
            "lr_mult": fields.pop("blobs_lr", []),
            "decay_mult": fields.pop("weight_decay", []),
        }
        new = upgraded.layer.add(**fields)
        if old.HasField("type"):
            new.type = V1_TYPES.get(old_type, "".join(map(str.capitalize, old_type.split("_"))))
        for field, values in settings.items():
            for index, value in enumerate(values):
                if index == len(new.param):
                    new.param.add()
                setattr(new.param[index], field, value)
    return upgraded


def upgrade_input(param: NetParameter) -> NetParameter:
    """A net whose input fields are an Input layer "input" in front; inputs without a shape are dropped.

    Old caffemodels have such inputs; only the blobs of their layers count.
    """
    count = len(param.input)
    if len(param.input_shape) not in (0, count):
        raise PrototxtError(
            f"{count} input and {len(param.input_shape)} input_shape fields; give one per input"
        )
    if not param.input_shape and len(param.input_dim) not in (0, 4 * count):
        raise PrototxtError(f"{count} input and {len(param.input_dim)} input_dim fields; give four per input")
    if param.input_shape and param.input_dim:
        raise PrototxtError("the net has both input_shape and input_dim; give one of them")
    upgraded = _without(param, "input", "input_shape", "input_dim", "layer")
    dims = param.input_dim
    shapes = param.input_shape or [BlobShape(dim=dims[i : i + 4]) for i in range(0, len(dims), 4)]
    if shapes:
        upgraded.layer.add(
            name="input", type="Input", top=param.input, input_param=InputParameter(shape=shapes)
        )
    upgraded.layer.extend(param.layer)
    return upgraded


def upgrade_batch_norm(param: NetParameter) -> NetParameter:
    """A net whose BatchNorm layers with three `param` have lr_mult 0 and decay_mult 0 in them.

    The statistics are not learned. Earlier versions of Caffe needed these fields in the prototxt.
    """
    upgraded = NetParameter()
    upgraded.CopyFrom(param)
    for layer in filter(_is_old_batch_norm, upgraded.layer):
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
    return upgraded


def upgrade_intels_batch_norm(param: NetParameter) -> NetParameter:
    """A net whose BatchNorm layers have no fields that Intel's fork reads together with other layers.

    With Intel's libraries a BatchNorm and the Scale that reads its top are one layer, whose scale begins
    with the BatchNorm's `filler`. Without a Scale it has a scale and a bias of its own: PrototxtError, if
    `engine`, of the layer or the net, or `filler` asks for that. The net's bn_stats_batch_size is that of
    each BatchNorm.
    """
    if not any(layer.type == "BatchNorm" and _is_intels(layer, param) for layer in param.layer):
        return param
    upgraded = NetParameter()
    upgraded.CopyFrom(param)
    for place, layer in enumerate(upgraded.layer):
        if layer.type != "BatchNorm":
            continue
        norm, engine = layer.batch_norm_param, layer.engine or param.engine
        if param.bn_stats_batch_size and not norm.HasField("stats_batch_size"):
            norm.stats_batch_size = param.bn_stats_batch_size
        has_filler = norm.HasField("filler") and engine != "CAFFE"
        if "MKL" not in engine and not has_filler:
            continue
        readers = (later for later in upgraded.layer[place + 1 :] if layer.top[:1] == later.bottom[:1])
        reader = next(readers, None)
        if reader is None or reader.type != "Scale":
            cause = "a filler" if has_filler else f'engine: "{engine}"'
            raise PrototxtError(
                f"layer '{layer.name}' (BatchNorm): with {cause} Intel's fork gives it a scale and a bias of "
                'its own; write a Scale layer with bias_term: true after it, or engine: "CAFFE"'
            )
        if has_filler:
            reader.scale_param.filler.CopyFrom(norm.filler)
            norm.ClearField("filler")
    return upgraded


def _is_intels(layer: LayerParameter, net: NetParameter) -> bool:
    """Whether a BatchNorm layer has a field that `upgrade_intels_batch_norm` looks at."""
    is_of_library = "MKL" in (layer.engine or net.engine)
    return is_of_library or bool(net.bn_stats_batch_size) or layer.batch_norm_param.HasField("filler")


def _is_old_batch_norm(layer: LayerParameter) -> bool:
    return layer.type == "BatchNorm" and len(layer.param) == 3


def upgrade_solver(param: SolverParameter, path: str = "<solver>") -> SolverParameter:
    """Today's form of a solver and of the nets inside it; `path` is for the log and errors."""
    upgraded = SolverParameter()
    upgraded.CopyFrom(param)
    if param.HasField("solver_type"):
        old = "'solver_type' field (enum)"
        log_line(
            "upgrade_proto.cpp:1084",
            f"Attempting to upgrade input file specified using deprecated {old}': {path}",
        )
        if param.HasField("type"):
            raise PrototxtError(
                f"{path}: old solver_type field (enum) and new type field (string) cannot be both specified"
            )
        upgraded.type = SOLVER_TYPES[param.solver_type]
        upgraded.ClearField("solver_type")
        log_line(
            "upgrade_proto.cpp:1091",
            f"Successfully upgraded file specified using deprecated {old} to 'type' field (string).",
        )
        note = "Note that future Caffe releases will only support 'type' field (string) for a solver's type."
        log_line("upgrade_proto.cpp:1093", note, logging.WARNING)
    for field in ("net_param", "train_net_param"):
        if param.HasField(field):
            getattr(upgraded, field).CopyFrom(upgrade_net(getattr(param, field), path))
    for index, net in enumerate(param.test_net_param):
        upgraded.test_net_param[index].CopyFrom(upgrade_net(net, path))
    return upgraded


def complete_snapshot_prefix(param: SolverParameter, path: str) -> SolverParameter:
    """A solver with snapshot_prefix: by default its path without extension; for a folder, the stem in it."""
    completed = SolverParameter()
    completed.CopyFrom(param)
    if not param.HasField("snapshot_prefix") or os.path.isdir(param.snapshot_prefix):
        check_utf8(path, f"{path}: no snapshot_prefix can be made of this path; write one")
    if not param.HasField("snapshot_prefix"):
        completed.snapshot_prefix = os.path.splitext(path)[0]
        log_line(
            "upgrade_proto.cpp:1108",
            f"snapshot_prefix was not specified and is set to {completed.snapshot_prefix}",
        )
    elif os.path.isdir(param.snapshot_prefix):
        completed.snapshot_prefix = os.path.join(param.snapshot_prefix, PurePath(path).stem)
        log_line(
            "upgrade_proto.cpp:1113",
            f"snapshot_prefix was a directory and is replaced to {completed.snapshot_prefix}",
        )
    return completed


def _fields(message: Message) -> list[tuple[str, Any]]:
    """The names and values of the fields that are set."""
    return [(field.name, value) for field, value in message.ListFields()]


def _without(param: NetParameter, *names: str) -> NetParameter:
    """A copy without the fields of these names."""
    return NetParameter(**{field: value for field, value in _fields(param) if field not in names})


def _set(message: Message, field: str, value: Any) -> None:
    """Set a field, or append one value or several to a repeated one."""
    current = getattr(message, field)
    if isinstance(value, Message):
        current.CopyFrom(value)
    elif hasattr(current, "extend"):
        current.extend(value if hasattr(value, "extend") else [value])
    else:
        try:
            setattr(message, field, value)
        except ValueError as error:  # new_height was signed in V0
            raise PrototxtError(f"{field}: {error}") from None
