"""The operator set of exported ONNX models; without onnx, for the help of commands."""

DEFAULT_OPSET = 17
