"""How an image becomes the input of a model, stored in the model's metadata, so that it travels with it.

The steps, in Caffe's order: decode, resize, subtract the mean, crop from the centre, scale. Nothing is
mirrored.

A model says it twice. `imae.transform_param` has Caffe's words, by which `imae run` and `imae quantize`
prepare images. Plain keys say the same to other programs; where a key is absent, its step is left out:

    imae.input.name              the input that takes images
    imae.input.layout            NCHW, or NHWC of a model that prepares images itself
    imae.input.dtype             float32, or uint8 of such a model
    imae.input.channels          their order: BGR, RGB or GRAY
    imae.input.range             of a pixel, before mean and scale: 0..255
    imae.input.resize            HEIGHTxWIDTH that the image is resized to first
    imae.input.resize_mode       how: WARP (each side by itself), or another mode of SSD's resize_param
    imae.input.resize_interpolation
                                 OpenCV's INTER_ of this name, or one of several; absent: LINEAR
    imae.input.crop              HEIGHTxWIDTH from the centre: its first row is (height - crop) // 2
    imae.input.mean              one number for all channels, or one per channel, in the order of the
                                 channels; of a mean image the mean of each channel
    imae.input.mean_image        the mean image, which is subtracted before the crop: base64 of float32,
                                 little-endian, C x H x W
    imae.input.mean_image_shape  CxHxW of the mean image
    imae.input.scale             the factor, after the mean is subtracted
    imae.input.other             further fields of the transform_param, as prototxt text

A model that prepares images itself (embed.py) has no keys for what it does; it has these:

    imae.input.embedded          what it does to an image, in words
    imae.input.prepared          the value inside of the model that holds the prepared images, (N, C, h, w)
    imae.input.net_channels      the order of the channels there, and in databases that were made for the net,
                                 if it is another one than that of the input

In a model without `imae.transform_param` nothing says how its input is made.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.converters.byte_images import ByteTransformer
from imae.files.errors import DataError, first_line, printable
from imae.files.limits import blob_problem
from imae.files.read import AnyPath, open_to_read
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data_resources import MapIndices, map_in_order
from imae.layers.data.transformer import DataTransformer, read_mean_file
from imae.prototxt import TEST, TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter
from imae.prototxt.text import parse_text, to_text

TRANSFORM_KEY = "imae.transform_param"
PREFIX = "imae.input."
MEAN_IMAGE, MEAN_IMAGE_SHAPE, RESIZE, CHANNELS, LAYOUT, DTYPE, NAME = (
    PREFIX + name
    for name in ("mean_image", "mean_image_shape", "resize", "channels", "layout", "dtype", "name")
)
EMBEDDED, PREPARED, NET_CHANNELS = (PREFIX + name for name in ("embedded", "prepared", "net_channels"))
BGR, RGB, GRAY = "BGR", "RGB", "GRAY"
ORDERS = (BGR, RGB, GRAY)
NCHW, NHWC = "NCHW", "NHWC"
FLOAT32, UINT8 = "float32", "uint8"
# Fields that have no part in preparing an image for a model, or are said in another way.
LEFT_OUT = ("mirror", "mean_file", "distort_param", "expand_param", "emit_constraint")
PLAIN = ("scale", "crop_size", "mean_value", "force_color", "force_gray", "resize_param", "crop_h", "crop_w")
# What is left to do to an image for a model that prepares images itself.
NOT_EMBEDDED = ("resize_param", "force_color", "force_gray")
LARGEST_MEAN = 1 << 28  # bytes of a .npy file

Size = tuple[int, int]  # height, width
InputShape = Sequence[int | str]
Mean = NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a model.

    transform    Caffe's fields, without mirror and mean_file
    mean_image   (C, H, W), subtracted before the crop; None: the transform's mean_value
    resize       (height, width) that an image is resized to before all else, by the nearest four pixels as in
                 Caffe's tools; None: not known
    channels     the order of the channels: BGR as Caffe decodes images, RGB, or GRAY
    name         the model's input
    layout       NCHW, or NHWC
    dtype        float32, or uint8 where the model itself crops, subtracts the mean and scales; the transform
                 then has only what is left to do

    Of such a model alone, empty otherwise:

    embedded     what it does to an image, in words
    prepared     the value inside of it that holds the prepared images
    net_channels the order of the channels there, if it is another one
    """

    transform: TransformationParameter
    mean_image: Mean | None = None
    resize: Size | None = None
    channels: str = BGR
    name: str = ""
    layout: str = NCHW
    dtype: str = FLOAT32
    embedded: str = ""
    prepared: str = ""
    net_channels: str = ""

    @property
    def crop(self) -> Size | None:
        """(height, width) of the window in the centre."""
        crop = self.transform.crop_size
        height, width = crop or self.transform.crop_h, crop or self.transform.crop_w
        return (height, width) if height and width else None

    @property
    def num_channels(self) -> int:
        """The number of channels of an image."""
        return 1 if self.channels == GRAY else 3

    @property
    def other_fields(self) -> list[str]:
        """The fields of the transform besides those of decoding, resizing, mean, crop and scale."""
        plain = (*PLAIN, "exclude_last_crop")
        return [field.name for field, _ in self.transform.ListFields() if field.name not in plain]

    @property
    def is_embedded(self) -> bool:
        """Whether the model prepares images itself, and takes their bytes."""
        return self.dtype == UINT8

    def input_size(self, shape: InputShape) -> tuple[int | str, int | str]:
        """(height, width) of an input of this shape; free axes have names."""
        axis = 1 if self.layout == NHWC else 2
        return shape[axis], shape[axis + 1]

    def input_channels(self, shape: InputShape) -> int | str:
        """The number of channels of an input of this shape."""
        return shape[3 if self.layout == NHWC else 1]

    @property
    def resizes_itself(self) -> bool:
        """Whether the transform has a resizing of its own (SSD's resize_param)."""
        return self.transform.HasField("resize_param")

    def fitted(self, shape: InputShape) -> Preprocessing:
        """For an input of this shape; a larger mean image shows that images are cropped.

        DataError where images that are prepared so do not fit the input, or the mean image does not fit them.
        """
        if self.mean_image is not None and self.resize is not None and not self.resizes_itself:
            mean, images = size_text(self.mean_image.shape[1:]), size_text(self.resize)
            if mean != images:
                raise DataError(
                    f"the mean image is {mean}, and images would be {images} when it is subtracted; give "
                    f"--resize {mean}, or --mean with a number for each channel"
                )
        height, width = self.input_size(shape)
        if not isinstance(height, int) or not isinstance(width, int):
            return self
        made = self
        if self.mean_image is not None and self.crop is None and not self.resizes_itself:
            size = self.mean_image.shape[1:]
            # A window that is not square is SSD's crop_h and crop_w, which go with no mean image.
            if height == width and size != (height, width) and min(size) >= height:
                transform = TransformationParameter()
                transform.CopyFrom(self.transform)
                transform.crop_size = height
                made = replace(self, transform=transform)
        prepared = made.prepared_size(shape)
        if prepared is not None and prepared != (height, width):
            raise DataError(
                f"images would be prepared as {size_text(prepared)} ({made.steps()}), and the input "
                f"{made.name!r} is {size_text((height, width))}; give another crop_size, mean or --resize"
            )
        return made

    def prepared_size(self, shape: InputShape) -> Size | None:
        """(height, width) of prepared images for an input of this shape; None: as the image has it."""
        if self.crop is not None:
            return self.crop
        if not self.resizes_itself:
            return self.resize_for(shape)
        resize = self.transform.resize_param
        return None if resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE else (resize.height, resize.width)

    def resize_for(self, shape: InputShape) -> Size | None:
        """The size that an image is resized to for an input of this shape; None: it is not.

        Where nothing says the size before the crop, it is the input's own, and nothing is cropped. So do
        Caffe's classification example and its Classifier.
        """
        if self.resizes_itself:
            return None
        height, width = self.input_size(shape)
        if self.resize is not None:
            return self.resize
        return (height, width) if isinstance(height, int) and isinstance(width, int) else self.crop

    def transformer(
        self, where: str, map_indices: MapIndices = map_in_order, of_records: bool = False
    ) -> DataTransformer | ByteTransformer:
        """What makes batches for the model, of images (C, H, W) in the order of its channels.

        where        names the images in errors
        of_records   the images are records of a database, in the order of the net's channels
        """
        transformer = DataTransformer(
            self.transform, TEST, where, map_indices=map_indices, mean=self.mean_image
        )
        transformer.seed(CaffeRandom(0))  # for one of several interpolations of a resize_param
        transformer.seed_thread(CaffeRandom(0))
        if not self.is_embedded:
            return transformer
        return ByteTransformer(transformer, of_records and self.net_channels not in ("", self.channels))

    def metadata(self) -> dict[str, str]:
        """The metadata of a model whose input is prepared so; see the module's text for the keys."""
        transform, plain = self.transform, dict[str, str]()
        plain |= {"name": self.name, "layout": self.layout, "dtype": self.dtype, "channels": self.channels}
        plain["range"] = "0..255"
        if transform.HasField("resize_param"):
            resize = transform.resize_param
            plain["resize"] = size_text((resize.height, resize.width))
            plain["resize_mode"] = ResizeParameter.Resize_mode.Name(resize.resize_mode)
            if resize.interp_mode:
                names = map(ResizeParameter.Interp_mode.Name, resize.interp_mode)
                plain["resize_interpolation"] = " ".join(names)
        elif self.resize is not None:
            plain["resize"], plain["resize_mode"] = size_text(self.resize), "WARP"
        if self.crop is not None:
            plain["crop"] = size_text(self.crop)
        if self.mean_image is not None:
            plain["mean"] = _numbers(self.mean_image.mean((1, 2), np.float64))
            plain["mean_image"] = base64.b64encode(self.mean_image.astype("<f4").tobytes()).decode("ascii")
            plain["mean_image_shape"] = size_text(self.mean_image.shape)
        elif transform.mean_value:
            plain["mean"] = _numbers(transform.mean_value)
        if transform.scale != 1:
            plain["scale"] = _numbers([transform.scale])
        other = TransformationParameter()
        other.CopyFrom(transform)
        for field in PLAIN:
            other.ClearField(field)
        if text := " ".join(to_text(other).split()):
            plain["other"] = text
        for key in ("embedded", "prepared", "net_channels"):
            if value := getattr(self, key):
                plain[key] = value
        return {TRANSFORM_KEY: to_text(transform), **{PREFIX + key: value for key, value in plain.items()}}

    def steps(self) -> str:
        """The steps in words, in their order, for a line of output."""
        words = []
        if self.resizes_itself:
            resize = self.transform.resize_param
            mode = ResizeParameter.Resize_mode.Name(resize.resize_mode)
            words.append(f"resized to {size_text((resize.height, resize.width))} ({mode})")
        elif self.resize is not None:
            words.append(f"resized to {size_text(self.resize)}")
        if self.is_embedded:
            order = f"{self.channels} bytes"
            return ", ".join([*words, f"{order}; the model itself does the rest: {self.embedded}"])
        words.append(f"{self.channels} 0..255")
        if self.mean_image is not None:
            means = _numbers(self.mean_image.mean((1, 2), np.float64).round(2))
            words.append(f"minus a mean image (about {means})")
        elif self.transform.mean_value:
            words.append(f"minus {_numbers(self.transform.mean_value)}")
        if self.crop is not None:
            words.append(f"cropped to {size_text(self.crop)} from the centre")
        if self.transform.scale != 1:
            words.append(f"times {_numbers([self.transform.scale])}")
        return ", ".join(words)

    def steps_for(self, shape: InputShape) -> str:
        """The steps for an input of this shape, which is the size of images where nothing else says it."""
        size = None if self.resize is not None else self.resize_for(shape)
        if size is None:
            return self.steps()
        cropped, transform = self.crop == size, TransformationParameter()
        transform.CopyFrom(self.transform)
        if cropped:
            for name in ("crop_size", "crop_h", "crop_w"):
                transform.ClearField(name)
        why = "the model does not say from which size it was cropped" if cropped else "the input's size"
        return f"resized to {size_text(size)} ({why}), {replace(self, transform=transform).steps()}"


