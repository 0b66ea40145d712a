r"""A net and its weights as a torch.nn.Module that takes tensors, for those who go on in PyTorch.

    net = imae.load("deploy.prototxt", "w.caffemodel")
    scores = net(images)                    # one output: a tensor
    net(images, keep=["pool5"])["pool5"]    # several: a dict, by the names of the blobs

The results of several outputs are a dict, not a named tuple: names of blobs need not be Python's names.

Each layer is a child module, and its parameter blobs are parameters of that, by the names that an exported
ONNX model has, too: `conv1.weight`, `bn1.mean` (`Layer.blob_names`). A name of a layer becomes the name of a
module, and back, by this rule (`module_name`, `layer_name`):

    .  and  %                           are written %2E and %25, as in a URL
    quotes, brackets, , ; \ and control characters
                                        are written so, too: torch.export writes names of modules into Python
                                        code, which it runs, without looking for the end of a string in them
    a name that modules have already, or a word of Python's
                                        its first letter is written so: train becomes %74rain
    no name                             is %_
    a layer of the name of an earlier one
                                        gets %_2, %_3, ... after its name

So `inception_3a/1x1` stays as it is. What a layer computes depends on Caffe's phase, which is fixed when the
net is loaded. `train()` and `eval()` change nothing.

Gradients are those of the layers, by autograd. Where an in-place layer overwrites what an earlier one reads
in its backward pass, Caffe's gradient differs, and so does that of `imae train`; here nothing is overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from keyword import iskeyword
from typing import Any, Literal, overload
from urllib.parse import unquote

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imae.converters.deploy import InputShape, deploy_net, deployed_preprocessing
from imae.converters.module_numbers import number_of
from imae.converters.preprocessing import (
    BGR,
    NOTHING,
    RGB,
    Preprocessing,
    PreprocessingOptions,
    Size,
    read_mean,
    read_transform,
)
from imae.files.errors import CaffemodelError, DataError, LayerError
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.labels import LabelReader
from imae.layers.layer import Layer, Shape
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.step import Step
from imae.net.weights import load_caffemodel
from imae.prototxt import TEST, TRAIN, NetParameter, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state

Phase = Literal["TRAIN", "TEST"]
SPECIAL = re.compile(r"""[%.,;\\"'()\[\]{}\x00-\x1f\x7f]""")  # characters of names that modules do not have
COLORS = {RGB: cv2.COLOR_RGB2GRAY, BGR: cv2.COLOR_BGR2GRAY}


def module_name(name: str, owner: nn.Module, place: int = 1) -> str:
    """The name of the child module of `owner`, or of its parameter, for a name of Caffe's.

    place   how many layers have had this name so far, with this one
    """
    word = SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", name)
    taken = hasattr(owner, word) and word not in (*owner._modules, *owner._parameters)
    if not word:
        word = "%_"
    elif word == name and (taken or iskeyword(word)):
        word = f"%{ord(word[0]):02X}{word[1:]}"
    return word if place == 1 else f"{word.removesuffix('%_')}%_{place}"


def layer_name(word: str) -> str:
    """The name of Caffe's that `module_name` has made this one of."""
    return unquote(re.sub(r"%_\d*$", "", word))


class _Blobs(Sequence[nn.Parameter]):
    """A layer's parameter blobs, in Caffe's order, which are parameters of a module."""

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        self._owner, self._names = owner, tuple(names)

    @overload
    def __getitem__(self, index: int) -> nn.Parameter: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[nn.Parameter]: ...
    def __getitem__(self, index: int | slice) -> nn.Parameter | Sequence[nn.Parameter]:
        if isinstance(index, slice):
            return [getattr(self._owner, name) for name in self._names[index]]
        blob: nn.Parameter = getattr(self._owner, self._names[index])
        return blob

    def __setitem__(self, index: int, blob: nn.Parameter) -> None:
        setattr(self._owner, self._names[index], blob)

    def __len__(self) -> int:
        return len(self._names)


