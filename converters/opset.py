"""The operator sets of exported ONNX models; without onnx, for the help of commands."""

DEFAULT_OPSET = 17
OLDEST_OPSET, NEWEST_OPSET = 13, 22
