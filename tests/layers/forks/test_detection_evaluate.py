"""DetectionEvaluate: nothing is recorded, so rows are worked out by hand and by loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from single_layer import build, refused, run
from ssd_reference import overlap
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.net.net import Net
from imae.net.streams import Streams
from imae.prototxt.text import parse_net

A, B = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]
NEAR_A, FAR = [0.1, 0.1, 0.5, 0.45], [0.0, 0.7, 0.2, 0.9]


def detections(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(1, 1, -1, 7)


def truths(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(1, 1, -1, 8)


def rows_of(fields: str, found: Tensor, truth: Tensor) -> list[list[float]]:
    text = f'type: "DetectionEvaluate" detection_evaluate_param {{ num_classes: 3 {fields} }}'
    (top,) = run(build(text, tuple(found.shape), tuple(truth.shape)), found, truth)
    assert top.shape[:2] == (1, 1) and top.dtype == found.dtype
    return [[round(float(value), 5) for value in row] for row in top[0, 0]]


def test_rows() -> None:
    found = detections(
        [0, 1, 0.5, *NEAR_A], [0, 1, 0.9, *A], [0, 1, 0.6, *FAR],  # by score: true, false, a second one
        [0, 2, 0.4, *A], [0, 2, 0.8, *B],  # no truth of this label: not sorted
        [2, 1, 0.3, *B],  # no truth in this image
        [3, -1, -1, -1, -1, -1, -1],  # an image without detections
    )  # fmt: skip
    truth = truths([0, 1, 0, *A, 0], [1, 1, 0, *A, 0], [3, 2, 0, *A, 0])
    assert rows_of("", found, truth) == [
        [-1, 1, 2, -1, -1], [-1, 2, 1, -1, -1],
        [0, 1, 0.9, 1, 0], [0, 1, 0.6, 0, 1], [0, 1, 0.5, 0, 1],
        [0, 2, 0.4, 0, 1], [0, 2, 0.8, 0, 1],
        [2, 1, 0.3, 0, 1],
    ]  # fmt: skip


def test_difficult_truths() -> None:
    found = detections([0, 1, 0.9, *A], [0, 1, 0.8, *NEAR_A], [0, 1, 0.7, *B], [0, 1, 0.6, *FAR])
    truth = truths([0, 1, 0, *A, 1], [0, 1, 0, *B, 0])
    assert rows_of("evaluate_difficult_gt: false", found, truth) == [
        [-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1],
        [0, 1, 0.9, 0, 0], [0, 1, 0.8, 0, 0], [0, 1, 0.7, 1, 0], [0, 1, 0.6, 0, 1],
    ]  # fmt: skip
    assert rows_of("", found, truth)[:4] == [
        [-1, 1, 2, -1, -1], [-1, 2, 0, -1, -1], [0, 1, 0.9, 1, 0], [0, 1, 0.8, 0, 1],
    ]  # fmt: skip


def test_truths_end_at_image_minus_one() -> None:
    truth = truths([0, 1, 0, *A, 0], [-1, 1, 0, *A, 0], [0, 1, 0, *B, 0])
    assert rows_of("", detections([0, 1, 0.9, *B]), truth) == [
        [-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1], [0, 1, 0.9, 0, 1],
    ]  # fmt: skip


def test_without_a_background_all_labels_have_a_row() -> None:
    rows = rows_of("background_label_id: 4294967295", detections([0, 0, 0.9, *A]), truths([0, 0, 0, *A, 0]))
    assert rows == [[-1, 0, 1, -1, -1], [-1, 1, 0, -1, -1], [-1, 2, 0, -1, -1], [0, 0, 0.9, 1, 0]]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_against_loops(threshold: float) -> None:
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.5, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, (40, 2))], 1)
    found = detections(*([i % 2, 1 + i % 3 % 2, 1 - i / 50, *boxes[i]] for i in range(25)))
    truth = truths(*([i % 2, 1 + i % 2, 0, *boxes[i], 0] for i in range(25, 40)))
    rows = rows_of(f"overlap_threshold: {threshold}", found, truth)
    want: list[list[float]] = []
    for image in (0, 1):
        for label in (1, 2):
            own = [row[3:7] for row in truth[0, 0].tolist() if row[:2] == [image, label]]
            seen: set[int] = set()
            for row in found[0, 0].tolist():
                if row[:2] != [image, label]:
                    continue
                shared = [overlap(row[3:7], box) for box in own]
                best = int(np.argmax(shared)) if own else -1
                hit = bool(own) and shared[best] >= threshold
                want.append([*row[:3], float(hit and best not in seen), float(not hit or best in seen)])
                seen |= {best} if hit else set()
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(rows[2:], want, rtol=10 * rtol, atol=10 * atol)
    assert {row[3] for row in want} == {0, 1}


def test_boxes_in_pixels_take_the_lines_in_turn(tmp_path: Path) -> None:
    """In pixels both ends of a box belong to it: 2 x 2 against 2 x 3 pixels is 4 / 6, not 1 / 2."""
    (tmp_path / "sizes").write_text("a 10 10\nb 100 100\n")
    a, b = [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.3]
    found = detections([0, 1, 0.9, *a])
    truth = truths([0, 1, 0, *b, 0])
    fields = f'overlap_threshold: 0.6 name_size_file: "{tmp_path}/sizes"'
    text = f'type: "DetectionEvaluate" detection_evaluate_param {{ num_classes: 2 {fields} }}'
    layer = build(text, tuple(found.shape), tuple(truth.shape))
    seen = [run(layer, found, truth)[0][0, 0, 1, 3].item() for _ in range(4)]
    assert seen == [1, 0, 1, 0]  # 121 / 231 of image b is too little


def test_a_resize_param_is_undone(tmp_path: Path) -> None:
    """A 50 x 100 image fits into 100 x 100 with padding; clipped, two boxes in it become one."""
    (tmp_path / "sizes").write_text("a 50 100\n")
    found, truth = detections([0, 1, 0.9, 0, 0.0, 1, 0.5]), truths([0, 1, 0, 0, 0.25, 1, 0.5, 0])
    fields = f'overlap_threshold: 0.99 name_size_file: "{tmp_path}/sizes" '
    assert rows_of(fields, found, truth)[2][3] == 0
    resize = "resize_param { height: 100 width: 100 resize_mode: FIT_LARGE_SIZE_AND_PAD }"
    assert rows_of(fields + resize, found, truth)[2][3] == 1


def test_a_background_label_is_refused() -> None:
    with refused("Found background label in the detection results.; it is 0"):
        rows_of("", detections([0, 0, 0.9, *A]), truths([0, 1, 0, *A, 0]))
    with refused("Found background label in the dataset.; it is 0"):
        rows_of("", detections([0, 1, 0.9, *A]), truths([0, 0, 0, *A, 0]))


def test_what_is_refused_at_the_start() -> None:
    found, truth = (1, 1, 3, 7), (1, 1, 2, 8)
    for fields, message in (
        ("", "Must provide num_classes, larger than 0."),
        ("num_classes: 2 overlap_threshold: 0", "overlap_threshold must be larger than 0; got 0.0"),
        ("num_classes: 2 resize_param { height: 3 }", "resize_param: height and width must be larger than 0"),
        ('num_classes: 2 name_size_file: "nothing"', "Failed to open name size file: nothing"),
    ):
        with refused(message):
            build(f'type: "DetectionEvaluate" detection_evaluate_param {{ {fields} }}', found, truth)
    with refused("top 'top0': "):
        build('type: "DetectionEvaluate" detection_evaluate_param { num_classes: 4294967295 }', found, truth)
    for shapes in (((1, 1, 3, 6), truth), (found, (1, 2, 2, 8)), ((3, 7), truth)):
        with refused("detections are (1, 1, K, 7), truths (1, 1, G, 8)"):
            build('type: "DetectionEvaluate" detection_evaluate_param { num_classes: 2 }', *shapes)


def test_a_run_that_is_resumed_goes_on_with_the_next_line(tmp_path: Path) -> None:
    """The data go on, too: another line would be the size of another image."""
    (tmp_path / "sizes").write_text("a 10 10\nb 100 100\nc 10 10\n")
    net = f"""layer {{ name: "in" type: "Input" top: "d" top: "t"
            input_param {{ shape {{ dim: [1, 1, 1, 7] }} shape {{ dim: [1, 1, 1, 8] }} }} }}
        layer {{ name: "it" type: "DetectionEvaluate" bottom: "d" bottom: "t" top: "e"
            detection_evaluate_param {{ num_classes: 2 overlap_threshold: 0.6
                                        name_size_file: "{tmp_path}/sizes" }} }}"""
    feeds = {
        "d": detections([0, 1, 0.9, 0.1, 0.1, 0.2, 0.2]),
        "t": truths([0, 1, 0, 0.1, 0.1, 0.2, 0.3, 0]),
    }

    def streams() -> Streams:
        return Streams(CaffeRandom(1), [Net(parse_net(net))], torch.device("cpu"))

    def hits(of: Streams, count: int) -> list[float]:
        return [float(of.nets[0](feeds)["e"][0, 0, 1, 3]) for _ in range(count)]

    alone = streams()
    assert hits(alone, 1) == [1]
    state = alone.get_state()
    want = hits(alone, 4)
    assert want == [0, 1, 1, 0]
    resumed = streams()
    resumed.set_state(state)
    assert hits(resumed, 4) == want
    state["layers"][0]["it"] = {"image": 3}
    with pytest.raises(SnapshotError, match="the saved image is 3 of 3"):
        resumed.set_state(state)