@dataclass(frozen=True)
class PreprocessingOptions:
    """What a user says of the preparation of images, where the net or the model says nothing, or otherwise.

    transform   in place of the transform_param
    mean        (C,) or (C, H, W), in place of the transform's own mean
    resize      (height, width) that images are resized to first
    channels    BGR, RGB or GRAY
    """

    transform: TransformationParameter | None = None
    mean: Mean | None = None
    resize: Size | None = None
    channels: str | None = None

    @property
    def given(self) -> bool:
        """Whether any of them is set."""
        return any(x is not None for x in (self.transform, self.mean, self.resize, self.channels))

    def apply(self, own: Preprocessing | None, shape: InputShape) -> Preprocessing | None:
        """`own`, with what is said in its place; None where neither says anything.

        shape   of the model's input (N, C, H, W), or as `own` has it; free axes have names

        DataError where the mean cannot be read, what is said does not fit the input, or the model prepares
        images itself.
        """
        if not self.given:
            return own
        if own is not None and own.is_embedded:
            raise DataError(SELF_PREPARING)
        own = own or Preprocessing(TransformationParameter())
        mean = self.mean
        if mean is None and self.transform is None:
            mean = own.mean_image
        resize = self.resize
        if resize is None and (self.transform is None or self.transform.crop_size):
            resize = own.resize
        made = make_preprocessing(
            own.transform if self.transform is None else self.transform,
            name=own.name,
            num_channels=1 if shape[1] == 1 else 3,
            mean=mean,
            resize=resize,
            channels=self.channels or own.channels,
            where="--mean" if self.transform is None else "--transform",
        )
        return replace(made, layout=own.layout, dtype=own.dtype).fitted(shape)


