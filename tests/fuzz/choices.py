"""Make files by random choices that are recorded, so that a file can be made again, or made smaller."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Draw:
    """Makes choices: random ones, or those of a sequence and after its end always the first option.

    made   the choices so far, as numbers from 0
    """

    def __init__(self, source: Random | Sequence[int]) -> None:
        self._random = source if isinstance(source, Random) else None
        self._given = iter(() if isinstance(source, Random) else source)
        self.made: list[int] = []

    def __call__(self, make: Callable[[Draw], T]) -> T:
        return make(self)

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        if self._random is not None:
            choice = self._random.randrange(count)
        else:
            choice = min(next(self._given, 0), count - 1)
        self.made.append(choice)
        return choice

    def number(self, first: int, last: int) -> int:
        """A number from `first` to `last`."""
        return first + self.below(last - first + 1)

    def coin(self) -> bool:
        """True or False."""
        return self.below(2) == 1

    def item(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def index(self, items: Sequence[object]) -> int:
        """The index of one of `items`."""
        return self.below(len(items))

    def data(self, shortest: int, longest: int) -> bytes:
        """From `shortest` to `longest` bytes."""
        return bytes(self.below(256) for _ in range(self.number(shortest, longest)))


Files = Callable[[Draw], bytes]


def choosing(make: Callable[Concatenate[Draw, P], T]) -> Callable[P, Callable[[Draw], T]]:
    """Decorator: calling the function without its Draw returns a function of the Draw."""

    @functools.wraps(make)
    def bound(*args: P.args, **kwargs: P.kwargs) -> Callable[[Draw], T]:
        return lambda draw: make(draw, *args, **kwargs)

    return bound


def either(*files: Files) -> Files:
    """Make a file by one of these functions."""
    return lambda draw: draw(draw.item(files))


def simpler(made: Sequence[int]) -> Iterator[list[int]]:
    """Choices that may make a smaller file: some left out, some replaced by 0, or single ones made smaller."""
    for size in (len(made) // 2, 16, 8, 4, 2, 1):
        for at in range(0, len(made), max(size, 1)):
            yield [*made[:at], *made[at + size :]]
    for size in (8, 4, 2, 1):
        for at in range(0, len(made), size):
            if any(made[at : at + size]):
                yield [*made[:at], *[0] * len(made[at : at + size]), *made[at + size :]]
    for at, choice in enumerate(made):
        for less in {choice // 2, choice - 1} - {0, -1, choice}:
            yield [*made[:at], less, *made[at + 1 :]]
