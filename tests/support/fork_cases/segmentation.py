"""Layers and fields of SegNet, DeepLab, PSPNet and CaffeMex, and the pooling that many forks share."""

from case_types import Case, Change, within
from single_layer import normal

X = normal(2, 3, 4, 6)
BY_SIZE = {"zoom_factor": None, "height": 3, "width": 4}

CASES = {
    "Interp": Case("interp_param { zoom_factor: 2 }", (X,)),
}
CHANGES = {
    "pooling_param.ceil_mode": Change([False], {"pooling_param.stride": 4}),
    **within("interp_param", {
        "height": Change([5], BY_SIZE),
        "width": Change([5], BY_SIZE),
        "zoom_factor": Change([3]),
        "shrink_factor": Change([2]),
        "pad_beg": Change([-1]),
        "pad_end": Change([-1]),
    }),
}  # fmt: skip
