"""CaffeRandom against the engine's definition, boost's methods read value by value, and recorded streams."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from imae.files.errors import SnapshotError
from imae.layers import caffe_random
from imae.layers.caffe_random import CaffeRandom, multiply_add
from imae.prototxt import NetParameter

CASES = Path(__file__).parents[1] / "cases" / "random"
f32 = np.float32


def mt19937(seed: int) -> Iterator[int]:
    """The words of the engine, by its definition."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
    while True:
        for i in range(624):
            both = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7FFFFFFF)
            state[i] = state[(i + 397) % 624] ^ (both >> 1) ^ (0x9908B0DF if both & 1 else 0)
        for word in state:
            word ^= word >> 11
            word ^= (word << 7) & 0x9D2C5680
            word ^= (word << 15) & 0xEFC60000
            yield word ^ (word >> 18)


class PlainZiggurat:
    """Normal values one at a time, with tables of its own; `count` counts how often each branch was taken."""

    def __init__(self, rng: CaffeRandom) -> None:
        self.draw = rng.word
        self.count = dict.fromkeys(("inside", "wedge", "curve", "rejected", "tail", "tail rejected"), 0)
        self.x, self.y = self.table(3.7130862467403632609, 3.4426198558966521214, 128)
        self.ex, self.ey = self.table(8.6971174701310497140, 7.6971174701310497140, 256)

    @staticmethod
    def table(x0: float, x1: float, layers: int) -> tuple[list[float], list[float]]:
        """Layers of equal area under exp(-x^2 / 2) (128 of them) or exp(-x) (256)."""
        normal = layers == 128
        x, y = [x0, x1], [0.0, math.exp(-x1 * x1 / 2 if normal else -x1)]
        for i in range(1, layers - 1):
            y.append(y[i] + x0 * y[1] / x[i])
            x.append(math.sqrt(-2 * math.log(y[-1])) if normal else -math.log(y[-1]))
        return [*x, 0.0], [*y, 1.0]

    def normal(self) -> np.float32:
        while True:
            u = self.draw()
            i, sign = (u & 255) >> 1, f32(1 if u & 1 else -1)
            x = f32(f32(u >> 8) / f32(2**24)) * f32(self.x[i])
            if float(x) < self.x[i + 1]:
                self.count["inside"] += 1
                return sign * x
            if i == 0:
                self.count["tail"] += 1
                return sign * self.tail()
            y01 = f32(self.draw()) / f32(2**32)
            assert y01 < 1
            y = f32(self.y[i]) + y01 * f32(self.y[i + 1] - self.y[i])
            chord = f32(self.x[i] - self.x[i + 1]) * y01 - (f32(self.x[i]) - x)
            tangent = y - (f32(self.y[i]) + (f32(self.x[i]) - x) * f32(self.y[i]) * f32(self.x[i]))
            upper, lower = (chord, tangent) if self.x[i] >= 1 else (tangent, chord)
            if upper < 0 and lower < 0:
                self.count["wedge"] += 1
                return sign * x
            if upper < 0 and y < f32(math.exp(float(-x * x / f32(2)))):
                self.count["curve"] += 1
                return sign * x
            self.count["rejected"] += 1

    def tail(self) -> np.float32:
        while True:
            t, e = self.exponential() / f32(self.x[1]), self.exponential()
            if f32(2) * e > t * t:
                return t + f32(self.x[1])
            self.count["tail rejected"] += 1

    def exponential(self) -> np.float32:
        shift = f32(0)
        while True:
            u = self.draw()
            i = u & 255
            x = f32(f32(u >> 8) / f32(2**24)) * f32(self.ex[i])
            if x < f32(self.ex[i + 1]):
                return shift + x
            if i == 0:
                shift += f32(self.ex[1])
                continue
            y01 = f32(self.draw()) / f32(2**32)
            y = f32(self.ey[i]) + y01 * f32(self.ey[i + 1] - self.ey[i])
            upper = f32(self.ex[i] - self.ex[i + 1]) * y01 - (f32(self.ex[i]) - x)
            lower = y - (f32(self.ey[i + 1]) + (f32(self.ex[i + 1]) - x) * f32(self.ey[i + 1]))
            if upper < 0 and (lower < 0 or y < f32(math.exp(-x))):
                return shift + x