NOTHING = PreprocessingOptions()
SELF_PREPARING = (
    "the model prepares images itself (it was exported with --embed-preprocess): it takes their bytes; leave "
    "out the options that say how images are prepared, or export it again with them"
)


def make_preprocessing(
    transform: TransformationParameter,
    *,
    name: str = "",
    num_channels: int = 3,
    mean: Mean | None = None,
    resize: Size | None = None,
    channels: str = BGR,
    where: str = "transform_param",
) -> Preprocessing:
    """The preprocessing that a transform_param describes; its mean_file is read here.

    num_channels   of the model's input: 1 makes the order GRAY
    mean           (C,) or (C, H, W), in place of the transform's own mean
    resize         (height, width) that images are resized to first; None: that of the mean image, if any

    DataError where the mean cannot be read, or does not fit.
    """
    kept = TransformationParameter()
    kept.CopyFrom(transform)
    if mean is None and transform.HasField("mean_file"):
        if transform.mean_value:
            raise DataError(
                f"{where}: Cannot specify mean_file and mean_value at the same time; leave one out"
            )
        mean = read_mean_file(transform.mean_file, where)
    if kept.bgr2rgb:  # Intel's
        channels = RGB
        kept.ClearField("bgr2rgb")
    for field in LEFT_OUT:
        kept.ClearField(field)
    mean_image = None
    if mean is not None:
        kept.ClearField("mean_value")
        if len(mean) not in (1, num_channels):
            raise DataError(
                f"{where}: the mean has {len(mean)} channels, the model's images have {num_channels}; give "
                "the mean of these images"
            )
        if mean.ndim == 1:
            kept.mean_value.extend(mean.tolist())
        else:
            mean_image = mean
            if resize is None and not kept.HasField("resize_param"):
                resize = mean.shape[1], mean.shape[2]
    if num_channels == 1:
        channels = GRAY
    return Preprocessing(kept, mean_image, resize, channels, name)


