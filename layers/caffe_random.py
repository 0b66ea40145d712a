"""Caffe's random numbers on the CPU, word for word: mt19937, and boost's conversions of words to numbers.

    rng = CaffeRandom(1701)
    rng.words(4)                    # 384112814 2227967492 495543390 3464664558
    rng.gaussian(1000, 0, 0.01)     # float32, in memory order of the blob

A word is one 32-bit output of the engine. Every call advances the engine by exactly as many words as Caffe
would draw, so one object can serve fillers, dropout masks and data layers in turn. Arithmetic is float32
unless stated otherwise; the last `x * y + z` of a uniform or normal value is one fused operation, as in a
Caffe that was compiled for a processor with FMA.

Caffe: math_functions.cpp (caffe_rng_*), rng.hpp. boost: uniform_real, normal, exponential, bernoulli and
uniform_int_distribution.hpp.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import SnapshotError

f32 = np.float32
Draw = Callable[[], int]

BLOCK = 1 << 18  # words that are converted at once: few enough to stay in the cache

_ONE, _TWO, _MAX = f32(1), f32(2), np.finfo(f32).max
_PER_24_BITS, _PER_32_BITS = f32(2.0**-24), f32(2.0**-32)
_STATE = struct.Struct("<II2496s")  # seed, position, 624 words


class CaffeRandom:
    """One stream of random words and the numbers that Caffe makes of them.

    seed   the 32-bit number that the stream was started with; None takes a fresh one from the system
    """

    def __init__(self, seed: int | None) -> None:
        self.reseed(int.from_bytes(os.urandom(4), "little") if seed is None else seed)

    def reseed(self, seed: int) -> None:
        """Start the stream of `seed` mod 2^32 from its beginning."""
        self.seed = seed % 2**32
        self._engine = np.random.RandomState(self.seed)

    def fork(self) -> CaffeRandom:
        """A stream of its own, seeded with one word of this one."""
        return CaffeRandom(self.word())

    # -- state ---------------------------------------------------------------------------------------------

    def get_state(self) -> bytes:
        """2504 bytes that hold the stream and its place in it; equal bytes mean equal futures."""
        state = self._engine.get_state(legacy=False)["state"]
        return _STATE.pack(self.seed, state["pos"], state["key"].astype("<u4").tobytes())

    def set_state(self, state: bytes) -> None:
        """Continue where `get_state` was called; SnapshotError for bytes that are no such state."""
        if len(state) != _STATE.size:
            raise SnapshotError(
                f"a random state has {_STATE.size} bytes, got {len(state)}; its file is broken"
            )
        seed, position, key = _STATE.unpack(state)
        if position > 624:
            raise SnapshotError(f"a random state's position is 0 to 624, got {position}; its file is broken")
        self.seed = seed
        # 0, 0.0: numpy's cached second normal value, which is not used here.
        self._engine.set_state(("MT19937", np.frombuffer(key, "<u4").astype(np.uint32), position, 0, 0.0))

    # -- words and whole numbers ---------------------------------------------------------------------------

    def words(self, n: int) -> NDArray[np.uint32]:
        """The next `n` words."""
        return self._engine.randint(0, 2**32, n, np.uint32)

    def word(self) -> int:
        """The next word."""
        return int(self._engine.randint(0, 2**32, dtype=np.uint32))

    def modulo(self, n: int) -> int:
        """word mod n: crop offsets, mirror (n = 2), rand_skip, windows."""
        return self.word() % n

    def uniform_int(self, last: int) -> int:
        """A number from 0 to `last` (< 2^32), all equally likely; draws nothing where `last` is 0."""
        value = 0
        if last > 0:
            bucket = _bucket(last)
            while (value := self.word() // bucket) > last:
                pass
        return value

    def shuffle(self, n: int) -> NDArray[np.int64]:
        """The order of `n` items after a shuffle: new[k] = old[order[k]]."""
        order = list(range(n))
        i = n - 1
        while i > 0:
            for word in self.words(i).tolist():  # at least one word per swap
                j = word // _bucket(i)
                if j <= i:
                    order[i], order[j] = order[j], order[i]
                    i -= 1
        return np.array(order, np.int64)

    # -- masks ---------------------------------------------------------------------------------------------

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        """True with probability `p`, compared in double: word <= p * (2^32 - 1). Draws nothing where p is 0.

        Dropout's p is 1 - dropout_ratio.
        """
        if p == 0:
            return np.zeros(n, np.bool_)
        return self.words(n) <= np.uint32(math.floor(p * 4294967295.0))

    def bernoulli_single(self, n: int, p: float) -> NDArray[np.bool_]:
        """`bernoulli` compared in float32, where 2^32 - 1 is 2^32: the sparse gaussian filler."""
        if f32(p) == 0:
            return np.zeros(n, np.bool_)
        return self.words(n).astype(f32) <= f32(p) * f32(2.0**32)

    # -- real numbers --------------------------------------------------------------------------------------

    def uniform(self, n: int, a: float, b: float) -> NDArray[np.float32]:
        """`n` values of [a, b], a <= b finite: word / 2^32 * (b' - a) + a, b' the next float32 above b."""
        return self._uniform(n, f32(a), np.nextafter(f32(b), _MAX))

    def uniform_value(self, a: float, b: float) -> np.float32:
        """`uniform(1, a, b)`, without arrays: many times faster for a single value."""
        low = f32(a)
        high = np.nextafter(f32(b), _MAX)
        if high / _TWO - low / _TWO > _MAX / _TWO:
            return self.uniform(1, a, b)[0]  # type: ignore[no-any-return]
        width = high - low
        while True:
            unit = f32(self.word()) * _PER_32_BITS
            total = float(unit) * float(width) + float(low)  # the product is exact: 24 + 24 bits
            last_bits = math.frexp(total)[0] * 2**24 % 1
            if last_bits == 0.5 or 0 < abs(total) < 2**-100:  # where rounding twice may differ
                value: np.float32 = multiply_add(np.array([unit]), width, low)[0]
            else:
                value = f32(total)
            if value < high:
                return value

    def _uniform(self, n: int, low: np.float32, high: np.float32) -> NDArray[np.float32]:
        if high / _TWO - low / _TWO > _MAX / _TWO:  # the width has no float32
            return _TWO * self._uniform(n, low / _TWO, high / _TWO)

        def values(words: NDArray[np.uint32]) -> NDArray[np.float32]:
            value = multiply_add(words.astype(f32) * _PER_32_BITS, high - low, low)
            return value[value < high]  # rounding may reach `high`: Caffe draws again

        return self._collect(n, values)

    def gaussian(self, n: int, mu: float, sigma: float) -> NDArray[np.float32]:
        """`n` normal values of mean `mu` and standard deviation `sigma` > 0, by the ziggurat method."""
        return self._collect(n, lambda words: multiply_add(self._unit_normals(words), f32(sigma), f32(mu)))

    def _collect(
        self, n: int, values_of: Callable[[NDArray[np.uint32]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """`n` values, from as many words as they need; a word makes at most one value."""
        collected = np.empty(n, f32)
        done = 0
        while done < n:
            values = values_of(self.words(min(n - done, BLOCK)))
            collected[done : done + len(values)] = values
            done += len(values)
        return collected

    def _unit_normals(self, words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The values that begin in these words; the last one may draw further words from the engine.

        97 of 100 words make a value by themselves. Nearly all others make one, or none, with the next word.
        Both is decided for all words at once. The scalar method runs on the rest, in order; the further words
        that a value uses up begin no value.
        """
        byte = words.astype(np.uint8)
        x: NDArray[np.float32] = (words >> np.uint32(8)).astype(f32) * _PER_24_BITS * _NORMAL_SIGNED_X[byte]
        distance = np.abs(x)
        begins = distance < _NORMAL_INNER_X[byte]
        end = 0  # words before this position are used up

        def draw() -> int:
            nonlocal end
            end += 1
            return int(words[end - 1]) if end <= len(words) else self.word()

        slow = np.flatnonzero(~begins)
        accepted, rejected = _judged_with_next_word(words, distance, slow)
        judged = accepted | rejected
        for position, is_judged, makes in zip(slow.tolist(), judged.tolist(), accepted.tolist(), strict=True):
            if position < end:
                continue
            if is_judged:
                end, begins[position] = position + 2, makes
            else:
                end, begins[position] = position, True
                x[position] = _unit_normal(draw)
            begins[position + 1 : end] = False
        return x[begins]


def multiply_add(x: NDArray[np.float32], factor: np.float32, addend: np.float32) -> NDArray[np.float32]:
    """x * factor + addend, rounded once."""
    product = x.astype(np.float64) * np.float64(factor)  # exact: 24 + 24 bits
    total = product + np.float64(addend)
    # Rounding to double, then to float, is wrong where the first rounding ends on a tie of the second.
    tie = np.flatnonzero((total.view(np.int64) & 0x1FFFFFFF) == 0x10000000)
    if tie.size:
        rounded, terms = total[tie], product[tie]
        second = rounded - terms
        lost = (terms - (rounded - second)) + (np.float64(addend) - second)
        total[tie] = np.where(lost == 0, rounded, np.nextafter(rounded, np.copysign(np.inf, lost)))
    with np.errstate(over="ignore"):  # it gives infinity, as in C++
        return total.astype(f32)


def _bucket(last: int) -> int:
    """How many consecutive words map to one number of 0..last."""
    bucket, rest = divmod(4294967295, last + 1)
    return bucket + (rest == last)


def _ziggurat(
    x0: float, x1: float, layers: int, density: Callable[[float], float], inverse: Callable[[float], float]
) -> tuple[list[float], list[float]]:
    """Right ends x and heights y of layers of equal area under a density, from the bottom upwards."""
    area = x0 * density(x1)
    x, y = [x0, x1], [0.0, density(x1)]
    for i in range(1, layers - 1):
        y.append(y[i] + area / x[i])
        x.append(inverse(y[i + 1]))
    return [*x, 0.0], [*y, 1.0]


def _singles(values: list[float]) -> list[np.float32]:
    return [f32(value) for value in values]


def _steps(values: list[float]) -> list[np.float32]:
    """float32 of the (double) difference to the next value."""
    return [f32(after - value) for value, after in pairwise(values)]


_NORMAL_X64, _NORMAL_Y64 = _ziggurat(
    3.7130862467403632609, 3.4426198558966521214, 128,
    lambda x: math.exp(-x * x / 2), lambda y: math.sqrt(-2 * math.log(y)),
)  # fmt: skip
_NORMAL_X, _NORMAL_Y, _NORMAL_DY = _singles(_NORMAL_X64), _singles(_NORMAL_Y64), _steps(_NORMAL_Y64)
_NORMAL_DX = [-step for step in _steps(_NORMAL_X64)]
_NORMAL_XS, _NORMAL_YS, _NORMAL_DYS, _NORMAL_DXS = (
    np.array(values[:128], f32) for values in (_NORMAL_X, _NORMAL_Y, _NORMAL_DY, _NORMAL_DX)
)
_NORMAL_XS64 = np.array(_NORMAL_X64[:128])
_TAIL = _NORMAL_X[1]
# By the lower byte of a word, which holds the layer and (bit 0) the sign.
_NORMAL_SIGNED_X = np.array([x if bit else -x for x in _NORMAL_X[:128] for bit in (0, 1)], f32)
_NORMAL_INNER_X = np.array([x for x in _NORMAL_X64[1:] for _ in (0, 1)], np.float64)

_EXPONENTIAL_X64, _EXPONENTIAL_Y64 = _ziggurat(
    8.6971174701310497140, 7.6971174701310497140, 256, lambda x: math.exp(-x), lambda y: -math.log(y)
)
_EXPONENTIAL_X, _EXPONENTIAL_Y = _singles(_EXPONENTIAL_X64), _singles(_EXPONENTIAL_Y64)
_EXPONENTIAL_DX = [-step for step in _steps(_EXPONENTIAL_X64)]
_EXPONENTIAL_DY = _steps(_EXPONENTIAL_Y64)


def _unit_uniform(draw: Draw) -> np.float32:
    """A value of [0, 1)."""
    while True:
        value = f32(draw()) * _PER_32_BITS
        if value < _ONE:
            return value


def _unit_normal(draw: Draw) -> np.float32:
    """A normal value of mean 0 and standard deviation 1."""
    while True:
        word = draw()
        i, sign = (word & 255) >> 1, _ONE if word & 1 else -_ONE
        x = f32(word >> 8) * _PER_24_BITS * _NORMAL_X[i]
        if float(x) < _NORMAL_X64[i + 1]:
            return sign * x
        if i == 0:
            return sign * _normal_tail(draw)
        height = _unit_uniform(draw)
        y = _NORMAL_Y[i] + height * _NORMAL_DY[i]
        chord = _NORMAL_DX[i] * height - (_NORMAL_X[i] - x)
        tangent = y - (_NORMAL_Y[i] + (_NORMAL_X[i] - x) * _NORMAL_Y[i] * _NORMAL_X[i])
        # The density bends the other way within one standard deviation, so the two bounds swap.
        upper, lower = (chord, tangent) if _NORMAL_X64[i] >= 1 else (tangent, chord)
        if upper < 0 and (lower < 0 or y < f32(math.exp(-(x * x / _TWO)))):
            return sign * x


def _judged_with_next_word(
    words: NDArray[np.uint32], distance: NDArray[np.float32], slow: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the words at `slow` `_unit_normal` accepts with the next word, and which it rejects.

    distance   |x| of all words

    Where neither is sure, both are False: in the outermost layer, at the end, and where numpy's exponential,
    whose last bits are not always those of the C library's, could decide otherwise.
    """
    accepted, rejected = np.zeros(len(slow), np.bool_), np.zeros(len(slow), np.bool_)
    at = slow[slow < len(words) - 1]
    i = (words[at] & np.uint32(255)) >> np.uint32(1)
    x, height = distance[at], words[at + 1].astype(f32) * _PER_32_BITS
    y = _NORMAL_YS[i] + height * _NORMAL_DYS[i]
    inward = _NORMAL_XS[i] - x
    chord = _NORMAL_DXS[i] * height - inward
    tangent = y - (_NORMAL_YS[i] + inward * _NORMAL_YS[i] * _NORMAL_XS[i])
    bends = _NORMAL_XS64[i] >= 1
    upper, lower = np.where(bends, chord, tangent), np.where(bends, tangent, chord)
    density = np.exp(-(x * x / _TWO).astype(np.float64))
    usual = (i > 0) & (height < _ONE)
    accepted[: len(at)] = usual & (upper < 0) & ((lower < 0) | (y < density * (1 - 1e-6)))
    rejected[: len(at)] = usual & ((upper >= 0) | ((lower >= 0) & (y > density * (1 + 1e-6))))
    return accepted, rejected


def _normal_tail(draw: Draw) -> np.float32:
    """A normal value beyond the outermost layer, by rejection from an exponential."""
    while True:
        x = _unit_exponential(draw) / _TAIL
        y = _unit_exponential(draw)
        if _TWO * y > x * x:
            return x + _TAIL


def _unit_exponential(draw: Draw) -> np.float32:
    """An exponential value of mean 1."""
    shift = f32(0)
    while True:
        word = draw()
        i = word & 255
        x = f32(word >> 8) * _PER_24_BITS * _EXPONENTIAL_X[i]
        if x < _EXPONENTIAL_X[i + 1]:
            return shift + x
        if i == 0:  # the tail of an exponential is the exponential again
            shift += _EXPONENTIAL_X[1]
            continue
        height = _unit_uniform(draw)
        y = _EXPONENTIAL_Y[i] + height * _EXPONENTIAL_DY[i]
        upper = _EXPONENTIAL_DX[i] * height - (_EXPONENTIAL_X[i] - x)
        lower = y - (_EXPONENTIAL_Y[i + 1] + (_EXPONENTIAL_X[i + 1] - x) * _EXPONENTIAL_Y[i + 1])
        if upper < 0 and (lower < 0 or y < f32(math.exp(-x))):
            return shift + x
