"""AnnotatedData, and the fields of transform_param that SSD added."""

from case_types import Case, Change, within

from imae.layers.data.base_data import OF_LABEL_IMAGES
from imae.layers.forks.annotated_data import KNOWN
from imae.prototxt import LayerParameter

SIZE = {"transform_param.resize_param.height": 5, "transform_param.resize_param.width": 8}
PADDED = {**SIZE, "transform_param.resize_param.resize_mode": "FIT_LARGE_SIZE_AND_PAD"}
SALT = {
    "transform_param.noise_param.saltpepper": True,
    "transform_param.noise_param.saltpepper_param.fraction": 0.5,
    "transform_param.noise_param.saltpepper_param.value": [0],
}
# An encoded image, for which alone the fork has these fields.
OF_DATA = {"data_param.source": "colour_db"}
# Fields that do nothing where there are no boxes, or nowhere.
IDLE = Change([], leftover=True)
IMAGES = within("transform_param", {
    "crop_h": Change([3]), "crop_w": Change([3]),
    **within("resize_param", {
        "prob": Change([0.5]),
        "resize_mode": Change(["FIT_SMALL_SIZE", "FIT_LARGE_SIZE_AND_PAD"]),
        "height": Change([7]),
        "width": Change([7]),
        "pad_mode": Change(["MIRRORED", "REPEAT_NEAREST"]),
        "pad_value": Change([[90], [90, 80, 70]]),
        "interp_mode": Change([["NEAREST"], ["AREA"], ["CUBIC"], ["LANCZOS4"]]),
    }),
    **within("noise_param", {
        "jpeg": Change([20]),
        "saltpepper": Change([True]),
        "saltpepper_param.fraction": Change([0.9]),
        "saltpepper_param.value": Change([[200], [200, 100, 50]]),
        "convert_to_lab": Change([True], refusal="convert_to_lab makes real numbers"),
    }),
})  # fmt: skip
GIVEN = {
    "crop_h": {"transform_param.crop_w": 4, "transform_param.mirror": True},
    "crop_w": {"transform_param.crop_h": 4, "transform_param.mirror": True},
    "pad_mode": PADDED,
    "pad_value": PADDED,
    **dict.fromkeys(("prob", "resize_mode", "height", "width", "interp_mode"), SIZE),
    **dict.fromkeys(("saltpepper", "fraction", "value"), SALT),
}


def images(type_name: str, always: dict[str, object]) -> dict[str, Change]:
    """The changes of a type; `always`: fields that are set in all of them."""
    changes = {}
    for path, change in IMAGES.items():
        given = {**always, **GIVEN.get(path.rpartition(".")[2], {})}
        if path.endswith("noise_param.saltpepper"):
            given.pop("transform_param.noise_param.saltpepper")
        idle = path.endswith(".prob")
        changes[f"{type_name} {path}"] = change._replace(given=given, leftover=idle)
    for field in FLAGS:
        path = f"transform_param.noise_param.{field}"
        changes[f"{type_name} {path}"] = Change([True], always)
    changes[f"{type_name} transform_param.noise_param.prob"] = Change([0.5], always, leftover=True)
    return changes


FLAGS = ("hist_eq", "inverse", "decolorize", "gauss_blur", "posterize", "erode", "clahe", "convert_to_hsv")
WITHOUT_BOXES = (
    "distort_param", "expand_param", "emit_constraint",
    "resize_param.height_scale", "resize_param.width_scale",
)  # fmt: skip
NOT_IN_WINDOWS = ("crop_h", "crop_w", "resize_param", "noise_param", *WITHOUT_BOXES[:3])
SAMPLER = within("annotated_data_param.batch_sampler", {"x": Change([], {
    "sampler.min_scale": 0.5, "sampler.max_scale": 0.6, "max_sample": 1, "max_trials": 20,
})})["annotated_data_param.batch_sampler.x"].given  # fmt: skip
SMALL = {
    **SIZE,
    "transform_param.resize_param.resize_mode": "FIT_SMALL_SIZE",
    "data_param.batch_size": 1,
    "transform_param.resize_param.height_scale": 3,
    "transform_param.resize_param.width_scale": 3,
}