def read_transform(text: str, where: str) -> TransformationParameter:
    """A TransformationParameter in prototxt text; PrototxtError with the place `where` if it is none."""
    return parse_text(text, TransformationParameter, where)


def from_metadata(metadata: Mapping[str, str], where: str) -> Preprocessing | None:
    """The preprocessing that a model's metadata holds; None where it says nothing.

    A model that an older release has exported has only `imae.transform_param`, perhaps with a mean_file.

    DataError where the metadata is damaged; `where` names the model.
    """
    if TRANSFORM_KEY not in metadata:
        return None
    where = f"{where}: metadata"
    transform = read_transform(metadata[TRANSFORM_KEY], f"{where}: {TRANSFORM_KEY}")
    mean = None
    if MEAN_IMAGE in metadata:
        mean = _mean_image(metadata[MEAN_IMAGE], metadata.get(MEAN_IMAGE_SHAPE, ""), where)
    channels = metadata.get(CHANNELS, BGR)
    if channels not in ORDERS:
        raise DataError(f"{where}: {CHANNELS} must be one of {', '.join(ORDERS)}; got {channels!r}")
    resize = None
    if RESIZE in metadata and not transform.HasField("resize_param"):
        sides = _sides(metadata[RESIZE], 2, f"{where}: {RESIZE}")
        resize = sides[0], sides[1]
        if problem := blob_problem((3, *resize)):
            raise DataError(f"{where}: {RESIZE}: {problem}")
    made = make_preprocessing(
        transform,
        name=metadata.get(NAME, ""),
        num_channels=1 if channels == GRAY else 3,
        mean=mean,
        resize=resize,
        channels=channels,
        where=where,
    )
    layout, dtype = metadata.get(LAYOUT, NCHW), metadata.get(DTYPE, FLOAT32)
    if (layout, dtype) == (NCHW, FLOAT32):
        return made
    if (layout, dtype) != (NHWC, UINT8):
        raise DataError(
            f"{where}: {LAYOUT} and {DTYPE} must be {NCHW} and {FLOAT32}, or {NHWC} and {UINT8}; got "
            f"{layout!r} and {dtype!r}"
        )
    inside = [field.name for field, _ in transform.ListFields() if field.name not in NOT_EMBEDDED]
    if inside or mean is not None:
        raise DataError(
            f"{where}: a model that takes bytes prepares them itself; {inside[0] if inside else MEAN_IMAGE} "
            "must not be there"
        )
    net_channels = metadata.get(NET_CHANNELS, "")
    if net_channels not in ("", BGR, RGB) or (net_channels and channels == GRAY):
        raise DataError(f"{where}: {NET_CHANNELS} must be {BGR} or {RGB}; got {net_channels!r}")
    return replace(
        made,
        layout=layout,
        dtype=dtype,
        embedded=printable(metadata.get(EMBEDDED, "")),
        prepared=metadata.get(PREPARED, ""),
        net_channels=net_channels,
    )


