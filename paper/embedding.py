"""Features of images: a blob of a net or an output of an ONNX model, on images prepared for that model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from imae.converters.deploy import deploy_net
from imae.converters.preprocessing import Preprocessing, make_preprocessing
from imae.converters.run_onnx import (
    model_preprocessing,
    open_session,
    output_name,
    pixels_as_they_are,
    run_batch,
)
from imae.files.errors import DataError, ExportError, LayerError
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import size_text
from imae.layers.layer import Shape
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.fold import fold_batch_norm
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import TEST, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import filter_by_state, in_state

Array = NDArray[Any]
Batch = NDArray[np.float32]


class Images(NamedTuple):
    """The names, and a function that reads the pixels (C, H, W) of image i, 0-255, as a net takes them."""

    names: list[str]
    read: Callable[[int], Array]


class Model(NamedTuple):
    """A model that can compute features.

    preparation   as in its TEST data layer, or in the metadata of an ONNX model
    batch_size    the only batch size that it accepts; None: any
    start         for a shape (N, C, H, W), returns a function from a batch of at most N images to their
                  features (n, D)
    """

    preparation: Preprocessing
    batch_size: int | None
    start: Callable[[Shape], Callable[[Array], Batch]]


def net_model(
    path: AnyPath, weights: AnyPath, blob: str | None, dialect: str | None, device: torch.device
) -> Model:
    """A train_val or deploy net in phase TEST; a blob, by default the only output, gives the features."""
    param = read_net_text(path, dialect)
    test = in_state(param, TEST, NetState(phase=TEST))
    layers = filter_by_state(test, test.state).layer
    source = next((layer for layer in layers if not layer.bottom and class_of(layer).makes_input), None)
    if source is None:
        raise ExportError(f"{path}: no layer makes an input in phase TEST")
    transform, image = source.transform_param, source.image_data_param
    input_shape = tuple(source.input_param.shape[0].dim) if source.input_param.shape else ()
    gray = transform.force_gray or not image.is_color or input_shape[1:2] == (1,)
    size = (image.new_height, image.new_width) if image.new_height and image.new_width else None
    preparation = make_preprocessing(
        transform, num_channels=1 if gray else 3, resize=size, where=f"layer {source.name!r}"
    )

    def start(shape: Shape) -> Callable[[Array], Batch]:
        if input_shape and input_shape[1:] != shape[1:]:
            raise DataError(
                f"{path}: the input is {size_text(input_shape[1:])}, the prepared images are "
                f"{size_text(shape[1:])}; use --resize and --crop"
            )
        net = Net(deploy_net(param, shape), Run(CaffeRandom(0)))
        load_caffemodel(net, weights, dialect)
        return _embed_with_net(net, _feature_blob(net, blob), device)

    return Model(preparation, None, start)


def _feature_blob(net: Net, wanted: str | None) -> str:
    if wanted is None and len(net.outputs) == 1:
        return net.outputs[0]
    if wanted not in net.blob_shapes:
        got = "it has several outputs" if wanted is None else f"there is no {wanted!r}"
        raise LayerError(
            f"net {net.name!r}: one blob is needed, {got}; use --blob with {', '.join(net.blob_shapes)}"
        )
    return wanted


def _embed_with_net(net: Net, blob: str, device: torch.device) -> Callable[[Array], Batch]:
    (feed,) = net.inputs
    count = net.blob_shapes[feed][0]
    if net.blob_shapes[blob][:1] != (count,):
        raise LayerError(
            f"net {net.name!r}: blob {blob!r} has shape {net.blob_shapes[blob]} for {count} images; it must "
            f"hold a feature for each image"
        )
    net.to(device)
    folded = fold_batch_norm(net)
    plan = folded if any(blob in step.tops for step in folded) else net.steps

    def embed(batch: Array) -> Batch:
        # A Reshape layer may fix the net's batch size, so the last batch is padded to the same size.
        images = torch.zeros(net.blob_shapes[feed], device=device)
        images[: len(batch)] = torch.from_numpy(batch)
        with torch.no_grad():
            values = net.forward({feed: images}, keep=[blob], plan=plan)[blob]
        return values[: len(batch)].reshape(len(batch), -1).cpu().numpy()

    return embed


def onnx_model(path: AnyPath, output: str | None, device: torch.device) -> Model:
    """An ONNX model; an output, by default the only one, gives the features."""
    if device.type == "cpu":
        session = open_session(path)
    else:
        session = open_session(path, "CUDA", device=device.index)
    shape, output = session.get_inputs()[0].shape, output_name(session, output, "--blob")
    if len(shape) != 4:
        raise ExportError(f"{path}: an input of images (N, C, H, W) is needed, got {shape}")

    def embed(batch: Array) -> Batch:
        values, _ = run_batch(session, batch, output)
        return values.reshape(len(batch), -1).astype(np.float32, copy=False)

    preparation = model_preprocessing(session, path)
    if preparation is None:
        preparation = pixels_as_they_are(path, shape)
    return Model(preparation, shape[0] if isinstance(shape[0], int) else None, lambda _: embed)


def features(model: Model, images: Images, preparation: Preprocessing, batch_size: int) -> Iterator[Batch]:
    """The features of all images in order, in batches (n, D); a thread prepares the next batch meanwhile."""
    count = len(images.names)
    transformer = preparation.transformer("image", of_records=True)

    def prepare(rows: range) -> Array:
        pixels = [_resized(images.read(row), preparation.resize, images.names[row]) for row in rows]
        return transformer.transform_list(pixels, lambda i: images.names[rows[i]])

    batch_size = min(batch_size, count)
    batches = [range(begin, min(begin + batch_size, count)) for begin in range(0, count, batch_size)]
    embed = model.start((batch_size, *prepare(range(1)).shape[1:]))
    with ThreadPoolExecutor(1) as pool, tqdm(total=count, unit=" images", disable=None) as bar:
        prefetched = pool.submit(prepare, batches[0])
        for following in [*batches[1:], None]:
            batch = prefetched.result()
            if following is not None:
                prefetched = pool.submit(prepare, following)
            yield embed(batch)
            bar.update(len(batch))


def _resized(pixels: Array, size: tuple[int, int] | None, name: str) -> Array:
    """Resize (C, H, W) to (C, height, width), bilinearly, as Caffe's tools do."""
    if size is None or pixels.shape[1:] == size:
        return pixels
    if len(pixels) not in (1, 3):
        raise DataError(
            f"{name}: {size_text(pixels.shape)} is no image of 1 or 3 channels; it cannot be resized"
        )
    height, width = size
    resized = cv2.resize(np.ascontiguousarray(pixels.transpose(1, 2, 0)), (width, height))
    return resized.reshape(height, width, -1).transpose(2, 0, 1)
