"""Upsample: two layers of forks have this name; the number of bottoms tells which of them is meant.

two bottoms   SegNet's unpooling, by the mask of a Pooling layer    upsample_mask.py
one bottom    YOLO's nearest neighbour                              upsample_nearest.py
"""

from imae.files.errors import LayerError
from imae.layers.forks.upsample_mask import MaskUpsample
from imae.layers.forks.upsample_nearest import NearestUpsample
from imae.layers.layer import Layer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Upsample")
class Upsample(Layer):
    """Stands for the two; `variant` gives the class that makes the layer."""

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        count = len(param.bottom)
        if count not in (1, 2):
            raise LayerError(
                param,
                "two layers are called Upsample: SegNet's has two bottoms, data and the mask of a Pooling "
                f"layer, YOLO's has one; got {count}",
            )
        if count == 2:
            return MaskUpsample
        others = [field.name for field, _ in param.upsample_param.ListFields() if field.name != "scale"]
        if others:
            raise LayerError(
                param,
                "two layers are called Upsample: with one bottom it is YOLO's, which has no "
                f"{', '.join(others)}; SegNet's needs a second bottom, the mask of a Pooling layer",
            )
        return NearestUpsample