def load(name: str) -> tuple[dict[str, NDArray[np.float32]], int, NetParameter]:
    """Arrays, seed and net of a recorded case."""
    with np.load(CASES / f"{name}.npz", allow_pickle=False) as case:
        arrays = dict(case)
    net = text_format.Parse((CASES / f"{name}.prototxt").read_text(), NetParameter())
    return arrays, json.loads(str(arrays["meta"]))["seed"], net


# -- words -------------------------------------------------------------------------------------------------


def test_words_of_seed_1701() -> None:
    assert CaffeRandom(1701).words(4).tolist() == [384112814, 2227967492, 495543390, 3464664558]


@pytest.mark.parametrize("seed", [0, 1, 1701, 2**32 - 1])
def test_words_are_those_of_the_engine(seed: int) -> None:
    rng, expected = CaffeRandom(seed), list(islice(mt19937(seed), 2000))
    assert rng.words(700).tolist() == expected[:700]
    assert [rng.word() for _ in range(700)] == expected[700:1400]
    assert rng.words(600).tolist() == expected[1400:]
    assert rng.words(0).tolist() == []


def test_seed_counts_modulo_2_to_the_32() -> None:
    assert CaffeRandom(-1).seed == 2**32 - 1
    assert CaffeRandom(2**32 + 5).word() == CaffeRandom(5).word()


def test_a_fresh_seed_can_be_used_again() -> None:
    rng = CaffeRandom(None)
    assert CaffeRandom(rng.seed).words(5).tolist() == rng.words(5).tolist()
    assert len({CaffeRandom(None).seed for _ in range(8)}) > 1


def test_reseed_starts_anew() -> None:
    rng = CaffeRandom(3)
    rng.gaussian(100, 0, 1)
    rng.reseed(1701)
    assert rng.seed == 1701
    assert rng.word() == 384112814


def test_fork_takes_one_word_as_seed() -> None:
    rng = CaffeRandom(1701)
    fork = rng.fork()
    assert fork.seed == 384112814
    assert fork.words(3).tolist() == list(islice(mt19937(384112814), 3))
    assert rng.word() == 2227967492


# -- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [0, 1, 623, 624, 625])
def test_state_round_trip(words: int) -> None:
    rng = CaffeRandom(1701)
    rng.words(words)
    state = rng.get_state()
    expected = rng.gaussian(2000, 1, 2)
    assert rng.get_state() != state
    other = CaffeRandom(5)
    other.set_state(state)
    assert other.get_state() == state
    assert other.seed == 1701
    np.testing.assert_array_equal(other.gaussian(2000, 1, 2), expected)
    assert other.get_state() == rng.get_state()


def test_a_broken_state_is_refused() -> None:
    state = CaffeRandom(1).get_state()
    with pytest.raises(SnapshotError, match="a random state has 2504 bytes, got 2503; its file is broken"):
        CaffeRandom(2).set_state(state[:-1])
    with pytest.raises(SnapshotError, match="position is 0 to 624, got 625; its file is broken"):
        CaffeRandom(2).set_state(state[:4] + (625).to_bytes(4, "little") + state[8:])


# -- whole numbers -----------------------------------------------------------------------------------------


def test_modulo() -> None:
    words = CaffeRandom(9).words(50).tolist()
    rng = CaffeRandom(9)
    assert [rng.modulo(n) for n in range(1, 51)] == [word % n for n, word in enumerate(words, 1)]


