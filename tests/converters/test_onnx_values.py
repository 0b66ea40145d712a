"""The element types and shapes of an ONNX model's inputs and outputs, as pages and cards show them."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from imae.converters.onnx_values import element_type, value_shape


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.UINT8, "uint8"),
        (1000, "unknown"),
    ],
)
def test_element_types_have_numpys_names(number: int, name: str) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    info.type.tensor_type.elem_type = number
    assert element_type(info) == name


def test_shapes() -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None, 0])
    assert value_shape(info) == ["batch", 3, "?", "?"]
    assert value_shape(helper.make_tensor_value_info("x", TensorProto.FLOAT, [])) == []
    assert value_shape(helper.make_tensor_value_info("x", TensorProto.FLOAT, None)) is None


def test_what_is_no_tensor() -> None:
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    assert (element_type(info), value_shape(info)) == ("sequence_type", None)
