"""BN: three layers of forks have this name; the fields of bn_param tell which of them is meant.

    SegNet      bn_mode, or scale_filler and shift_filler alone           bn_segnet.py     2 blobs
    CaffeMex    var_eps, decay, moving_average, sync_forward, besides     bn_caffemex.py   4 blobs
                scale_filler and shift_filler; these alone where more than two `param` or `blobs` are given
    TSN         slope_filler, bias_filler, momentum, eps, frozen,         bn_tsn.py        4 blobs
                engine, or no field at all; also PSPNet's and caffe-windows'

Fields of several of them are an error.
"""

from imae.files.errors import LayerError
from imae.layers.forks.bn_caffemex import CaffeMexBN
from imae.layers.forks.bn_segnet import SegNetBN
from imae.layers.forks.bn_tsn import TSNBN
from imae.layers.layer import Layer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

# In the order in which the first that has all fields is meant.
VARIANTS: tuple[tuple[str, type[Layer], str], ...] = (
    ("TSN", TSNBN, "slope_filler bias_filler momentum eps frozen engine"),
    ("SegNet", SegNetBN, "scale_filler shift_filler bn_mode"),
    ("CaffeMex", CaffeMexBN, "scale_filler shift_filler var_eps moving_average decay sync_forward"),
)


@register_layer("BN")
class BN(Layer):
    """Stands for the three; `variant` gives the class that makes the layer."""

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        fields = [field.name for field, _ in param.bn_param.ListFields()]
        variants = [made_by for _, made_by, names in VARIANTS if set(fields) <= set(names.split())]
        if not variants:
            owners = [
                f"{field} ({' or '.join(fork for fork, _, names in VARIANTS if field in names.split())})"
                for field in fields
            ]
            raise LayerError(
                param,
                "three layers are called BN, and none has all these fields of bn_param: "
                f"{', '.join(owners)}; keep those of one",
            )
        # SegNet's has two blobs.
        has_four = max(len(param.param), len(param.blobs)) > 2
        return CaffeMexBN if has_four and variants[0] is SegNetBN and len(variants) > 1 else variants[0]
