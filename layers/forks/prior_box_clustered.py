"""PriorBoxClustered: PriorBox with boxes of given widths and heights.

    box = centre -+ (width, height) / 2, divided by the image's width and height

The sizes are not cut to integers. Fields, bottoms and top are those of PriorBox, in prior_box_param, with
`width` and `height` in place of min_size, max_size, aspect_ratio and flip.

Intel's training toolbox (openvinotoolkit/training_toolbox_caffe): prior_box_clustered_layer.cpp. Differs: as
many heights as widths must be given (without a height the fork reads out of bounds).
"""

from __future__ import annotations

from imae.layers.forks.prior_box import LARGEST, PriorBox
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        for field in ("min_size", "max_size", "aspect_ratio"):
            if getattr(param.prior_box_param, field):
                self.note_leftover(f"prior_box_param.{field}")
        if param.prior_box_param.HasField("flip"):
            self.note_leftover("prior_box_param.flip")

    def box_sizes(self) -> tuple[tuple[float, float], ...]:
        fields = self.param.prior_box_param
        if not fields.width or len(fields.width) != len(fields.height):
            raise self.error(
                f"must provide width, and as many heights; got {len(fields.width)} and {len(fields.height)}"
            )
        if not all(0 < size < LARGEST for size in (*fields.width, *fields.height)):
            raise self.error("width and height must be positive.")
        return tuple(zip(fields.width, fields.height, strict=True))
