"""Interp: bilinear interpolation to another size; the corner pixels stay at the corners.

    top row i is read at row i (H - 1) / (H' - 1) of the cropped bottom, 0 where H' is 1; columns likewise

bottom[0]  (N, C, H, W), of which -pad_beg rows and columns at the start and -pad_end at the end are cropped
top[0]     (N, C, H', W'):
               shrink_factor s alone      (H - 1) / s + 1, cut to an integer
               zoom_factor z alone        H + (H - 1) (z - 1)
               height and width           these; they are passed over beside one factor alone
               both factors               shrunk first, then zoomed

A bottom of fewer axes has further axes of 1; the top always has four.

DeepLab (cdmh/deeplab-public-ver2), PSPNet (hszhao/PSPNet): interp_layer.cpp, util/interp.cpp. Differs: in
double precision the places are of double precision, too (the forks': single).
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import integers
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

MAX_SIZE = 2**31 - 1


@register_layer("Interp")
class Interp(Layer):
    num_bottoms = num_tops = 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        interp = param.interp_param
        for name in ("pad_beg", "pad_end"):
            if (pad := getattr(interp, name)) > 0:
                raise self.error(f"Only supports non-pos padding (cropping) for now; got {name} {pad}")
        shrinks, zooms = interp.HasField("shrink_factor"), interp.HasField("zoom_factor")
        self.by_size = shrinks == zooms and interp.HasField("height") and interp.HasField("width")
        if not (self.by_size or shrinks or zooms):
            raise self.error("no size: give height and width, zoom_factor, or shrink_factor")
        for name in ("shrink_factor", "zoom_factor"):
            if (factor := getattr(interp, name)) < 1 and not self.by_size:
                raise self.error(f"{name} must be positive; got {factor}")
        for name in ("shrink_factor", "zoom_factor") if self.by_size else ("height", "width"):
            if interp.HasField(name):
                self.note_leftover(f"interp_param.{name}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = self.legacy_shape(bottom_shapes[0])
        interp = self.param.interp_param
        cropped = [size + interp.pad_beg + interp.pad_end for size in shape[2:]]
        if min(cropped) < 1:
            raise self.error(f"height and width should be positive; {cropped} are left of bottom {shape}")
        if self.by_size:
            sizes = [interp.height, interp.width]
        else:
            shrunk = [(size - 1) // interp.shrink_factor + 1 for size in cropped]
            sizes = [size + (size - 1) * (interp.zoom_factor - 1) for size in shrunk]
        if not 1 <= min(sizes) <= max(sizes) <= MAX_SIZE:
            raise self.error(f"height and width should be positive and fit into 32 bits; got {sizes}")
        return [(*shape[:2], *sizes)]

    def forward(self, x: Tensor) -> Tensor:
        interp = self.param.interp_param
        shape = self.top_shapes([tuple(x.shape)])[0]
        x = x.reshape(self.legacy_shape(tuple(x.shape)))
        if interp.pad_beg or interp.pad_end:
            x = F.pad(x, (interp.pad_beg, interp.pad_end) * 2)
        if x.shape[2:] == shape[2:]:
            return x.clone()
        if not x.numel():
            return x.reshape(shape)  # without images or channels
        return F.interpolate(x, shape[2:], mode="bilinear", align_corners=True)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        interp = self.param.interp_param
        shape = graph.shape(bottoms[0])
        value = bottoms[0]
        if len(shape) < 4:
            axes = [0] * len(shape) + [1] * (4 - len(shape))
            value = graph.node("Reshape", [value, graph.constant(np.array(axes))])
        if interp.pad_beg or interp.pad_end:
            four = self.legacy_shape(shape)
            starts, ends = [-interp.pad_beg] * 2, [size + interp.pad_end for size in four[2:]]
            if graph.free_axes(bottoms[0]):  # counted from the end, of which the largest number stands beyond
                ends = [interp.pad_end or np.iinfo(np.int64).max] * 2
            places = [graph.constant(np.array(numbers)) for numbers in (starts, ends, [2, 3])]
            value = graph.node("Slice", [value, *places])
        if graph.free_axes(tops[0]):
            sizes = self._sizes_to_onnx(graph, value)
        else:
            sizes = graph.constant(np.array(graph.shape(tops[0])[2:]))
        options = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        # All four sizes: Resize's attribute `axes`, from opset 18 on, is more than OpenCV 5.0.0 reads.
        start = [graph.constant(np.array([number])) for number in (0, 2)]
        batch = graph.node("Slice", [graph.node("Shape", [value]), *start])
        graph.node("Resize", [value, "", "", graph.node("Concat", [batch, sizes], axis=0)], tops, **options)

    def _sizes_to_onnx(self, graph: OnnxGraph, cropped: str) -> str:
        """The top's height and width by the factors, from a cropped bottom of free sizes."""
        interp = self.param.interp_param
        one = integers(graph, 1)
        value = graph.node("Gather", [graph.node("Shape", [cropped]), integers(graph, 2, 3)])
        for divides, factor in ((True, interp.shrink_factor), (False, interp.zoom_factor)):
            if factor != 1:  # (size - 1) / s + 1, or (size - 1) z + 1
                steps = [graph.node("Sub", [value, one]), integers(graph, factor)]
                value = graph.node("Add", [graph.node("Div" if divides else "Mul", steps), one])
        return value
