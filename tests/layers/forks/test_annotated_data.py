"""AnnotatedData and SSD's transform fields. Nothing is recorded: slow_ssd.py is what they must equal."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from layer_cases import put
from numpy.typing import NDArray
from single_layer import refused
from slow_ssd import F, SlowSSD, Stream

from imae.files.errors import DataError, ImaeError, SnapshotError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.c_rand import GlibcRand
from imae.layers.data.data_resources import DataResources
from imae.layers.data.image_transform import NO_POINTS, Plan, add_noise
from imae.layers.data.transformer import DataTransformer
from imae.layers.forks.annotated_data import AnnotatedData
from imae.layers.forks.annotations import Box
from imae.layers.forks.batch_sampler import Objects, meets
from imae.layers.forks.distortion import distorted, draw_changes
from imae.layers.layer import Layer
from imae.layers.ranks import ALONE, Ranks
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.prototxt import TEST, Datum, LayerParameter, TransformationParameter
from imae.prototxt.caffe_pb2 import AnnotatedDatum, DistortionParameter, NoiseParameter, SampleConstraint

SEED = 1701
RNG = np.random.default_rng(0)


def record(index: int, *, raw: bool = False, size: tuple[int, int] | None = None) -> AnnotatedDatum:
    """An image of smooth colours and some boxes; the third record has none."""
    height, width = size or (40 + 7 * index, 60 - 5 * index)
    small = np.random.default_rng(index).integers(0, 256, (5, 6, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    made = AnnotatedDatum(type=AnnotatedDatum.BBOX)
    datum = made.datum
    datum.channels, datum.height, datum.width, datum.label = 3, height, width, index
    datum.encoded = not raw
    datum.data = image.transpose(2, 0, 1).tobytes() if raw else bytes(cv2.imencode(".png", image)[1])
    rng = np.random.default_rng(100 + index)
    for group in range(0 if index == 2 else 2):
        annotations = made.annotation_group.add(group_label=3 * group + 1)
        for instance in range(1 + group):
            x, y, w, h = rng.random(4) * [0.6, 0.6, 0.35, 0.35] + [0, 0, 0.05, 0.05]
            box = annotations.annotation.add(instance_id=instance).bbox
            box.xmin, box.ymin, box.xmax, box.ymax, box.difficult = x, y, x + w, y + h, instance == 1
    return made


RECORDS = [record(index) for index in range(4)]


def write_db(path: Path, records: list[AnnotatedDatum] = RECORDS) -> str:
    with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for index, made in enumerate(records):
            transaction.put(b"%08d" % index, made.SerializeToString())
    return str(path)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_db(tmp_path_factory.mktemp("annotated") / "db")


def param(source: str, transform: str, annotated: str = "", more: str = "", batch: int = 3) -> LayerParameter:
    return text_format.Parse(
        f"""name: "data" type: "AnnotatedData" top: "data" top: "label" phase: TRAIN
        data_param {{ source: "{source}" batch_size: {batch} backend: LMDB prefetch: 2 }}
        transform_param {{ {transform} }} annotated_data_param {{ {annotated} }} {more}""",
        LayerParameter(),
    )


def build(layer: LayerParameter, ranks: Ranks = ALONE, resources: DataResources | None = None) -> Layer:
    made = class_of(layer)(layer)
    shapes = made.build([], Run(CaffeRandom(SEED), ranks, resources))
    assert len(shapes) == len(layer.top)
    return made


def batches(layer: Layer, count: int) -> list[tuple[torch.Tensor, ...]]:
    got = [layer.next_batch() for _ in range(count)]
    layer.close()
    return got


WARP = "resize_param { prob: 1 resize_mode: WARP height: 30 width: 36 }"
INTERPOLATED = """resize_param { height: 30 width: 36
    interp_mode: LINEAR interp_mode: AREA interp_mode: NEAREST interp_mode: CUBIC interp_mode: LANCZOS4 }"""
DISTORT = """distort_param { brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 0.5 contrast_lower: 0.5
    contrast_upper: 1.5 hue_prob: 0.5 hue_delta: 18 saturation_prob: 0.5 saturation_lower: 0.5
    saturation_upper: 1.5 random_order_prob: 0 }"""
EXPAND = "expand_param { prob: 0.5 max_expand_ratio: 3 }"
MEANS = "mean_value: 104 mean_value: 117 mean_value: 122.6"
MOST = "max_sample: 2 max_trials: 20"
RANGE = "min_scale: 0.3 max_scale: 1 min_aspect_ratio: 0.5 max_aspect_ratio: 2"
SAMPLERS = "batch_sampler { max_sample: 1 max_trials: 1 }" + "".join(
    f"batch_sampler {{ sampler {{ {RANGE} }} sample_constraint {{ {constraint} }} {MOST} }} "
    for constraint in ("min_jaccard_overlap: 0.1", "min_jaccard_overlap: 0.5", "max_jaccard_overlap: 0.2",
                       "min_object_coverage: 0.9", "min_sample_coverage: 0.1 max_sample_coverage: 0.4",
                       "min_jaccard_overlap: 0.2 min_object_coverage: 0.99")
)  # fmt: skip
KINDS = {
    "plain": (WARP, ""),
    "as SSD trains": (
        f"mirror: true {MEANS} {INTERPOLATED} {DISTORT} {EXPAND} emit_constraint {{ emit_type: CENTER }}",
        SAMPLERS,
    ),
    "windows, kept by overlap": (
        f"{WARP} scale: 0.5 {EXPAND} emit_constraint {{ emit_type: MIN_OVERLAP emit_overlap: 0.3 }}",
        SAMPLERS,
    ),
    "crop, mirror, salt": (
        f"mirror: true crop_size: 20 mean_value: 3.5 {INTERPOLATED} noise_param {{ saltpepper: true "
        "saltpepper_param { fraction: 0.1 value: 9 value: 99 value: 199 } }",
        SAMPLERS,
    ),
    "crop of two sides": (f"mirror: true crop_h: 11 crop_w: 35 {WARP}", SAMPLERS),
    "crop of one side": (f"crop_h: 11 {WARP}", SAMPLERS),
    "padded at the sides": (
        "resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 30 width: 90 pad_value: 3.5 }",
        SAMPLERS,
    ),
    "padded above": (
        "mirror: true resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 90 width: 30 "
        "pad_mode: MIRRORED }",
        "",
    ),
    "padded by the border, kept by overlap": (
        "resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 64 width: 64 pad_mode: REPEAT_NEAREST } "
        f"{EXPAND} emit_constraint {{ emit_type: MIN_OVERLAP emit_overlap: 0.4 }}",
        SAMPLERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_slow_implementation(kind: str, db: str) -> None:
    layer = param(db, *KINDS[kind])
    slow = SlowSSD(layer, RECORDS, SEED)
    for data, label in batches(build(layer), 12):
        want, rows = slow.batch()
        assert data.shape == want.shape
        np.testing.assert_array_equal(label.numpy(), rows)
        np.testing.assert_array_equal(data.numpy(), want)


@pytest.mark.parametrize("scales", ["", "height_scale: 25 width_scale: 20"])
def test_one_image_of_any_size(scales: str, db: str) -> None:
    """FIT_SMALL_SIZE: the batch has the image's own aspect."""
    layer = param(
        db,
        f"mirror: true resize_param {{ resize_mode: FIT_SMALL_SIZE height: 30 width: 30 {scales} }}",
        SAMPLERS,
        batch=1,
    )
    slow, shapes = SlowSSD(layer, RECORDS, SEED), set()
    for data, label in batches(build(layer), 12):
        want, rows = slow.batch()
        shapes.add(tuple(data.shape))
        np.testing.assert_array_equal(label.numpy(), rows)
        np.testing.assert_array_equal(data.numpy(), want)
    assert len(shapes) > 3