CASES = {
    "AnnotatedData": Case(
        'top: "data" top: "label" phase: TRAIN data_param { source: "boxes_db" batch_size: 2 backend: LMDB } '
        "transform_param { resize_param { height: 20 width: 24 } }"
    ),
}
SHARED = {"AnnotatedData": "data_param data_order_param transform_param"}
CHANGES = {
    **images("Data", OF_DATA),
    **images("ImageData", {}),
    **images("AnnotatedData", {}),
    **{f"Data transform_param.{path}": IDLE._replace(given={**OF_DATA, **SIZE}) for path in WITHOUT_BOXES},
    **{f"ImageData transform_param.{path}": IDLE._replace(given=SIZE) for path in WITHOUT_BOXES},
    **{f"WindowData transform_param.{path}": IDLE for path in NOT_IN_WINDOWS},
    **{
        f"AnnotatedData {name}.{field}": Change([], refusal=f"{name}.{field} is of another fork than SSD's")
        for name, known in KNOWN.items()
        for field in set(getattr(LayerParameter(), name).DESCRIPTOR.fields_by_name) - set(known.split())
        if field not in OF_LABEL_IMAGES
    },
    **{f"AnnotatedData {path}": change for path, change in {
        **within("data_param", {
            "source": Change(["other_boxes_db"]),
            "backend": Change(["LEVELDB"], refusal="Failed to open leveldb boxes_db"),
            "rand_skip": Change([1], leftover=True),
        }),
        **within("transform_param", {
            "mean_file": Change(["mean"], {"resize_param.height": 9, "resize_param.width": 11}),
            "exclude_last_crop": Change([True], {"crop_size": 8}, "exclude_last_crop is for plain crops"),
            **within("distort_param", {
                "brightness_prob": Change([1], {"brightness_delta": 60}),
                "brightness_delta": Change([90], {"brightness_prob": 1}),
                "contrast_prob": Change([1], {"contrast_lower": 0.2, "contrast_upper": 0.5}),
                "contrast_lower": Change([0.1], {"contrast_prob": 1, "contrast_upper": 0.5}),
                "contrast_upper": Change([0.9], {"contrast_prob": 1, "contrast_upper": 0.5}),
                "hue_prob": Change([1], {"hue_delta": 50}),
                "hue_delta": Change([90], {"hue_prob": 1}),
                "saturation_prob": Change([1], {"saturation_lower": 0.2, "saturation_upper": 0.5}),
                "saturation_lower": Change([0.1], {"saturation_prob": 1, "saturation_upper": 0.5}),
                "saturation_upper": Change([0.9], {"saturation_prob": 1, "saturation_upper": 0.5}),
                "random_order_prob": Change([1]),
            }),
            **within("expand_param", {
                "prob": Change([0], {"max_expand_ratio": 3}),
                "max_expand_ratio": Change([2], {"max_expand_ratio": 3}),
            }),
        }),
        "transform_param.force_color": Change([True], {"data_param.source": "gray_boxes_db"}),
        "transform_param.resize_param.resize_mode": Change(
            ["FIT_SMALL_SIZE", "FIT_LARGE_SIZE_AND_PAD"], {**SIZE, "data_param.batch_size": 1}
        ),
        "transform_param.resize_param.height_scale": Change([2], SMALL),
        "transform_param.resize_param.width_scale": Change([2], SMALL),
        "transform_param.emit_constraint.emit_type": Change(
            ["MIN_OVERLAP"], {**SAMPLER, "transform_param.emit_constraint.emit_overlap": 0.9}
        ),
        "transform_param.emit_constraint.emit_overlap": Change(
            [0.99], {**SAMPLER, "transform_param.emit_constraint.emit_type": "MIN_OVERLAP"}
        ),
        "annotated_data_param.anno_type": Change(
            ["BBOX"], {"data_param.source": "untyped_boxes_db"}, "Some datum misses AnnotationType."
        ),
        **{
            f"annotated_data_param.batch_sampler.{field}": Change([value], SAMPLER)
            for field, value in {
                "use_original_image": False,
                "sampler.min_scale": 0.3,
                "sampler.max_scale": 0.9,
                "sampler.min_aspect_ratio": 0.5,
                "sampler.max_aspect_ratio": 2,
                "sample_constraint.min_jaccard_overlap": 0.5,
                "sample_constraint.max_jaccard_overlap": 0.1,
                "sample_constraint.min_sample_coverage": 0.8,
                "sample_constraint.max_sample_coverage": 0.1,
                "sample_constraint.min_object_coverage": 0.9,
                "sample_constraint.max_object_coverage": 0.2,
                "max_sample": 3,
            }.items()
        },
        "annotated_data_param.batch_sampler.max_trials": Change(
            [1], {**SAMPLER, "annotated_data_param.batch_sampler.sample_constraint.min_jaccard_overlap": 0.5}
        ),
    }.items()},
}  # fmt: skip
ACCEPTED = {
    "annotated_data_param.label_map_file": "the fork keeps the name and never opens the file",
}
