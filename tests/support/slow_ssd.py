"""SSD's reading of annotated records, written again from its description: slow, plain, one record at a time.

Nothing of it is recorded, so this is what the layer is compared with. It shares no code with the layer but
OpenCV's operations on whole images. Numbers are float32 after each step; `Stream` are the raw words.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import AnnotatedDatum

F = np.float32
INTERPOLATION = [None, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC]
INTERPOLATION.append(cv2.INTER_LANCZOS4)


class Stream:
    """Words of one engine, and the uniform values that are made of them."""

    def __init__(self, seed: int) -> None:
        self.engine = np.random.RandomState(seed)

    def word(self) -> int:
        return int(self.engine.randint(0, 2**32, dtype=np.uint32))

    def uniform(self, a: float, b: float) -> float:
        end = np.nextafter(F(b), F(np.inf))
        while True:
            share = F(self.word()) / F(2.0**32)
            value = F(np.longdouble(share) * np.longdouble(end - F(a)) + np.longdouble(F(a)))
            if value < end:
                return float(value)


def f(x: Any) -> float:
    return float(F(x))


class SlowSSD:
    """The batches of a layer of AnnotatedData in TRAIN, in a run with this seed."""

    def __init__(self, param: LayerParameter, records: list[AnnotatedDatum], seed: int) -> None:
        self.param, self.t, self.records, self.place = param, param.transform_param, records, 0
        run = Stream(seed)
        run.word()  # the thread that reads the database
        seeds = [run.word() for _ in range(3 if self.t.mirror or self.t.crop_size else 1)]
        self.own, self.thread = Stream(seeds[-2] if len(seeds) > 1 else 0), Stream(seeds[-1])

    def batch(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        images, rows = [], []
        for item in range(self.param.data_param.batch_size):
            record = self.records[self.place % len(self.records)]
            self.place += 1
            image, boxes = self.one(record)
            images.append(image)
            rows += [[item, *box[:7]] for box in boxes]
        return np.stack(images), np.array(rows or [[-1] * 8], F)[None, None]

    # A box here is a list: label, instance, xmin, ymin, xmax, ymax, difficult, size (None: not stored).

    def one(self, record: AnnotatedDatum) -> tuple[NDArray[np.float32], list[list[Any]]]:
        boxes = [
            [g.group_label, a.instance_id, a.bbox.xmin, a.bbox.ymin, a.bbox.xmax, a.bbox.ymax,
             float(a.bbox.difficult), a.bbox.size if a.bbox.HasField("size") else None]
            for g in record.annotation_group for a in g.annotation
        ]  # fmt: skip
        datum = record.datum
        stored = datum.height, datum.width
        raw = not datum.encoded
        if raw:
            image = np.frombuffer(datum.data, np.uint8).reshape(datum.channels, *stored).transpose(1, 2, 0)
        else:
            image = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_UNCHANGED)
        image = image.reshape(*image.shape[:2], -1)

        def keep(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            if raw:
                return pixels
            again = cv2.imdecode(cv2.imencode(".jpg", pixels)[1], cv2.IMREAD_UNCHANGED)
            return again.reshape(*again.shape[:2], -1)

        if self.t.HasField("distort_param") and not raw:
            image = keep(self.distort(image))
            stored = image.shape[:2]
        if self.t.HasField("expand_param"):
            height, width = image.shape[:2]
            if self.thread.uniform(0, 1) <= f(self.t.expand_param.prob):
                ratio = self.thread.uniform(1, self.t.expand_param.max_expand_ratio)
                tall, wide = int(f(F(height) * F(ratio))), int(f(F(width) * F(ratio)))
                y = math.floor(self.thread.uniform(0, tall - height))
                x = math.floor(self.thread.uniform(0, wide - width))
                canvas = np.zeros((tall, wide, image.shape[2]), np.uint8)
                if raw:
                    canvas[:] = 32
                elif self.t.mean_value:
                    canvas[:] = [round(v) for v in self.t.mean_value]
                canvas[y : y + height, x : x + width] = image
                image = keep(canvas)
                stored = tall, wide
                seen = (F(-x) / F(width), F(-y) / F(height), F(wide - x) / F(width), F(tall - y) / F(height))
                boxes = self.cut(boxes, seen)
        if self.param.annotated_data_param.batch_sampler:
            windows = self.sample(boxes)
            if windows:
                chosen = [f(min(max(s, 0), 1)) for s in windows[self.thread.word() % len(windows)]]
                height, width = image.shape[:2]
                left, right = F(chosen[0]) * F(width), F(chosen[2]) * F(width)
                top, bottom = F(chosen[1]) * F(height), F(chosen[3]) * F(height)
                y, x = int(top), int(left)
                image = keep(
                    np.ascontiguousarray(image[y : y + int(bottom - top), x : x + int(right - left)])
                )
                stored = image.shape[:2]
                boxes = self.cut(boxes, chosen)
        return self.finish(image, boxes, stored, raw)

    def finish(
        self, image: NDArray[np.uint8], boxes: list[list[Any]], stored: tuple[int, ...], raw: bool
    ) -> tuple[NDArray[np.float32], list[list[Any]]]:
        t, r = self.t, self.t.resize_param
        flip = bool(t.mirror and self.own.word() % 2)
        if t.HasField("resize_param") and not raw:
            image = self.resize(image)
        if t.noise_param.saltpepper:
            image = image.copy()
            height, width = image.shape[:2]
            for _ in range(math.floor(F(t.noise_param.saltpepper_param.fraction) * F(width) * F(height))):
                x = self.thread.word() % width
                y = self.thread.word() % height
                image[y, x] = list(t.noise_param.saltpepper_param.value)
        height, width = image.shape[:2]
        tall, wide = t.crop_size or t.crop_h or height, t.crop_size or t.crop_w or width
        y = x = 0
        if t.crop_size or (t.crop_h and t.crop_w):
            y, x = self.own.word() % (height - tall + 1), self.own.word() % (width - wide + 1)
        top = np.zeros((image.shape[2], tall, wide), F)
        for c in range(image.shape[2]):
            plane = image[y : y + tall, x : x + wide, c].astype(F)
            mean = t.mean_value[c % len(t.mean_value)] if t.mean_value else 0
            top[c] = ((plane[:, ::-1] if flip else plane) - F(mean)) * F(t.scale)
        window = (F(x) / F(width), F(y) / F(height), F(x + wide) / F(width), F(y + tall) / F(height))
        if t.HasField("resize_param"):
            boxes = [self.resized(box, *stored) for box in boxes]
        boxes = self.cut(boxes, window)
        for box in boxes:
            if flip:
                box[2], box[4] = f(F(1) - F(box[4])), f(F(1) - F(box[2]))
            if r.resize_mode == r.FIT_SMALL_SIZE and r.height_scale and r.width_scale:
                tall_all, wide_all = self.small(*stored)
                cut_h = F(tall_all) * (window[3] - window[1])
                cut_w = F(wide_all) * (window[2] - window[0])
                for i in (2, 4):
                    box[i] = f(F(box[i]) * cut_w / F(r.width_scale))
                    box[i + 1] = f(F(box[i + 1]) * cut_h / F(r.height_scale))
        return top, boxes

    # -- images -----------------------------------------------------------------------------------------

    def distort(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        d = self.t.distort_param

        def linear(plane: NDArray[np.uint8], factor: float, addend: float) -> NDArray[np.uint8]:
            out = plane.astype(F) * F(factor) + F(addend)
            return np.minimum(np.maximum(np.round(out), 0), 255).astype(np.uint8)

        def hsv(image: NDArray[np.uint8], index: int, factor: float, addend: float) -> NDArray[np.uint8]:
            planes = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            planes[..., index] = linear(planes[..., index], factor, addend)
            return cv2.cvtColor(planes, cv2.COLOR_HSV2BGR)

        early = self.thread.uniform(0, 1) > 0.5
        for kind in ("brightness", *(["contrast"] if early else []), "saturation", "hue",
                     *([] if early else ["contrast"])):  # fmt: skip
            if not self.thread.uniform(0, 1) < getattr(d, f"{kind}_prob"):
                continue
            if kind in ("brightness", "hue"):
                delta = getattr(d, f"{kind}_delta")
                amount = self.thread.uniform(-delta, delta)
                image = linear(image, 1, amount) if kind == "brightness" else hsv(image, 0, 1, amount)
            else:
                amount = self.thread.uniform(getattr(d, f"{kind}_lower"), getattr(d, f"{kind}_upper"))
                image = linear(image, amount, 0) if kind == "contrast" else hsv(image, 1, amount, 0)
        assert not self.thread.uniform(0, 1) < d.random_order_prob, "rand() is tested alone"
        return image

    def small(self, height: int, width: int) -> tuple[float, float]:
        """Height and width, not yet whole, of an image that just covers the size that is asked for."""
        r = self.t.resize_param
        aspect = F(width) / F(height)
        if aspect < F(r.width) / F(r.height):
            return f(F(r.width) / aspect), r.width
        return r.height, f(aspect * F(r.height))

    def inside(self, height: int, width: int) -> tuple[float, float]:
        r = self.t.resize_param
        aspect = F(width) / F(height)
        if aspect > F(r.width) / F(r.height):
            return f(F(r.width) / aspect), r.width
        return r.height, f(aspect * F(r.height))

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        r = self.t.resize_param
        mode = cv2.INTER_LINEAR
        if r.interp_mode:
            count = len(r.interp_mode)
            total, bounds = F(0), []
            for _ in range(count):
                total += F(1) / F(count)
                bounds.append(total)
            value = self.thread.uniform(0, total)
            mode = INTERPOLATION[r.interp_mode[next(i for i, bound in enumerate(bounds) if bound >= value)]]
        height, width = r.height, r.width
        if r.resize_mode == r.FIT_SMALL_SIZE:
            height, width = map(int, self.small(*image.shape[:2]))
        elif r.resize_mode == r.FIT_LARGE_SIZE_AND_PAD:
            height, width = map(int, self.inside(*image.shape[:2]))
        out = cv2.resize(image, (width, height), interpolation=mode).reshape(height, width, -1)
        if r.resize_mode != r.FIT_LARGE_SIZE_AND_PAD:
            return out
        kind = {1: "constant", 2: "reflect", 3: "edge"}[r.pad_mode]
        y, x = (r.height - height) // 2, (r.width - width) // 2
        sides = ((y, r.height - height - y), (x, r.width - width - x))
        planes = []
        for c in range(out.shape[2]):
            value = r.pad_value[c % len(r.pad_value)] if r.pad_value else 0
            more = {"constant_values": round(value)} if kind == "constant" else {}
            planes.append(np.pad(out[..., c], sides, kind, **more))
        return np.stack(planes, -1)

    # -- boxes ------------------------------------------------------------------------------------------

    def resized(self, box: list[Any], height: int, width: int) -> list[Any]:
        r = self.t.resize_param
        tall, wide = f(r.height), f(r.width)
        y_pad = x_pad = 0.0
        if r.resize_mode == r.FIT_SMALL_SIZE:
            tall, wide = self.small(height, width)
        elif r.resize_mode == r.FIT_LARGE_SIZE_AND_PAD:
            inner_h, inner_w = self.inside(height, width)
            y_pad, x_pad = f((F(tall) - F(inner_h)) / F(2)), f((F(wide) - F(inner_w)) / F(2))
        out = list(box)
        for i, old, new, pad in ((2, width, wide, x_pad), (3, height, tall, y_pad)):
            room = F(new) - F(2) * F(pad)
            low, high = (F(box[k]) * F(old) * room / F(old) for k in (i, i + 2))
            out[i] = f((F(pad) + np.maximum(F(0), low)) / F(new))
            out[i + 2] = f((F(pad) + np.minimum(F(new), high)) / F(new))
        return out

    def cut(self, boxes: list[list[Any]], window: Any) -> list[list[Any]]:
        out = []
        for box in boxes:
            if self.t.HasField("emit_constraint"):
                e = self.t.emit_constraint
                if e.emit_type == e.CENTER:
                    x, y = (F(box[2]) + F(box[4])) / F(2), (F(box[3]) + F(box[5])) / F(2)
                    if not (window[0] <= x <= window[2] and window[1] <= y <= window[3]):
                        continue
                elif not share(box, [0, 0, *window, 0, None]) > f(e.emit_overlap):
                    continue
            if box[2] >= window[2] or box[4] <= window[0] or box[3] >= window[3] or box[5] <= window[1]:
                continue
            new = list(box)
            for i in (2, 3, 4, 5):
                low, high = F(window[i % 2]), F(window[2 + i % 2])
                new[i] = f(min(max((F(box[i]) - low) / (high - low), F(0)), F(1)))
            new[7] = f((F(new[4]) - F(new[2])) * (F(new[5]) - F(new[3])))
            if new[7] > 0:
                out.append(new)
        return out

    def sample(self, boxes: list[list[Any]]) -> list[list[float]]:
        kept = []
        for sampler in self.param.annotated_data_param.batch_sampler:
            if not sampler.use_original_image:
                continue
            found, s, c = 0, sampler.sampler, sampler.sample_constraint
            for _ in range(sampler.max_trials):
                if sampler.HasField("max_sample") and found >= sampler.max_sample:
                    break
                scale = self.thread.uniform(s.min_scale, s.max_scale)
                aspect = self.thread.uniform(s.min_aspect_ratio, s.max_aspect_ratio)
                aspect = f(min(max(aspect, f(scale * scale)), f(1 / (scale * scale))))
                width, height = F(scale * math.sqrt(aspect)), F(scale / math.sqrt(aspect))
                x = self.thread.uniform(0, F(1) - width)
                y = self.thread.uniform(0, F(1) - height)
                window = [0, 0, x, y, f(F(x) + width), f(F(y) + height), 0, None]
                if satisfied(c, window, boxes):
                    kept.append(window[2:6])
                    found += 1
        return kept


def area(box: list[Any]) -> np.float32:
    if box[4] < box[2] or box[5] < box[3]:
        return F(0)
    return F(box[7]) if box[7] is not None else (F(box[4]) - F(box[2])) * (F(box[5]) - F(box[3]))


def common(a: list[Any], b: list[Any]) -> np.float32:
    if b[2] > a[4] or b[4] < a[2] or b[3] > a[5] or b[5] < a[3]:
        return F(0)
    width, height = F(min(a[4], b[4])) - F(max(a[2], b[2])), F(min(a[5], b[5])) - F(max(a[3], b[3]))
    return F(0) if width < 0 or height < 0 else width * height


def share(a: list[Any], b: list[Any]) -> np.float32:
    both = common(a, b)
    return both / area(a) if both > 0 else F(0)


def satisfied(c: Any, window: list[Any], boxes: list[list[Any]]) -> bool:
    """By the fork's loop: one flag for all objects and kinds."""
    names = ("jaccard_overlap", "sample_coverage", "object_coverage")
    used = [n for n in names if c.HasField(f"min_{n}") or c.HasField(f"max_{n}")]
    flag = not used
    for box in boxes if used else []:
        both = common(window, box)
        union = area(window) + area(box) - both
        values = {
            "jaccard_overlap": both / union if both > 0 else F(0),
            "sample_coverage": share(window, box),
            "object_coverage": share(box, window),
        }
        for n in used:
            if c.HasField(f"min_{n}") and values[n] < F(getattr(c, f"min_{n}")):
                break
            if c.HasField(f"max_{n}") and values[n] > F(getattr(c, f"max_{n}")):
                break
            flag = True
        if flag:
            return True
    return flag