def test_raw_records(tmp_path: Path) -> None:
    """They are cut and expanded, but not resized: only what is cut to one size in the end works."""
    records = [record(index, raw=True, size=(40, 44)) for index in range(4)]
    source = write_db(tmp_path / "db", records)
    layer = param(source, f"mirror: true crop_size: 12 {EXPAND} {DISTORT}", SAMPLERS)
    slow = SlowSSD(layer, records, SEED)
    for data, label in batches(build(layer), 6):
        want, rows = slow.batch()
        np.testing.assert_array_equal(label.numpy(), rows)
        np.testing.assert_array_equal(data.numpy(), want)
    with pytest.raises(DataError, match="a raw image of 3 x 40 x 44 for a top of 3 x 30 x 36"):
        build(param(source, WARP)).next_batch()
    with pytest.raises(DataError, match="noise_param is for encoded images"):
        build(param(source, "noise_param { inverse: true }")).next_batch()


@pytest.mark.parametrize("raw", [False, True])
def test_a_mean_image_is_mirrored_with_raw_images_alone(raw: bool, tmp_path: Path) -> None:
    """The fork subtracts it where a pixel of an encoded image ends, but where one of a raw image begins."""
    records = [record(index, raw=raw, size=(8, 9)) for index in range(4)]
    source = write_db(tmp_path / "db", records)
    mean = RNG.random((3, 8, 9), np.float32)
    (tmp_path / "mean").write_bytes(blob_from_array(mean[None]).SerializeToString())
    layer = param(source, "mirror: true", batch=4)
    ((plain, _),) = batches(build(layer), 1)
    layer.transform_param.mean_file = str(tmp_path / "mean")
    ((got, _),) = batches(build(layer), 1)
    layer.transform_param.ClearField("mean_file")
    layer.transform_param.mirror = False
    ((straight, _),) = batches(build(layer), 1)
    flips = [not torch.equal(a, b) for a, b in zip(plain, straight, strict=True)]
    assert True in flips and False in flips
    for values, pixels, flip in zip(got, plain, flips, strict=True):
        want = pixels.numpy() - (mean[:, :, ::-1] if raw and flip else mean)
        np.testing.assert_array_equal(values.numpy(), want)
    layer.transform_param.mean_file = str(tmp_path / "mean")
    layer.transform_param.crop_size = 5
    if not raw:
        with pytest.raises(DataError, match="where the fork reads outside of mean_file"):
            build(layer)
    layer.transform_param.crop_size = 0
    layer.transform_param.resize_param.height = layer.transform_param.resize_param.width = 4
    with pytest.raises(DataError, match=r"raw image|mean_file is of 3 x 8 x 9, the image of"):
        build(layer).next_batch()