@pytest.mark.parametrize("last", [1, 2, 3, 6, 255, 10**6, 2**31, 3 * 2**30, 2**32 - 2, 2**32 - 1])
def test_uniform_int_divides_into_buckets(last: int) -> None:
    rng, words = CaffeRandom(last), mt19937(last)
    bucket = 4294967295 // (last + 1) + (1 if 4294967295 % (last + 1) == last else 0)
    for _ in range(100):
        value = next(j for j in (word // bucket for word in words) if j <= last)
        assert rng.uniform_int(last) == value
    assert rng.word() == next(words)


def test_uniform_int_of_one_number_draws_nothing() -> None:
    rng = CaffeRandom(1701)
    assert rng.uniform_int(0) == 0
    assert rng.word() == 384112814


@pytest.mark.parametrize(("n", "misses"), [(0, 0), (1, 0), (2, 0), (13, 0), (200_000, 3)])
def test_shuffle_swaps_from_the_end(n: int, misses: int) -> None:
    words = iter(CaffeRandom(7).words(n + 20).tolist())
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        bucket = 4294967295 // (i + 1) + (1 if 4294967295 % (i + 1) == i else 0)
        while (j := next(words) // bucket) > i:
            misses -= 1
        order[i], order[j] = order[j], order[i]
    assert misses == 0  # else the case does not show that a word may be drawn again
    rng = CaffeRandom(7)
    assert rng.shuffle(n).tolist() == order
    assert rng.word() == next(words)


def test_recorded_shuffle() -> None:
    arrays, seed, _ = load("imagedata_shuffle/imagedata_shuffle")
    labels = np.concatenate([arrays["out:label"], *(arrays[f"out@{k}:label"] for k in range(1, 6))])
    rng = CaffeRandom(seed).fork()
    lines = np.arange(13)
    read: list[int] = []
    while len(read) < len(labels):
        lines = lines[rng.shuffle(13)]
        read += lines.tolist()
    assert labels.tolist() == read[: len(labels)]


# -- masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.5, 1 - float(f32(0.3)), 0.999999999, 1.0])
def test_bernoulli_compares_in_double(p: float) -> None:
    expected = CaffeRandom(5).words(10_000).astype(float) <= p * 4294967295.0
    np.testing.assert_array_equal(CaffeRandom(5).bernoulli(10_000, p), expected)


def test_bernoulli_at_the_border() -> None:
    word = CaffeRandom(1701).word()
    assert CaffeRandom(1701).bernoulli(1, (word + 0.5) / 4294967295)[0]
    assert not CaffeRandom(1701).bernoulli(1, (word - 0.5) / 4294967295)[0]
    # In single precision the same word is rounded first, and 16 in each direction are not told apart.
    assert CaffeRandom(1701).bernoulli_single(1, word / 4294967296)[0]
    assert not CaffeRandom(1701).bernoulli_single(1, (word - 64) / 4294967296)[0]


@pytest.mark.parametrize("p", [2 / 3, 0.25, 1.0])
def test_bernoulli_single_compares_in_single(p: float) -> None:
    words = CaffeRandom(6).words(10_000)
    expected = [f32(word) <= f32(p) * f32(4294967296) for word in words.tolist()]
    np.testing.assert_array_equal(CaffeRandom(6).bernoulli_single(10_000, p), expected)


def test_bernoulli_of_zero_draws_nothing() -> None:
    rng = CaffeRandom(1701)
    assert not rng.bernoulli(10, 0.0).any()
    assert not rng.bernoulli_single(10, 0.0).any()
    assert rng.word() == 384112814


@pytest.mark.parametrize("name", ["dropout_seed1701", "dropout_two_layers"])
def test_recorded_dropout(name: str) -> None:
    arrays, seed, net = load(name)
    rng = CaffeRandom(seed)
    for step in ("", "@1", "@2"):
        x, factor = arrays["in:data"], np.ones_like(arrays["in:data"])
        for layer in net.layer[1:]:
            ratio = layer.dropout_param.dropout_ratio
            mask = rng.bernoulli(x.size, 1.0 - float(f32(ratio))).reshape(x.shape)
            scale = f32(1.0 / (1.0 - ratio))
            x, factor = x * mask * scale, factor * mask
            np.testing.assert_array_equal(arrays[f"out{step}:{layer.top[0]}"], x)
        np.testing.assert_array_equal(arrays[f"indiff{step}:data"] != 0, factor != 0)


# -- real numbers ------------------------------------------------------------------------------------------


def test_multiply_add_is_rounded_once() -> None:
    # 2^-60 off the middle of two floats, below it and above it: the double lies on it, and ties go to even.
    x, factor, addend = f32(1 + 2**-18), f32((1 - 2**-18) * 2**-24), f32(1 + 2**-23)
    assert multiply_add(np.array([x, -x]), factor, addend).tolist() == [addend, addend]
    assert f32(float(x) * float(factor) + float(addend)) == np.nextafter(addend, f32(2))
    assert f32(float(-x) * float(factor) + float(addend)) == 1
    values = CaffeRandom(8).uniform(3000, -1, 1).reshape(3, -1)
    for x, factor, addend in values.T:
        got = multiply_add(np.array([x]), factor, addend)[0]
        exact = Fraction(float(x)) * Fraction(float(factor)) + Fraction(float(addend))
        distance = abs(Fraction(float(got)) - exact)
        for other in (np.nextafter(got, f32(-9)), np.nextafter(got, f32(9))):
            assert distance <= abs(Fraction(float(other)) - exact)


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
@pytest.mark.parametrize(("a", "b"), [(0, 1), (-0.1, 0.1), (0.5, 1.5), (3, 3), (0, 0), (1000, 1000.001)])
def test_uniform_draws_again_at_the_upper_end(
    a: float, b: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caffe_random, "BLOCK", block)
    rng, plain = CaffeRandom(11), CaffeRandom(11)
    low, high = f32(a), np.nextafter(f32(b), f32(np.inf))
    expected: list[np.float32] = []
    while len(expected) < 1000:
        value = multiply_add(np.array([f32(plain.word()) / f32(2**32)], f32), high - low, low)[0]
        if value < high:
            expected.append(value)
    values = rng.uniform(1000, a, b)
    assert values.dtype == f32
    assert values.tolist() == expected
    assert a <= values.min() <= values.max() <= f32(b)
    assert rng.get_state() == plain.get_state()


@pytest.mark.parametrize(
    ("a", "b"),
    [(0, 1), (1, 1), (0, 0), (0.3, 1), (-18, 18), (0, 1e-40), (1e-38, 2e-38), (-3e38, 3e38), (0, 2**-120)],
)
def test_a_single_uniform_value_is_the_first_of_many(a: float, b: float) -> None:
    one, many = CaffeRandom(11), CaffeRandom(11)
    for _ in range(3000):
        value = one.uniform_value(a, b)
        assert isinstance(value, np.float32) and value == many.uniform(1, a, b)[0]
    assert one.get_state() == many.get_state()


def test_uniform_over_more_than_the_largest_float() -> None:
    values = CaffeRandom(1).uniform(1000, -3e38, 3e38)
    np.testing.assert_array_equal(values, f32(2) * CaffeRandom(1).uniform(1000, -1.5e38, 1.5e38))
    assert values.min() < -2.9e38
    assert values.max() > 2.9e38


@pytest.mark.parametrize("block", [1, 2, 5, 1000, 1 << 18])
def test_gaussian_is_the_plain_method(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caffe_random, "BLOCK", block)
    rng, plain = CaffeRandom(20), PlainZiggurat(CaffeRandom(20))
    for n in (1, 2, 40, 7000):
        expected = [plain.normal() for _ in range(n)]
        values = rng.gaussian(n, 0, 1)
        assert values.dtype == f32
        assert values.tolist() == expected
        assert rng.word() == plain.draw()


def test_gaussian_takes_every_branch_and_only_the_words_it_needs() -> None:
    rng, plain = CaffeRandom(20), PlainZiggurat(CaffeRandom(20))
    expected = [plain.normal() for _ in range(60_000)]
    assert min(plain.count.values()) > 0, plain.count
    assert rng.gaussian(60_000, 0, 1).tolist() == expected
    assert rng.word() == plain.draw()


def test_gaussian_stops_at_the_right_word_wherever_it_ends() -> None:
    for seed in range(300):  # some of them end within a wedge or a tail
        rng, plain = CaffeRandom(seed), PlainZiggurat(CaffeRandom(seed))
        assert rng.gaussian(40, 0, 1)[-1] == [plain.normal() for _ in range(40)][-1]
        assert rng.word() == plain.draw()


def test_unit_exponential_is_the_plain_method() -> None:
    rng, plain = CaffeRandom(21), PlainZiggurat(CaffeRandom(21))
    values = [caffe_random._unit_exponential(rng.word) for _ in range(30_000)]
    assert values == [plain.exponential() for _ in range(30_000)]
    assert max(values) > plain.ex[1]  # the tail, which the normal tail hardly ever reaches
    assert rng.word() == plain.draw()


def test_gaussian_is_scaled_and_shifted_in_one_operation() -> None:
    unit = CaffeRandom(4).gaussian(5000, 0, 1)
    np.testing.assert_array_equal(CaffeRandom(4).gaussian(5000, 3, 0.7), multiply_add(unit, f32(0.7), f32(3)))
    with np.errstate(all="raise"):
        assert np.isinf(CaffeRandom(4).gaussian(5000, 0, 3e38)).any()


def test_recorded_order_of_seeds_and_fillers() -> None:
    """Two Data layers with crop and mirror take three words each; then the third layer's filler draws."""
    arrays, seed, _ = load("data_two_layers/data_two_layers")
    rng = CaffeRandom(seed)
    rng.words(6)
    expected = arrays["init:ip:0"]
    bound = float(np.sqrt(f32(3) / f32(75)))
    np.testing.assert_array_equal(rng.uniform(225, -bound, bound).reshape(3, 75), expected)
