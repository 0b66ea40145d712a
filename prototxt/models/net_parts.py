"""What the makers of nets share (resnet.py, resnet50.py, inception.py): layers, tails, data, deployment.

A maker appends layers to a NetParameter; `add` and the like return the name of their last blob. Nets
read the blobs `data` and `label`, which `with_data` puts in front of them and `deploy` replaces by an Input.
Fields have the form that protobuf accepts: dicts for messages, names for enum values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, Phase, SolverParameter

FROZEN = [{"lr_mult": 0, "decay_mult": 0}] * 3  # the three statistics of a BatchNorm
WEIGHT_AND_BIAS = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]
# One loss: a type, or a layer to copy (`loss_layer`). Or several by stage: a loss is in the net in its stage.
Losses = str | LayerParameter | Mapping[str, LayerParameter]


def add(
    net: NetParameter, type_name: str, name: str, *bottoms: str, top: str | None = None, **fields: Any
) -> str:
    """Append a layer; its top has the layer's name unless `top` gives another."""
    net.layer.add(name=name, type=type_name, bottom=bottoms, top=[top or name], **fields)
    return top or name


def add_conv(
    net: NetParameter,
    name: str,
    bottom: str,
    num_output: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = False,
    relu: bool = True,
    filler: str = "msra",
    names: tuple[str, str, str] | None = None,
) -> str:
    """Convolution padded to keep the size (at stride 1), BatchNorm, Scale and ReLU, all in one blob.

    bias    the convolution has one, learned at twice the rate and without decay
    names   of the BatchNorm, Scale and ReLU; default NAME_bn, NAME_scale, NAME_relu
    """
    bn_name, scale_name, relu_name = names or (f"{name}_bn", f"{name}_scale", f"{name}_relu")
    conv: dict[str, Any] = {"num_output": num_output, "pad": [kernel // 2], "kernel_size": [kernel]}
    conv |= {"stride": [stride], "weight_filler": {"type": filler}}
    if bias:
        add(net, "Convolution", name, bottom, param=WEIGHT_AND_BIAS, convolution_param=conv)
    else:
        add(net, "Convolution", name, bottom, convolution_param=conv | {"bias_term": False})
    add(net, "BatchNorm", bn_name, name, top=name, param=FROZEN)
    add(net, "Scale", scale_name, name, top=name, scale_param={"bias_term": True})
    if relu:
        add(net, "ReLU", relu_name, name, top=name)
    return name


def add_average(net: NetParameter, name: str, bottom: str) -> str:
    """Append a global average pooling: the average of each channel."""
    return add(net, "Pooling", name, bottom, pooling_param={"pool": "AVE", "global_pooling": True})


def add_classifier(
    net: NetParameter, bottom: str, classes: int, *, filler: str = "msra", **fields: Any
) -> str:
    """Append the classifier, whose top `fc` holds the logits."""
    return add(
        net,
        "InnerProduct",
        "fc",
        bottom,
        inner_product_param={"num_output": classes, "weight_filler": {"type": filler}},
        **fields,
    )


def loss_layer(type_name: str, **params: Any) -> LayerParameter:
    """A loss for the makers' argument `loss`, with its parameters: loss_layer("IMAELoss", t=0.5).

    The parameters are fields of the type's own message (IMAELossParameter), or of loss_param where it has
    none; an unknown field is a ValueError.
    """
    message = type_name.replace("WithLoss", "Loss") + "Parameter"
    names = {f.message_type.name: f.name for f in LayerParameter.DESCRIPTOR.fields if f.message_type}
    fields: dict[str, Any] = {names.get(message, "loss_param"): params} if params else {}
    return LayerParameter(type=type_name, **fields)


def loss_layers(losses: Losses) -> Iterator[LayerParameter]:
    """The layers `loss`, without bottoms; they have rules for their stages where the losses have stages."""
    by_stage = losses if isinstance(losses, Mapping) else {"": losses}
    for stage, loss in by_stage.items():
        layer = LayerParameter(name="loss", top=["loss"], include=[{"stage": [stage]}] if stage else [])
        layer.MergeFrom(loss_layer(loss) if isinstance(loss, str) else loss)
        yield layer


def add_losses(net: NetParameter, losses: Losses, *bottoms: str) -> None:
    """Append the layers `loss` with these bottoms, and in TEST the accuracy."""
    for layer in loss_layers(losses):
        layer.bottom.extend(bottoms)
        net.layer.append(layer)
    add_accuracy(net, *bottoms)


def add_accuracy(net: NetParameter, *bottoms: str) -> None:
    """Append, in TEST, the accuracy of (logits, label)."""
    add(net, "Accuracy", "accuracy", *bottoms, include=[{"phase": TEST}])


def lmdb_data(phase: Phase, source: str, batch_size: int, **transform: Any) -> LayerParameter:
    """A Data layer that reads an LMDB, with these fields of transform_param."""
    data = {"source": source, "batch_size": batch_size, "backend": "LMDB"}
    return _data("Data", phase, transform, data_param=data)


def picture_data(phase: Phase, source: str, root: str, batch_size: int, **transform: Any) -> LayerParameter:
    """An ImageData layer that reads a list of images, resized to 256 x 256 and cropped to 224 x 224."""
    images = {"source": source, "root_folder": root, "batch_size": batch_size, "shuffle": phase == TRAIN}
    images |= {"new_height": 256, "new_width": 256}
    return _data("ImageData", phase, transform | {"crop_size": 224}, image_data_param=images)


def _data(type_name: str, phase: Phase, transform: dict[str, Any], **fields: Any) -> LayerParameter:
    return LayerParameter(
        name="data",
        type=type_name,
        top=["data", "label"],
        include=[{"phase": phase}],
        transform_param=transform,
        **fields,
    )


def with_data(net: NetParameter, *data: LayerParameter) -> NetParameter:
    """The net with these data layers in front."""
    result = NetParameter(name=net.name, layer=data)
    result.layer.extend(net.layer)
    return result


def deploy(net: NetParameter, *shape: int) -> NetParameter:
    """The part of a net that depends on `data` alone, of shape (1, *shape), up to the class probabilities."""
    result = NetParameter(name=net.name)
    result.layer.add(name="data", type="Input", top=["data"], input_param={"shape": [{"dim": (1, *shape)}]})
    unknown = {"label"}
    for layer in net.layer:
        if unknown.intersection(layer.bottom):
            unknown.update(layer.top)
        elif layer.bottom:  # no data layer
            result.layer.append(layer)
    if result.layer[-1].type != "Softmax":
        add(result, "Softmax", "prob", result.layer[-1].top[0])
    return result


def solver(model: str, **fields: Any) -> SolverParameter:
    """The solver of prototxt/models/MODEL.prototxt: momentum 0.9 and these fields."""
    result = SolverParameter(
        net=f"prototxt/models/{model}.prototxt",
        snapshot_prefix=f"snapshots/{model.replace('/', '_')}",
        display=100,
        average_loss=100,
        momentum=0.9,
        random_seed=1,
        solver_mode=SolverParameter.CPU,
    )
    result.MergeFrom(SolverParameter(**fields))
    return result
