"""Layers and fields of SegNet, DeepLab, PSPNet and CaffeMex, and the pooling that many forks share."""

from case_types import Case, Change, within
from single_layer import normal

X = normal(2, 3, 4, 6)
BY_SIZE = {"zoom_factor": None, "height": 3, "width": 4}

SCALED = "scale_filler { type: 'uniform' } shift_filler { type: 'uniform' }"
SLOPED = SCALED.replace("scale", "slope").replace("shift", "bias")
OTHER_BN = Change([], refusal="three layers are called BN, and none has all these fields of bn_param")


def others_of(key: str, fields: str) -> dict[str, Change]:
    """Fields of other layers that are called BN."""
    return {f"{key} bn_param.{field}": OTHER_BN for field in fields.split()}


CASES = {
    "BN": Case(f"phase: TRAIN bn_param {{ {SLOPED} }}", (X,)),
    "BN:SegNet": Case(f"phase: TRAIN bn_param {{ {SCALED} }}", (X,)),
    "BN:CaffeMex": Case(f"phase: TRAIN bn_param {{ {SCALED} decay: 0.9 }}", (X,), ()),
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
    **others_of("BN", "scale_filler shift_filler bn_mode var_eps moving_average decay sync_forward"),
    **others_of("BN:SegNet", "slope_filler bias_filler momentum eps frozen engine"),
    **others_of("BN:CaffeMex", "slope_filler bias_filler momentum eps frozen engine bn_mode"),
    "BN:CaffeMex bn_param.moving_average": Change([False], {"phase": "TEST"}),
}  # fmt: skip
ACCEPTED = {
    "BN:CaffeMex bn_param.sync_forward": "there is one rank",
}
