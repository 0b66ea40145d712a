"""The inputs and outputs of an ONNX model, as its file has them: element types and shapes."""

from __future__ import annotations

import onnx
from onnx import TensorProto

Shape = list[int | str]  # free axes have names
# NumPy's names, where it has the type.
ELEMENT_TYPES = {
    number: {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    for name, number in TensorProto.DataType.items()
}


def element_type(info: onnx.ValueInfoProto) -> str:
    """float32, uint8, ...; of what is no tensor its kind, such as sequence_type."""
    if not info.type.HasField("tensor_type"):
        return info.type.WhichOneof("value") or "unknown"
    return ELEMENT_TYPES.get(info.type.tensor_type.elem_type, "unknown")


def value_shape(info: onnx.ValueInfoProto) -> Shape | None:
    """The sizes of a value, a free one by its name or as "?"; None where the model does not state them."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim]