def read_mean(text: str) -> Mean:
    """A mean from a .binaryproto, a .npy file, or numbers: "104,117,123".

    Returns (C,), one number per channel, or (C, H, W), a mean image. DataError for anything else.
    """
    words = text.replace(",", " ").split()
    try:
        values = np.array([float(word) for word in words], np.float32)
    except ValueError:
        pass
    else:
        if not len(values) or not np.isfinite(values).all():
            raise DataError(f"--mean must be a file, or a finite number for each channel; got {text!r}")
        return values
    if text.endswith(".npy"):
        return _read_npy(text)
    return read_mean_file(text, "--mean")


def _read_npy(path: AnyPath) -> Mean:
    """An array (C,), (C, H, W) or (1, C, H, W) of floating-point numbers in NumPy's format."""
    name = os.fspath(path)
    try:
        with open_to_read(path) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"its version is {version}")
            shape, fortran, dtype = read[version](file)
            if dtype.kind != "f" or dtype.hasobject:
                raise ValueError(f"it holds {dtype}, not floating-point numbers")
            data = file.read(LARGEST_MEAN)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"its shape is {shape}, and it has {len(data)} bytes of {dtype}")
        values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except OSError as error:
        raise DataError(f"--mean: cannot read '{name}': {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"--mean: '{name}' is no array of NumPy's: {first_line(error)}") from error
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 3) or not values.size:
        raise DataError(f"--mean: '{name}' has shape {shape}; expected (C,), (C, H, W) or (1, C, H, W)")
    return np.ascontiguousarray(values, np.float32)


def _mean_image(text: str, shape_text: str, where: str) -> Mean:
    shape = _sides(shape_text, 3, f"{where}: {MEAN_IMAGE_SHAPE}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: {MEAN_IMAGE} is no base64: {error}") from error
    if len(data) != 4 * math.prod(shape):
        raise DataError(
            f"{where}: {MEAN_IMAGE} has {len(data)} bytes; {shape_text} needs {4 * math.prod(shape)}"
        )
    return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)


def _sides(text: str, count: int, where: str) -> tuple[int, ...]:
    words = text.split("x")
    sides = tuple(int(word) if word.isdecimal() and len(word) < 10 else 0 for word in words)
    if len(sides) != count or min(sides) < 1:
        raise DataError(f"{where} must be {'x'.join('CHW'[-count:])}, got {text!r}")
    if problem := blob_problem(sides):
        raise DataError(f"{where}: {problem}")
    return sides


def size_text(size: Sequence[int]) -> str:
    """HEIGHTxWIDTH, or of a mean image CxHxW; `read_size` reads it."""
    return "x".join(map(str, size))


def read_size(text: str, option: str) -> Size:
    """HEIGHTxWIDTH, or one number for both sides."""
    words = text.lower().split("x")
    height, width = _sides("x".join(words * 2 if len(words) == 1 else words), 2, option)
    return height, width


def _numbers(values: Any) -> str:
    """Numbers of float32 with as many digits as tell them apart."""
    return " ".join(np.format_float_positional(np.float32(value), trim="-") for value in values)