class NamedLayer(nn.Module):
    """A layer whose parameter blobs have names. It is called with the bottoms, and may have hooks.

    layer   the Layer
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        blobs, names = list(layer.blobs), []
        for index, blob in enumerate(blobs):
            names.append(module_name(layer.blob_name(index), self))
            self.register_parameter(names[-1], blob)
        del layer.blobs  # the module; in its place what finds them here
        layer.__dict__["blobs"] = _Blobs(self, names)

    def forward(self, *bottoms: Tensor) -> Any:
        return self.layer(*bottoms)

    def extra_repr(self) -> str:
        return f"{self.layer.type}, {self.layer.extra_repr()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class CaffeModule(nn.Module):
    """A net that takes tensors, and whose parameters have names. Made by `load`.

    inputs    the inputs' shapes by name, in order; a batch may have another size
    outputs   the outputs' shapes by name, in order
    """

    def __init__(
        self, net: Net, names: Iterable[str], preprocessing: Preprocessing | DataError | None = None
    ) -> None:
        """`names`: of the layers that become child modules. The net is the module's own from then on."""
        super().__init__()
        self._net = (net,)  # no child: its layers are children by their own names
        self._preprocessing = preprocessing
        self.inputs: dict[str, Shape] = {name: net.blob_shapes[name] for name in net.inputs}
        self.outputs: dict[str, Shape] = {
            name: net.blob_shapes[name] for name in net.outputs if name not in self.inputs
        }
        self._plan: list[Step] = []
        wanted, places = frozenset(names), dict[str, int]()
        for step in net.steps:
            name = step.layer.name
            if step.layer.is_fed or name not in wanted:  # an Input; a Split that the net has inserted
                self._plan.append(step)
                continue
            places[name] = places.get(name, 0) + 1
            layer = NamedLayer(step.layer)
            self.add_module(module_name(name, self, places[name]), layer)
            self._plan.append(replace(step, run=layer, overwritten=False))
        # Whether torch.compile may trace the operations alone: nothing is drawn, kept, or read on the host.
        layers = [step.layer for step in net.steps]
        self._is_pure = net.phase == TEST and all(x.capturable and not x.continues for x in layers)
        self._is_pure &= not any(isinstance(part, LabelReader) for part in net.modules())
        self._number = number_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another module, with a number of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._number = number_of(self)

    @property
    def caffe_net(self) -> Net:
        """The net, whose layers and parameters are this module's."""
        return self._net[0]

    def _repr_html_(self) -> str:
        """A notebook shows the net's layers as a table."""
        return self.caffe_net._repr_html_()

    def forward(
        self, *inputs: Tensor, keep: str | Iterable[str] = (), **named: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """The output, or of several outputs a dict by their names.

        inputs, named   the inputs, in their order or by name
        keep            names of further blobs, which the result, then a dict, has as well

        LayerError for inputs that the net lacks, or that do not fit it.
        """
        kept = (keep,) if isinstance(keep, str) else tuple(keep)
        if torch.compiler.is_dynamo_compiling():
            from imae.converters.compiled_module import call_plain, call_traced  # imports torch's compiler

            result: Tensor | dict[str, Tensor]
            if self._is_pure:
                tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
                result = call_traced(self._number, tensors, inputs, named, kept)
            else:
                result = call_plain(self._compute, inputs, named, kept)
            return result
        return self._compute(inputs, named, kept)

    def _compute(
        self, inputs: Sequence[Tensor], named: Mapping[str, Tensor], kept: Sequence[str]
    ) -> Tensor | dict[str, Tensor]:
        values = self._net[0](self._feeds(inputs, named), keep=self._known(kept), plan=self._plan)
        if len(self.outputs) == 1 and not kept:
            (output,) = self.outputs
            result: Tensor = values[output]
            return result
        return {name: values[name] for name in dict.fromkeys((*self.outputs, *kept))}

    def _feeds(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        net, names = self._net[0], list(self.inputs)
        if len(inputs) > len(names):
            raise LayerError(
                f"net {net.name!r} has the inputs {', '.join(names) or 'none'}; got {len(inputs)} tensors"
            )
        feeds = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names:
                raise LayerError(f"net {net.name!r} has no input {name!r}{did_you_mean(name, names)}")
            if name in feeds:
                raise LayerError(f"net {net.name!r}: input {name!r} is given twice")
            feeds[name] = value
        for name, value in feeds.items():
            if not isinstance(value, Tensor):
                raise LayerError(f"input {name!r} must be a torch.Tensor, got {type(value).__name__}")
        return feeds

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name not in self._net[0].blob_shapes:
                close = did_you_mean(name, self._net[0].blob_shapes)
                raise LayerError(f"net {self._net[0].name!r} has no blob {name!r}{close}")
        return names

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the net; None where neither files nor options say it.

        DataError where the prototxt names a mean that cannot be read.
        """
        if isinstance(self._preprocessing, DataError):
            raise self._preprocessing
        return self._preprocessing

    def prepare(self, image: NDArray[np.uint8], channels: str = RGB) -> Tensor:
        """An image as a batch of one for the net, (1, C, h, w), of the type and on the device of the weights.

        image      (H, W, 3), or (H, W), bytes
        channels   the order of the image's own channels: RGB, as PIL and torchvision read; BGR, as OpenCV

        DataError where nothing says how images are prepared, or the image does not fit.
        """
        from imae.converters.run_onnx import resized  # which imports onnx

        known = self.preprocessing
        if known is None:
            raise DataError(
                f"net {self._net[0].name!r}: nothing says how its images are prepared; load it with "
                "transform, mean, resize or channels"
            )
        shape = self._net[0].blob_shapes[known.name]
        pixels = resized(_as_decoded(image, channels, shape[1] == 1), known, shape)
        batch = torch.from_numpy(known.transformer("image").transform_list([pixels], lambda i: "image"))
        weight = next((p for p in self.parameters() if p.is_floating_point()), batch)
        return batch.to(weight.device, weight.dtype)


def _as_decoded(image: NDArray[np.uint8], channels: str, gray: bool) -> NDArray[np.uint8]:
    """The pixels as Caffe decodes them: (H, W, 3), BGR, or (H, W, 1)."""
    if channels not in COLORS:
        raise DataError(f"channels must be RGB or BGR, got {channels!r}")
    if image.dtype != np.uint8 or not image.size or image.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"an image must be bytes, (H, W, 3) or (H, W); got {image.dtype} of shape {image.shape}"
        )
    pixels = image if image.ndim == 3 else image[:, :, None]
    if gray:
        return pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, COLORS[channels])[:, :, None]  # type: ignore[return-value]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, 2)
    return pixels[:, :, ::-1] if channels == RGB else pixels


def load(
    model: AnyPath,
    weights: AnyPath | None = None,
    phase: Phase = "TEST",
    *,
    dialect: str | None = None,
    input_shape: InputShape | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    allow_missing: bool = False,
    random_seed: int | None = None,
    transform: str | None = None,
    mean: str | None = None,
    resize: Size | None = None,
    channels: str | None = None,
) -> CaffeModule:
    """A net of Caffe and its weights as a torch.nn.Module.

    model          a prototxt: a deploy net, or a train_val net, whose data layers become inputs and whose
                   losses and accuracies are left out
    weights        a .caffemodel or .caffemodel.h5; None: the fillers' values
    phase          TEST, or TRAIN: the net as it is, with its losses, dropout and batch statistics. It must
                   then have Input layers in place of data layers
    dialect        the fork that wrote the files, one of DIALECTS
    input_shape    of the inputs, where the files do not give it: (C, H, W), (N, C, H, W), or by name
    level, stages  of the net's state
    allow_missing  layers that the weights lack keep the values of their fillers; else they are an error
    random_seed    of fillers, and of dropout in TRAIN; None: another one each time
    transform, mean, resize, channels
                   how images are prepared, in place of what the files say: transform_param as prototxt
                   text; a file of the mean or "104,117,123"; (height, width); BGR, RGB or GRAY

    An ImaeError, in one line, where a file cannot be read or does not fit.

    >>> import imae, torch
    >>> from pathlib import Path
    >>> _ = Path("deploy.prototxt").write_text('''
    ...     layer { name: "data" type: "Input" top: "data"
    ...             input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
    ...     layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
    ...             convolution_param { num_output: 4 kernel_size: 3 bias_filler { value: 0.5 } } }
    ... ''')
    >>> net = imae.load("deploy.prototxt")
    >>> scores = net(torch.zeros(2, 3, 8, 8))
    >>> scores.shape, scores[0, 0, 0, 0].item()
    (torch.Size([2, 4, 6, 6]), 0.5)
    """
    if phase not in ("TRAIN", "TEST"):
        raise DataError(f"phase must be TRAIN or TEST, got {phase!r}")
    options = PreprocessingOptions(
        None if transform is None else read_transform(transform, "transform"),
        None if mean is None else read_mean(mean),
        resize,
        channels,
    )
    number = TRAIN if phase == "TRAIN" else TEST
    files = [] if weights is None else [weights]
    state = NetState(phase=number, level=level, stage=stages)
    param = in_state(read_net_text(model, dialect, files), number, state)
    return make_module(
        param,
        weights,
        dialect=dialect,
        input_shape=input_shape,
        allow_missing=allow_missing,
        random_seed=random_seed,
        preprocessing=options,
    )


def make_module(
    param: NetParameter,
    weights: AnyPath | None = None,
    *,
    dialect: str | None = None,
    input_shape: InputShape | None = None,
    allow_missing: bool = False,
    random_seed: int | None = None,
    preprocessing: PreprocessingOptions = NOTHING,
) -> CaffeModule:
    """`load` of a net that has been read; its state has the phase."""
    built = deploy_net(param, input_shape) if param.state.phase == TEST else param
    net = Net(built, Run(CaffeRandom(random_seed)))
    if making := [repr(layer.name) for layer in net.data_layers()]:
        raise LayerError(
            f"net {net.name!r}: layer {', '.join(making)} makes its own batches, and a module gets tensors; "
            "load it in phase TEST, write Input layers in place of these, or train it with imae train"
        )
    if weights is not None:
        missing = load_caffemodel(net, weights, dialect).fresh
        if missing and not allow_missing:
            raise CaffemodelError(
                f"{weights} has no blobs for the layers {', '.join(missing)}, which would be their fillers' "
                "random numbers; give the weights of this net, or allow missing ones"
            )
    return CaffeModule(net, [layer.name for layer in built.layer], _preprocessing(param, net, preprocessing))


def _preprocessing(
    param: NetParameter, net: Net, options: PreprocessingOptions
) -> Preprocessing | DataError | None:
    """How images are prepared; the error where the net's own mean cannot be read: nobody may ask for it."""
    try:
        return deployed_preprocessing(param, net, options)
    except DataError as error:
        if options.given:
            raise
        return error
