"""Layers and fields of SegNet, DeepLab, PSPNet and CaffeMex, and the pooling that many forks share."""

import numpy as np
import torch
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


# Places in a plane of 8 x 12 and of 7 x 11, none of them twice.
PLACES = torch.from_numpy(np.random.default_rng(0).permutation(72)[:24].reshape(4, 6))
MASK = PLACES.float().expand(2, 3, 4, 6)
UNPOOLED = {"upsample_h": 8, "upsample_w": 12}
OTHER_UPSAMPLE = Change([], refusal="with one bottom it is YOLO's, which has no")

RESIZED = {"new_height": 6, "new_width": 6}
CROPPED = {"crop_height": 3, "crop_width": 3}

CROP_3 = {"transform_param.crop_size": 3}
CROP_3_3 = {f"transform_param.{name}": 3 for name in ("crop_height", "crop_width")} | {
    "transform_param.mirror": True
}
NOT_HERE = Change([], refusal="is for ImageSegData alone; remove it")

CASES = {
    "ImageSegData": Case(
        'top: "data" top: "label" phase: TRAIN image_data_param { source: "list" batch_size: 2 }'
    ),
    "DenseImageData": Case(
        'top: "data" top: "label" phase: TRAIN dense_image_data_param { source: "pairs" batch_size: 2 }'
    ),
    "Upsample": Case("", (X, MASK)),
    "Upsample:YOLO": Case("upsample_param { scale: 2 }", (X,)),
    "BN": Case(f"phase: TRAIN bn_param {{ {SLOPED} }}", (X,)),
    "BN:SegNet": Case(f"phase: TRAIN bn_param {{ {SCALED} }}", (X,)),
    "BN:CaffeMex": Case(f"phase: TRAIN bn_param {{ {SCALED} decay: 0.9 }}", (X,), ()),
    "Interp": Case("interp_param { zoom_factor: 2 }", (X,)),
}
SHARED = {
    "ImageSegData": "image_data_param transform_param.scale transform_param.mean_value "
                    "transform_param.mean_file transform_param.mirror transform_param.crop_size "
                    "transform_param.scale_factors transform_param.crop_width transform_param.crop_height "
                    "data_param.prefetch",
    "DenseImageData": "transform_param.scale transform_param.mean_file transform_param.mean_value "
                      "transform_param.mirror transform_param.crop_size data_param.prefetch",
    "SoftmaxWithLoss": "loss_param.weight_by_label_freqs loss_param.class_weighting",
}  # fmt: skip
WEIGHTED = {"loss_param.class_weighting": [1, 2, 3, 0.5, 0.25]}
CHANGES = {
    **dict.fromkeys(("image_data_param.label_type", "image_data_param.ignore_label"), NOT_HERE),
    **within("transform_param", {
        "scale_factors": NOT_HERE._replace(values=[[0.5]]), "crop_width": NOT_HERE, "crop_height": NOT_HERE,
    }),
    "ImageSegData image_data_param.label_type": Change(
        ["NONE", "PIXEL"], {"image_data_param.source": "pairs"}
    ),
    "ImageSegData image_data_param.ignore_label": Change([3], {"image_data_param.label_type": "NONE"}),
    "ImageSegData transform_param.mean_file": Change(["mean"], refusal="does not support mean file"),
    "ImageSegData transform_param.scale_factors": Change([[0.5]], CROP_3),
    "ImageSegData transform_param.crop_width": Change([4], CROP_3_3),
    "ImageSegData transform_param.crop_height": Change([4], CROP_3_3),
    **within("dense_image_data_param", {
        "source": Change(["other_pairs"]),
        "batch_size": Change([3]),
        "rand_skip": Change([2]),
        "new_height": Change([7], RESIZED),
        "new_width": Change([7], RESIZED),
        "mean_file": Change([], leftover=True),
        "root_folder": Change(["sub/"]),
        "crop_height": Change([4], CROPPED),
        "crop_width": Change([4], CROPPED),
        "label_divide_factor": Change([2], RESIZED),
    }),
    "DenseImageData transform_param.mirror": Change([], refusal="Any stochastic transformation will break"),
    "DenseImageData transform_param.crop_size": Change(
        [], refusal="Any stochastic transformation will break"
    ),
    "Dropout dropout_param.sample_weights_test": Change([True], {"phase": "TEST"}),
    "SoftmaxWithLoss loss_param.weight_by_label_freqs": Change([True], WEIGHTED),
    "SoftmaxWithLoss loss_param.class_weighting": Change(
        [[1, 1, 2, 1, 1]], {**WEIGHTED, "loss_param.weight_by_label_freqs": True}
    ),
    "pooling_param.ceil_mode": Change([False], {"pooling_param.stride": 4}),
    **within("interp_param", {
        "height": Change([5], BY_SIZE),
        "width": Change([5], BY_SIZE),
        "zoom_factor": Change([3]),
        "shrink_factor": Change([2]),
        "pad_beg": Change([-1]),
        "pad_end": Change([-1]),
    }),
    **within("upsample_param", {
        "scale": Change([3]),
        "scale_h": Change([3], {"scale_h": 2, "scale_w": 2}),
        "scale_w": Change([3], {"scale_h": 2, "scale_w": 2}),
        "upsample_h": Change([9], UNPOOLED),
        "upsample_w": Change([13], UNPOOLED),
    }),
    **{
        f"Upsample:YOLO upsample_param.{name}": OTHER_UPSAMPLE
        for name in ("scale_h", "scale_w", "pad_out_h", "pad_out_w", "upsample_h", "upsample_w")
    },
    **others_of("BN", "scale_filler shift_filler bn_mode var_eps moving_average decay sync_forward"),
    **others_of("BN:SegNet", "slope_filler bias_filler momentum eps frozen engine"),
    **others_of("BN:CaffeMex", "slope_filler bias_filler momentum eps frozen engine bn_mode"),
    "BN:CaffeMex bn_param.moving_average": Change([False], {"phase": "TEST"}),
}  # fmt: skip
ACCEPTED = {
    "BN:CaffeMex bn_param.sync_forward": "there is one rank",
}