def test_nothing_is_drawn_where_there_is_no_stream() -> None:
    """As in `imae run`, which prepares images by a net's transform_param."""

    def plan(text: str) -> Plan:
        transform = text_format.Parse(
            f"resize_param {{ height: 4 width: 5 {text} }}", TransformationParameter()
        )
        return DataTransformer(transform, TEST, "it").images.plan((3, 8, 9), None, None)  # type: ignore[union-attr]

    assert plan("interp_mode: AREA").interpolation == cv2.INTER_AREA
    with pytest.raises(DataError, match="of several interp_mode one is drawn at random"):
        plan("interp_mode: AREA interp_mode: CUBIC")
    salt = "saltpepper: true saltpepper_param { fraction: 0.5 value: 1 }"
    with pytest.raises(DataError, match="saltpepper draws at random; leave it out here"):
        plan(f"}} noise_param {{ {salt}")


def test_a_sampled_window_has_the_numbers_of_a_calculation_by_hand(tmp_path: Path) -> None:
    """An image of 8 x 16; the window takes its left half at most, the box moves with it."""
    made = AnnotatedDatum(type=AnnotatedDatum.BBOX)
    image = np.full((8, 16, 3), 128, np.uint8)
    made.datum.CopyFrom(Datum(channels=3, height=8, width=16, encoded=True))
    made.datum.data = bytes(cv2.imencode(".png", image)[1])
    box = made.annotation_group.add(group_label=5).annotation.add(instance_id=2).bbox
    box.xmin, box.ymin, box.xmax, box.ymax, box.difficult = 0.25, 0.5, 0.75, 1, True
    source = write_db(tmp_path / "db", [made])
    layer = param(source, "crop_h: 4 resize_param { height: 8 width: 16 }", batch=1)
    ((data, label),) = batches(build(layer), 1)
    assert data.shape == (1, 3, 4, 16) and bool((data == 128).all())
    # The upper half of the image is left: the box, which begins there, is not.
    assert label.tolist() == [[[[-1.0] * 8]]]
    layer = param(source, "crop_h: 6 resize_param { height: 8 width: 16 }", batch=1)
    ((_, label),) = batches(build(layer), 1)
    want = [0, 5, 2, 0.25, F(0.5) / F(0.75), 0.75, 1, 1]
    np.testing.assert_array_equal(label.numpy().ravel(), np.array(want, F))


