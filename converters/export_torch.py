"""A net and its weights as files of PyTorch's: .safetensors (the weights) or .pt2 (the program as well).

Both have the keys of `imae.load`: conv1.weight, bn1.mean. Both say where they are from, and how images are
prepared (preprocessing.py), by the metadata keys of an exported ONNX model: a .safetensors file in its
header, a .pt2 file in the text of the extra file `metadata.json`. A blob that several layers share is in a
.safetensors file under each of its keys, so that it can be loaded strictly.

What was written is read again, and compared with the net, before the file gets its name. Only the bytes that
were just made are read, and no code of a file is run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imae.converters.check_onnx import batch_axes, random_inputs
from imae.converters.deploy import InputShape
from imae.converters.describe_model import source_metadata
from imae.converters.preprocessing import NOTHING, Preprocessing, PreprocessingOptions
from imae.converters.torch_module import CaffeModule, make_module
from imae.files.atomic import write_atomically
from imae.files.errors import ExportError, LayerError, first_line
from imae.files.read import AnyPath
from imae.prototxt import NetParameter

Target = Literal["safetensors", "pt2"]
METADATA_FILE = "metadata.json"
ALLOWED = 1e-5  # difference of a .pt2 program from the net, relative to the largest output
NEEDS_SAFETENSORS = "the package safetensors is needed; install it: pip install 'imae[safetensors]'"


@dataclass
class TorchExport:
    """What was written, and how it was checked.

    tensors      how many there are
    values       how many numbers they have
    inputs       shapes by name; the size of the batch is 0 where it is free
    difference   largest absolute difference of the program's outputs from the net's, on random inputs;
                 of weights alone: None, they are the same bits
    largest      largest absolute value among the net's outputs there
    batch_sizes  that were compared
    preprocessing
                 how images are prepared for the net; None: nothing says it
    """

    tensors: int
    values: int
    inputs: dict[str, tuple[int, ...]]
    difference: float | None = None
    largest: float = 0.0
    batch_sizes: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None


def export_torch(
    param: NetParameter,
    weights: AnyPath | None,
    output: AnyPath,
    to: Target,
    *,
    model: AnyPath | None = None,
    input_shape: InputShape | None = None,
    dynamic_batch: bool = True,
    dialect: str | None = None,
    allow_missing: bool = False,
    preprocessing: PreprocessingOptions = NOTHING,
) -> TorchExport:
    """Write a net of phase TEST (train_val or deploy) and its caffemodel, atomically, as `to` says.

    model          the prototxt's path: the metadata has its SHA-256
    dynamic_batch  leave the size of the batch open, in a .pt2 file
    preprocessing  how images are prepared, where the net does not say it, or otherwise than it says
    allow_missing  layers that the weights lack get the values of their fillers; else they are an error
    """
    module = make_module(
        param,
        weights,
        dialect=dialect,
        input_shape=input_shape,
        allow_missing=allow_missing,
        random_seed=0,
        preprocessing=preprocessing,
    )
    for key, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise ExportError(f"{key} holds NaN or infinity; train it again")
    metadata = _metadata(module, model, weights)
    if to == "safetensors":
        data, result = _safetensors(module, metadata)
    else:
        data, result = _program(module, metadata, dynamic_batch)
    write_atomically(Path(output), data)
    result.preprocessing = module.preprocessing
    return result


def _metadata(module: CaffeModule, model: AnyPath | None, weights: AnyPath | None) -> dict[str, str]:
    """Where the weights are from, and how images are prepared."""
    metadata = {"format": "pt", "imae.net": module.caffe_net.name} | source_metadata(model, weights)
    known = module.preprocessing
    return metadata if known is None else metadata | known.metadata()


def _safetensors(module: CaffeModule, metadata: dict[str, str]) -> tuple[bytes, TorchExport]:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ExportError(NEEDS_SAFETENSORS) from error
    # Copies: a file has no tensors that share memory.
    state = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    data = safetensors.torch.save(state, metadata)
    read = safetensors.torch.load(data)
    if read.keys() != state.keys() or not all(torch.equal(read[key], state[key]) for key in state):
        raise ExportError(
            "the weights that safetensors reads are not those that it wrote; nothing is written"
        )
    return data, _result(module, module.inputs)


def _program(module: CaffeModule, metadata: dict[str, str], dynamic: bool) -> tuple[bytes, TorchExport]:
    net = module.caffe_net
    axes = batch_axes(net) if dynamic else None
    sizes: dict[str, Any] | None = None
    if axes is not None:
        batch = torch.export.Dim("batch")
        sizes = {"inputs": tuple({axes[name]: batch} for name in module.inputs)}
    examples = _inputs(module, 2, axes)
    hint = "; if the net is for one batch size only, use --fixed-batch" if dynamic else ""
    # On an error torch prints the program so far.
    with torch.no_grad(), redirect_stderr(io.StringIO()):
        try:
            program = torch.export.export(module, examples, dynamic_shapes=sizes)
        except (RuntimeError, LayerError, ValueError) as error:
            raise ExportError(
                f"torch.export cannot trace net {net.name!r}: {first_line(error)}{hint}"
            ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has the paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    buffer.seek(0)
    read = torch.export.load(buffer).module()
    batch_sizes = (1, 3) if axes is not None else (next(iter(module.inputs.values()), (1,))[0],)
    result = _result(module, module.inputs)
    result.batch_sizes, result.difference = batch_sizes, 0.0
    if axes is not None:
        result.inputs = {
            name: (*shape[: axes[name]], 0, *shape[axes[name] + 1 :]) for name, shape in module.inputs.items()
        }
    for size in batch_sizes:
        difference, largest = compare(module, read, _inputs(module, size, axes))
        result.difference, result.largest = max(result.difference, difference), max(result.largest, largest)
    if not result.difference <= ALLOWED * result.largest:
        raise ExportError(
            f"net {net.name!r}: the program's outputs are {result.difference:.3g} away from the net's, whose "
            f"largest value is {result.largest:.3g}; nothing is written"
        )
    return buffer.getvalue(), result


def _result(module: CaffeModule, inputs: dict[str, tuple[int, ...]]) -> TorchExport:
    parameters = list(module.parameters())
    return TorchExport(len(module.state_dict()), sum(p.numel() for p in parameters), dict(inputs))


def _inputs(module: CaffeModule, size: int, axes: dict[str, int] | None) -> tuple[Tensor, ...]:
    feeds = random_inputs(module.caffe_net, size, axes)
    return tuple(torch.from_numpy(feeds[name]) for name in module.inputs)


def compare(
    one: Callable[..., Any], other: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> tuple[float, float]:
    """The largest absolute difference of two modules' outputs, and the largest absolute value of the first.

    The difference is infinite where one is not finite, or where shapes or the outputs' number differ.
    """
    with torch.no_grad():
        left, right = (outputs_of(module(*inputs)) for module in (one, other))
    if [value.shape for value in left] != [value.shape for value in right]:
        return float("inf"), 0.0
    difference = largest = 0.0
    for a, b in zip(left, right, strict=True):
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf"), 0.0
        if a.numel():
            difference = max(difference, float((a.double() - b.double()).abs().max()))
            largest = max(largest, float(a.double().abs().max()))
    return difference, largest


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors that a module has returned: one, several, or a dict of them."""
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result
    return [value for value in values if isinstance(value, Tensor)]
