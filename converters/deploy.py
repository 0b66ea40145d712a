"""The deployed form of a net, and how the images of its input are prepared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from imae.converters.preprocessing import (
    NOTHING,
    Preprocessing,
    PreprocessingOptions,
    Size,
    make_preprocessing,
)
from imae.files.errors import DataError, ExportError, ImaeError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import DataLayer, Layer, Shape
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, LayerParameter, NetParameter, NetState
from imae.prototxt.state import filter_by_state, in_state

logger = logging.getLogger(__name__)

# (C, H, W) or (N, C, H, W) of the only input, or the whole shape of each input by its name.
InputShape = Sequence[int] | Mapping[str, Sequence[int]]


def deploy_net(param: NetParameter, input_shape: InputShape | None = None, batch: int = 1) -> NetParameter:
    """The net of phase TEST without data layers and losses, its inputs made by Input layers.

    input_shape   of the inputs; needed only where the data source does not give it
    """
    filtered = _in_test(param)
    result = NetParameter(name=filtered.name, state=filtered.state)
    sources: dict[str, LayerParameter] = {}
    dropped: set[str] = set()
    body: list[LayerParameter] = []
    for layer in filtered.layer:
        if not layer.bottom and class_of(layer).makes_input:
            sources.update((top, layer) for top in layer.top)
        elif not class_of(layer).deployed or any(bottom in dropped for bottom in layer.bottom):
            dropped.update(top for top in layer.top if top not in layer.bottom)
        elif class_of(layer).idle_in_test and len(layer.bottom) > 1 and len(layer.top) == 1:
            # Its top is its first bottom; the others, labels, need not be inputs.
            if layer.top != layer.bottom[:1]:
                body.append(
                    LayerParameter(name=layer.name, type="Split", bottom=layer.bottom[:1], top=layer.top)
                )
        else:
            body.append(_deployed(layer))
    read = {bottom for layer in body for bottom in layer.bottom}
    inputs = [top for top in sources if top in read]
    if not inputs:
        raise ExportError(
            f"net {filtered.name!r} has no layer that computes something from an input in phase TEST; "
            "give its deploy or test prototxt"
        )
    shapes = _shapes_by_name(inputs, input_shape, batch)
    for top in inputs:
        input_layer = result.layer.add(name=top, type="Input", top=[top])
        shape = shapes.get(top) or _input_shape(sources[top], top, batch)
        input_layer.input_param.shape.add().dim.extend(shape)
    result.layer.extend(body)
    return result


def _deployed(param: LayerParameter) -> LayerParameter:
    """The layer without the fields that write files or show something."""
    result = LayerParameter()
    result.CopyFrom(param)
    for path in class_of(param).undeployed_fields:
        message, _, field = path.partition(".")
        if result.HasField(message):
            getattr(result, message).ClearField(field)
    return result


def _in_test(param: NetParameter) -> NetParameter:
    """The net with its layers of phase TEST."""
    test = in_state(param, TEST, NetState(phase=TEST))
    return filter_by_state(test, test.state)


def _shapes_by_name(inputs: Sequence[str], input_shape: InputShape | None, batch: int) -> dict[str, Shape]:
    if input_shape is None:
        return {}
    if isinstance(input_shape, Mapping):
        if unknown := sorted(set(input_shape) - set(inputs)):
            raise ExportError(f"the net has no input {unknown[0]!r}; its inputs are {', '.join(inputs)}")
        return {name: tuple(shape) for name, shape in input_shape.items()}
    if len(inputs) > 1:
        raise ExportError(
            f"the net has {len(inputs)} inputs, so a shape must say whose it is; give --input-shape "
            f"{inputs[0]}:{','.join(map(str, input_shape))} and so on for {', '.join(inputs[1:])}"
        )
    return {inputs[0]: (batch, *input_shape) if len(input_shape) == 3 else tuple(input_shape)}


def _input_shape(source: LayerParameter, top: str, batch: int) -> Shape:
    """The shape that the data source gives."""
    index = list(source.top).index(top)
    if class_of(source).is_fed:
        shapes = source.input_param.shape
        if not shapes:
            raise ExportError(f"input {top!r} has no shape in the prototxt; give --input-shape")
        return tuple(shapes[index if len(shapes) > 1 else 0].dim)
    try:
        shape = _built(source)[1][index]
    except ImaeError as error:
        raise ExportError(f"{error}; or give the shape of input {top!r}: --input-shape") from error
    return (batch, *shape[1:])


def _built(source: LayerParameter) -> tuple[Layer, list[Shape]]:
    """A layer of data, in phase TEST, and the shapes of its tops."""
    param = LayerParameter()
    param.CopyFrom(source)
    param.phase = TEST
    layer = class_of(param)(param)
    return layer, layer.build([], Run(CaffeRandom(0)))


def image_input(net: Net) -> str | None:
    """The first input of a net that can take images: (N, 1, H, W) or (N, 3, H, W)."""
    shapes = {name: net.blob_shapes[name] for name in net.inputs}
    return next((name for name, shape in shapes.items() if len(shape) == 4 and shape[1] in (1, 3)), None)


def deployed_preprocessing(
    param: NetParameter, net: Net, options: PreprocessingOptions = NOTHING, *, free_size: bool = False
) -> Preprocessing | None:
    """How images are prepared for a deployed net; None where nothing says it.

    param    the net before `deploy_net`: its layer of data has a transform_param, or its Input still has one
    net      the deployed net
    options  what the user says in its place
    free_size
             images may have any size: they keep theirs, but for a crop or a mean image

    ExportError where something is given and the net has no input of images, DataError where it does not fit.
    """
    name = image_input(net)
    if name is None:
        if options.given:
            raise ExportError(
                f"net {net.name!r} has no input of images, (N, 1, H, W) or (N, 3, H, W), that could be "
                "prepared; leave --transform, --mean, --resize and --channels out"
            )
        return None
    num_channels = net.blob_shapes[name][1]
    source = next((layer for layer in _in_test(param).layer if not layer.bottom and name in layer.top), None)
    own = None
    if source is not None and options.transform is None and _transforms(source):
        try:
            own = make_preprocessing(
                source.transform_param,
                name=name,
                num_channels=num_channels,
                mean=options.mean,
                resize=_size_before_crop(source, free_size),
                where=f"layer {source.name!r}",
            )
        except DataError as error:
            raise DataError(f"{error}; or say it otherwise: --mean FILE, --transform '...'") from error
        _warn_of_sizes(source, own, options)
    shape = net.blob_shapes[name]
    made = options.apply(own, (*shape[:2], "height", "width") if free_size else shape)
    return None if made is None else replace(made, name=name)


def _warn_of_sizes(source: LayerParameter, own: Preprocessing, options: PreprocessingOptions) -> None:
    """Warn where the net's images have other sizes than those that are prepared for the model."""
    if class_of(source).is_fed:
        return
    if own.resizes_itself and source.image_data_param.new_height:
        logger.warning(
            "layer %r: images are resized to new_height x new_width, then by resize_param; the model says "
            "the second size alone, so that imae run prepares images a little differently",
            source.name,
        )
    elif own.crop is not None and own.resize is None and options.resize is None and not own.resizes_itself:
        logger.warning(
            "layer %r: nothing says which size images have before they are cropped to %dx%d, so that imae "
            "run resizes them to that and crops nothing; say it by --resize",
            source.name,
            *own.crop,
        )


def _transforms(source: LayerParameter) -> bool:
    """Whether it says how images are prepared: by a transform_param, or by having none where it reads one."""
    return "transform_param" in class_of(source).reads or source.HasField("transform_param")


def _size_before_crop(source: LayerParameter, free_size: bool) -> Size | None:
    transform = source.transform_param
    is_cropped = transform.crop_size or (transform.crop_h and transform.crop_w)
    if class_of(source).is_fed or (free_size and not is_cropped):
        return None
    return _record_size(source)


def _record_size(source: LayerParameter) -> Size | None:
    """(height, width) of the images of a layer of data; None where it has none, or its data is not here."""
    try:
        layer, _ = _built(source)
    except DataError:
        return None
    return layer.record_size if isinstance(layer, DataLayer) else None