def test_the_first_kind_of_a_constraint_decides() -> None:
    window = Box(*map(F, (0, 0, 0.5, 0.5)))
    same, far, none = Objects([window]), Objects([Box(*map(F, (0.8, 0.8, 1, 1)))]), Objects([])
    both = SampleConstraint(min_jaccard_overlap=0.9, max_object_coverage=0.5)
    assert meets(both, window, same)  # its object coverage is 1, but the Jaccard overlap has passed
    assert not meets(both, window, far)
    assert not meets(SampleConstraint(max_object_coverage=0.5), window, same)
    assert not meets(SampleConstraint(min_jaccard_overlap=0.1), window, none)
    assert meets(SampleConstraint(), window, none)


def test_records_without_annotations_give_their_labels(tmp_path: Path) -> None:
    records = []
    for index in range(3):
        made = AnnotatedDatum(datum=RECORDS[index].datum)
        made.datum.label = 7 + index
        records.append(made)
    layer = build(param(write_db(tmp_path / "db", records), WARP, batch=2))
    first, second = batches(layer, 2)
    assert first[1].shape == (2, 1, 1, 1)
    assert [first[1].flatten().tolist(), second[1].flatten().tolist()] == [[7, 8], [9, 7]]


def test_a_batch_without_boxes_has_one_row(db: str) -> None:
    layer = build(param(db, WARP, batch=1))
    labels = [label for _, label in batches(layer, 4)]
    assert labels[2].shape == (1, 1, 1, 8) and bool((labels[2] == -1).all())
    assert layer.top_shapes([]) == [(1, 3, 30, 36), (1, 1, 3, 8)]


def test_a_leveldb_gives_the_same_batches(db: str, tmp_path: Path) -> None:
    plyvel = pytest.importorskip("plyvel", reason="there is no wheel of plyvel for this Python")
    with plyvel.DB(str(tmp_path / "level"), create_if_missing=True) as database:
        for index, made in enumerate(RECORDS):
            database.put(b"%08d" % index, made.SerializeToString())
    layer = param(db, *KINDS["as SSD trains"])
    want = batches(build(layer), 2)
    layer.data_param.source, layer.data_param.backend = str(tmp_path / "level"), layer.data_param.LEVELDB
    for got, other in zip(batches(build(layer), 2), want, strict=True):
        assert all(map(torch.equal, got, other))


def test_images_alone(db: str) -> None:
    layer = param(db, *KINDS["as SSD trains"])
    both = batches(build(layer), 3)
    del layer.top[1]
    for (data,), (want, _) in zip(batches(build(layer), 3), both, strict=True):
        assert torch.equal(data, want)


