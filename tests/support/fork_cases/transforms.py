"""Fields that Intel's and NVIDIA's forks added to messages of Caffe's own layers."""

from case_types import Change, within

CROP = {"crop_size": 5}
INTEL = {**CROP, "random_resize_param.min_size": 6, "random_resize_param.max_size": 6}
ASPECT = {**CROP, "random_aspect_ratio_param.min_area_ratio": 0.5}
NVIDIA = {**CROP, "img_rand_resize_lower": 6, "img_rand_resize_upper": 6}
RATIO = {**NVIDIA, "rand_resize_ratio_lower": 1.25, "rand_resize_ratio_upper": 1.25}
TALL = {**NVIDIA, "vertical_stretch_lower": 1.25, "vertical_stretch_upper": 1.25}
WIDE = {**NVIDIA, "horizontal_stretch_lower": 1.25, "horizontal_stretch_upper": 1.25}
UP = {**CROP, "img_rand_resize_lower": 12, "img_rand_resize_upper": 12, "allow_upscale": True}
ONLY_INTERP = "its resize_param may have one interp_mode and resize_mode: WARP, nothing else"


def resize_param(given: dict[str, object]) -> dict[str, Change]:
    """The fields of a resize_param."""
    names = ("prob", "height", "width", "height_scale", "width_scale", "pad_mode", "pad_value")
    return {
        **{name: Change([], given, ONLY_INTERP) for name in names},
        "resize_mode": Change(["FIT_SMALL_SIZE", "FIT_LARGE_SIZE_AND_PAD"], given, ONLY_INTERP),
        "interp_mode": Change([["NEAREST"], ["CUBIC"], ["AREA"], ["LANCZOS4"]], given),
    }


def nested(message: str, given: dict[str, object]) -> dict[str, Change]:
    """The fields of the resize_param of `message`, among fields of transform_param."""
    return {f"{message}.resize_param.{name}": change for name, change in resize_param(given).items()}


RESIZES = {
    "random_resize_param.min_size": Change([6], {**CROP, "random_resize_param.max_size": 11}),
    "random_resize_param.max_size": Change([10], {**CROP, "random_resize_param.min_size": 6}),
    **nested("random_resize_param", INTEL),
    **{
        f"random_aspect_ratio_param.{name}": Change([value], ASPECT)
        for name, value in (("min_area_ratio", 0.75), ("max_area_ratio", 0.75), ("max_attempt", 0),
                            ("aspect_ratio_change", 0.75))
    },
    **nested("random_aspect_ratio_param", ASPECT),
    "img_rand_resize_lower": Change([5], NVIDIA),
    "img_rand_resize_upper": Change([8], NVIDIA),
    "rand_resize_ratio_lower": Change([1.5], RATIO),
    "rand_resize_ratio_upper": Change([1.5], RATIO),
    "vertical_stretch_lower": Change([1.5], TALL),
    "vertical_stretch_upper": Change([1.5], TALL),
    "horizontal_stretch_lower": Change([1.5], WIDE),
    "horizontal_stretch_upper": Change([1.5], WIDE),
    "interpolation_algo_down": Change(["INTER_LINEAR", "INTER_CUBIC", "INTER_AREA"], NVIDIA),
    "interpolation_algo_up": Change(["INTER_NEAREST", "INTER_LINEAR"], UP),
    "allow_upscale": Change([False], UP),
}  # fmt: skip
NO_WINDOWS = "has no effect here, where windows are warped"

SHARED = {"SoftmaxWithLoss": "loss_param.label_smoothing loss_param.nvidia_label_smoothing"}
CHANGES = {
    "loss_param.label_smoothing": Change([0.25]),
    "batch_norm_param.filler": Change([], leftover=True),
    "batch_norm_param.stats_batch_size": Change([], refusal="would normalise every 1 of the"),
    "loss_param.nvidia_label_smoothing": Change([0.25]),
    "Data data_param.shuffle": Change([True]),
    "Data data_param.cache": Change([True], {"data_param.shuffle": True}),
    "transform_param.pad": Change([], refusal="transform_param.pad, of Intel's fork, would put a border"),
    "transform_param.flow": Change([], leftover=True),
    "transform_param.bgr2rgb": Change([], leftover=True),
    "ImageData transform_param.bgr2rgb": Change([True]),
    **within("transform_param", RESIZES),
    **{
        f"{kind} transform_param.{name}": Change(change.values)
        for kind in ("MemoryData", "DenseImageData", "ImageSegData")
        for name, change in {**RESIZES, **dict.fromkeys(("pad", "flow", "bgr2rgb"), Change([]))}.items()
    },
    **{
        f"WindowData transform_param.{name}": Change(change.values, {}, NO_WINDOWS)
        for name, change in {**RESIZES, "pad": Change([]), "allow_upscale": Change([True])}.items()
    },
}
ACCEPTED = {"convolution_param.conv_algorithm": "how Intel's library computes the same"}
