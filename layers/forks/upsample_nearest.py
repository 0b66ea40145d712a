"""Upsample of YOLO: each pixel becomes scale x scale pixels.

bottom[0]  (N, C, H, W)
top[0]     (N, C, H scale, W scale)

YOLO (eric612/MobileNet-YOLO): upsample_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.prototxt import LayerParameter


class NearestUpsample(Layer):
    num_bottoms = num_tops = 1
    in_place = False
    reads = ("upsample_param",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.scale: int = param.upsample_param.scale if param.upsample_param.HasField("scale") else 1
        if self.scale < 1:
            raise self.error(f"upsample_param.scale must be at least 1; got {self.scale}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes, (N, C, H, W); got {shape}")
        return [(*shape[:2], shape[2] * self.scale, shape[3] * self.scale)]

    def forward(self, x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        wide = x[:, :, :, None, :, None].expand(num, channels, height, self.scale, width, self.scale)
        return wide.reshape(num, channels, height * self.scale, width * self.scale)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scales = graph.constant(np.array([1, 1, self.scale, self.scale], np.float32))
        graph.node(
            "Resize",
            [bottoms[0], "", scales],
            tops,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