def test_type_of_the_layer_counts(db: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    build(param(db, WARP, "anno_type: BBOX")).next_batch()
    assert "type stored in AnnotatedDatum is shadowed." in caplog.messages


def test_it_goes_on_where_it_was(db: str) -> None:
    """With batches that wait, from the middle, without a thread: the same bits."""
    layer = param(db, *KINDS["as SSD trains"])
    layer.transform_param.distort_param.random_order_prob = 0.5
    layer.transform_param.noise_param.saltpepper = True
    put(layer, "transform_param.noise_param.saltpepper_param.value", [255])
    put(layer, "transform_param.noise_param.saltpepper_param.fraction", 0.05)
    whole = batches(build(layer), 8)
    first = build(layer)
    for _ in range(3):
        first.next_batch()
    state = first.get_state()
    first.close()
    layer.data_param.prefetch = 0
    second = build(layer)
    second.set_state(state)
    for want, got in zip(whole[3:], batches(second, 5), strict=True):
        assert all(map(torch.equal, want, got))
    with pytest.raises(SnapshotError, match="it had 9 when the snapshot was made"):
        build(layer).set_state({**state, "records": 9})
    with pytest.raises(SnapshotError, match="rand has 31 words, the snapshot 1"):
        build(layer).set_state({**state, "rand": state["rand"][:1]})


def test_decoding_threads_change_nothing(db: str) -> None:
    layer = param(db, *KINDS["as SSD trains"])
    one = batches(build(layer, resources=DataResources(0, threads=1)), 4)
    for want, got in zip(one, batches(build(layer, resources=DataResources(0, threads=3)), 4), strict=True):
        assert all(map(torch.equal, want, got))


class OneOf(Ranks):
    """A rank that hears of no other."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def broadcast_int(self, value: int) -> int:
        return value


def test_ranks_share_the_records(tmp_path: Path) -> None:
    records = [record(0, size=(20, 20)) for _ in range(6)]
    for index, made in enumerate(records):
        made.annotation_group[0].group_label = 10 + index
    source = write_db(tmp_path / "db", records)
    seen = []
    for rank in range(2):
        layer = build(param(source, WARP, batch=2), OneOf(rank, 2))
        groups = [label[0, 0, label[0, 0, :, 1] >= 10, 1] for _, label in batches(layer, 2)]
        seen.append(torch.cat(groups).tolist())
    assert seen == [[10, 12, 14, 10], [11, 13, 15, 11]]


def test_the_order_of_records_may_be_random(db: str) -> None:
    layer = param(db, WARP, more="data_order_param { order: SHUFFLED }", batch=4)
    (plain,), (shuffled,) = batches(build(param(db, WARP, batch=4)), 1), batches(build(layer), 1)
    rows = {tuple(image.flatten().tolist()) for image in shuffled[0]}
    assert rows == {tuple(image.flatten().tolist()) for image in plain[0]}


def test_channels_are_shuffled_as_by_the_c_library() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    random, rand, again = CaffeRandom(1), GlibcRand(1), GlibcRand(1)
    changes = draw_changes(DistortionParameter(random_order_prob=1), random, rand)
    order = [0, 1, 2]
    for i in (1, 2):
        j = again.draw() % (i + 1)
        order[i], order[j] = order[j], order[i]
    np.testing.assert_array_equal(distorted(image, changes), image[:, :, order])


def noise(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    return add_noise(image, text_format.Parse(text, NoiseParameter()), NO_POINTS)


def test_noise() -> None:
    image = RNG.integers(0, 256, (9, 11, 3), np.uint8)
    np.testing.assert_array_equal(noise(image, "inverse: true"), 255 - image)
    steps = noise(image, "posterize: true")
    assert set(steps.ravel().tolist()) <= {32, 96, 160, 224}
    assert int(np.abs(steps.astype(int) - image).max()) <= 32
    gray = noise(image, "decolorize: true")
    assert bool((gray == gray[:, :, :1]).all())
    cross = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255)
    neighbours = [cross[1:-1, 1:-1], cross[:-2, 1:-1], cross[2:, 1:-1], cross[1:-1, :-2], cross[1:-1, 2:]]
    np.testing.assert_array_equal(noise(image, "erode: true"), np.minimum.reduce(neighbours))
    one = image[:, :, :1]
    for text in ("hist_eq: true", "clahe: true", "gauss_blur: true"):
        assert noise(one, text).shape == one.shape and not np.array_equal(noise(one, text), one)
        assert not np.array_equal(noise(image, text), image)
    flat = noise(one, "hist_eq: true")
    counts = np.cumsum(np.bincount(one.ravel(), minlength=256))
    low = counts[counts > 0][0]
    np.testing.assert_array_equal(flat, np.rint((counts - low) * 255 / (one.size - low)).clip(0)[one])
    for text in ("decolorize: true", "jpeg: 50", "convert_to_hsv: true"):
        with pytest.raises(DataError, match="needs 3 channels, the image has 1; see force_color"):
            noise(one, text)


WRONG = {
    "no size": ("resize_param { height: 3 }", "", "resize_param needs height and width above 0; got 3 and 0"),
    "a ratio of 1": (f"{WARP} expand_param {{ }}", "", "expand_param needs max_expand_ratio > 1; got 1"),
    "a random crop without mirror": (f"{WARP} crop_h: 3 crop_w: 3", "", "only with mirror: true; set that"),
    "a scale of 0": (
        WARP,
        "batch_sampler { sampler { min_scale: 0 } }",
        "batch_sampler 0 needs 0 < min_scale <= max_scale <= 1; got 0 and 1",
    ),
    "an aspect": (
        WARP,
        "batch_sampler { sampler { min_aspect_ratio: 2 } }",
        "0 < min_aspect_ratio <= max_aspect_ratio, both finite; got 2 and 1",
    ),
    "a negative delta": (
        f"{WARP} distort_param {{ hue_prob: 1 hue_delta: -1 }}",
        "",
        "distort_param: hue_delta must be non-negative.; got -1",
    ),
    "a contrast": (
        f"{WARP} distort_param {{ contrast_prob: 1 contrast_lower: 2 contrast_upper: 1 }}",
        "",
        "distort_param: 0 <= contrast_lower <= contrast_upper; got 2 and 1",
    ),
    "a batch of images of any size": (
        "resize_param { resize_mode: FIT_SMALL_SIZE height: 9 width: 9 }",
        "",
        "Only support batch size of 1 for FIT_SMALL_SIZE.; got 3",
    ),
    "no value for salt": (
        f"{WARP} noise_param {{ saltpepper: true }}", "", "noise_param.saltpepper needs saltpepper_param"
    ),
    "images of several sizes": ("", "", "an image of 3 x 47 x 55 for a top of 3 x 40 x 60"),
    "too large a crop": (f"{WARP} crop_size: 33", "", "img_height >= crop_h (30 vs. 33)"),
    "means": (f"{WARP} mean_value: 1 mean_value: 2", "", "as many as channels: 3; got 2"),
    "pad values": (
        "resize_param { height: 20 width: 90 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 1 pad_value: 2 }",
        "",
        "Specify either 1 pad_value or as many as channels: 3; got 2",
    ),
    "too thin": (
        "resize_param { height: 1 width: 900 resize_mode: FIT_LARGE_SIZE_AND_PAD } mirror: true",
        "batch_sampler { sampler { min_aspect_ratio: 0.01 max_aspect_ratio: 0.01 "
        "min_scale: 0.02 max_scale: 0.02 } }",
        "leaves nothing",
    ),
    "scales": (
        "resize_param { resize_mode: WARP height: 30 width: 30 } exclude_last_crop: true crop_size: 9",
        "",
        "exclude_last_crop is for plain crops",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_errors(what: str, db: str) -> None:
    transform, annotated, message = WRONG[what]
    with pytest.raises(ImaeError) as error:
        batches(build(param(db, transform, annotated)), 3)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_empty_mean_for_an_expanded_image(db: str, tmp_path: Path) -> None:
    with refused("expand_param makes images of all sizes, and mean_file has one"):
        AnnotatedData(param(db, f'{WARP} {EXPAND} mean_file: "{tmp_path}/mean"'))


DAMAGED = {
    "no AnnotatedDatum": (b"\xff\xff", "2 bytes that are not an AnnotatedDatum; the record is damaged"),
    "a Datum": (RECORDS[0].datum.SerializeToString(), "Datums are for a layer of type Data"),
    "no image": (
        AnnotatedDatum(type=0, datum=Datum(encoded=True, data=b"x" * 20)).SerializeToString(),
        "could not decode the 20 bytes as an image",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_records(what: str, tmp_path: Path) -> None:
    value, message = DAMAGED[what]
    path = tmp_path / "db"
    for place in (0, 1):
        with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as transaction:
            transaction.put(b"0", RECORDS[0].SerializeToString())
            transaction.put(b"%d" % place, value)
        with pytest.raises(DataError) as error:
            batches(build(param(str(path), WARP, batch=2)), 1)
        assert message in str(error.value) and f"'{path}'" in str(error.value)


def test_boxes_of_a_record_without_a_size(tmp_path: Path) -> None:
    made = AnnotatedDatum()
    made.CopyFrom(RECORDS[0])
    made.datum.height = 0
    source = write_db(tmp_path / "db", [made])
    with pytest.raises(DataError, match="its height and width are 0 and 60, which its boxes need"):
        build(param(source, WARP)).next_batch()


# -- the same fields in other layers -------------------------------------------------------------------------


def test_data_and_image_data_resize_like_annotated_data(db: str, tmp_path: Path) -> None:
    """Their streams begin without the word of the thread that reads the database."""
    salt = "saltpepper: true saltpepper_param { fraction: 0.1 value: 9 }"
    transform = f"mirror: true crop_h: 11 crop_w: 35 {MEANS} {INTERPOLATED} noise_param {{ {salt} }}"
    layer = param(db, transform)
    plain = lmdb.open(str(tmp_path / "plain"), map_size=1 << 24)
    with plain, plain.begin(write=True) as put_in:
        for index, made in enumerate(RECORDS):
            put_in.put(b"%d" % index, made.datum.SerializeToString())
            (tmp_path / f"{index}.png").write_bytes(made.datum.data)
    (tmp_path / "list").write_text("".join(f"{tmp_path}/{index}.png {index}\n" for index in range(4)))
    data, images = LayerParameter(), LayerParameter()
    data.CopyFrom(layer)
    data.ClearField("annotated_data_param")
    data.type, data.data_param.source = "Data", str(tmp_path / "plain")
    images.CopyFrom(data)
    images.ClearField("data_param")
    images.type, images.image_data_param.batch_size = "ImageData", 3
    images.image_data_param.source = str(tmp_path / "list")
    run = CaffeRandom(SEED)
    seeds = [run.word() for _ in range(3)]
    for other in (data, images):
        slow = SlowSSD(layer, RECORDS, SEED)
        slow.own, slow.thread = Stream(seeds[1]), Stream(seeds[2])
        made = build(other)
        state = made.get_state()
        got = batches(made, 4)
        for values, _ in got:
            np.testing.assert_array_equal(values.numpy(), slow.batch()[0])
        again = build(other)
        again.next_batch()
        again.set_state(state)
        assert all(torch.equal(a, b) for a, b in zip(batches(again, 1)[0], got[0], strict=True))


def test_data_names_the_layer_of_annotated_records(db: str) -> None:
    layer = param(db, "")
    layer.type = "Data"
    layer.ClearField("annotated_data_param")
    with pytest.raises(DataError, match="or it is an AnnotatedDatum, for a layer of type AnnotatedData"):
        build(layer)


def test_raw_images_of_data_are_not_resized(tmp_path: Path) -> None:
    plain = lmdb.open(str(tmp_path / "plain"), map_size=1 << 24)
    with plain, plain.begin(write=True) as transaction:
        transaction.put(b"0", record(0, raw=True).datum.SerializeToString())
    layer = param(str(tmp_path / "plain"), WARP)
    layer.type = "Data"
    layer.ClearField("annotated_data_param")
    with refused("resize_param, noise_param, crop_h and crop_w are for encoded images"):
        build(layer)
