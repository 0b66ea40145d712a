"""The runs behind the paper's tables and figures, and behind those of its later version.

A run is a net, a loss, a kind and a rate of label noise, and a seed. Its name says all of that, so a run that
two experiments share is trained once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from imae.prototxt.errors import ImaeError

LOSSES = ("CCE", "MAE", "IMAE")
CLEAN_T, NOISY_T = 0.5, 8.0  # the paper: fixed, for clean and for noisy labels
RATES = (0.2, 0.5, 0.8)
TEMPERATURES = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.0)  # of figures 5 to 8
HUMAN = ("aggregate", "random1", "worst")
ITERATIONS = 64000


@dataclass(frozen=True)
class Run:
    """One training on CIFAR-10.

    net           "resnet20", ...
    loss          "CCE", "MAE" or "IMAE"
    t             T of IMAE, None for the others
    noise         "none", "human", or a kind of `imae corrupt-labels`: "symmetric" includes the own class
    rate          of the noise, 0 to 1; 0 for "none" and for "human", whose rate nobody set
    human         which human annotation, "aggregate", "random1" or "worst"; "" otherwise
    seed          the solver's random_seed; the noise is drawn with seed + 122, so that seed 1 has the
                  authors' 123
    iterations    64,000 in the paper
    images        training images, 50,000 in the paper; fewer are the first ones of each class
    test_images   10,000 in the paper
    held_out      the share of the training images that is held out to choose T on, of which at most
                  `test_images` are looked at; 0 in the paper
    """

    net: str
    loss: str
    t: float | None = None
    noise: str = "none"
    rate: float = 0.0
    human: str = ""
    seed: int = 1
    iterations: int = ITERATIONS
    images: int = 50000
    test_images: int = 10000
    held_out: float = 0.0

    @property
    def name(self) -> str:
        """The stem of its files."""
        loss = self.loss.lower() if self.t is None else f"{self.loss.lower()}-{self.t:g}"
        parts = [self.net, loss, self.noise_name, f"seed{self.seed}"]
        if self.is_scaled:
            parts.append(f"{self.iterations}x{self.images}")
        if self.held_out:
            parts.append(f"heldout{100 * self.held_out:g}")
        return "_".join(parts)

    @property
    def noise_name(self) -> str:
        """The labels that it is trained with, as a part of file names."""
        if self.noise == "none":
            return "clean"
        return f"human-{self.human}" if self.noise == "human" else f"{self.noise}{100 * self.rate:g}"

    @property
    def is_scaled(self) -> bool:
        """Whether it is smaller than the paper's."""
        return (self.iterations, self.images, self.test_images) != (ITERATIONS, 50000, 10000)

    @property
    def label(self) -> str:
        """The loss as the paper writes it: CCE, MAE, IMAE-8."""
        return self.loss if self.t is None else f"{self.loss}-{self.t:g}"


@dataclass(frozen=True)
class Scale:
    """The size of a grid: iterations of each run, training images, test images."""

    iterations: int = ITERATIONS
    images: int = 50000
    test_images: int = 10000

    @classmethod
    def parse(cls, text: str) -> Scale:
        """ITERATIONS:IMAGES or ITERATIONS:IMAGES:TEST_IMAGES; ImaeError for anything else."""
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", text)
        if not found:
            raise ImaeError(
                f"--scale must be ITERATIONS:IMAGES or ITERATIONS:IMAGES:TEST_IMAGES, got {text!r}"
            )
        scale = cls(*(int(number) for number in found.groups() if number is not None))
        if not 200 <= scale.iterations <= ITERATIONS:
            raise ImaeError(f"--scale: iterations must be from 200 to {ITERATIONS}, got {scale.iterations}")
        if scale.iterations % 40:
            raise ImaeError(
                f"--scale: iterations must be a multiple of 40, so that drops and tests fall on whole ones, "
                f"got {scale.iterations}"
            )
        for what, images, most in (
            ("images", scale.images, 50000),
            ("test images", scale.test_images, 10000),
        ):
            if not 100 <= images <= most or images % 100:
                raise ImaeError(
                    f"--scale: {what} must be a multiple of 100, from 100 to {most}, got {images}"
                )
        return scale


def _losses(noisy: bool) -> list[tuple[str, float | None]]:
    return [(loss, (NOISY_T if noisy else CLEAN_T) if loss == "IMAE" else None) for loss in LOSSES]


def table_1() -> list[Run]:
    """Clean labels: ResNet-20, 32, 56."""
    return [
        Run(net, loss, t) for net, (loss, t) in product(("resnet20", "resnet32", "resnet56"), _losses(False))
    ]


def table_2() -> list[Run]:
    """Labels replaced at random, the own class included: ResNet-20, 32. Figures 3 and 4 are of these runs."""
    return [
        Run(net, loss, t, "symmetric", rate)
        for net, rate, (loss, t) in product(("resnet20", "resnet32"), RATES, _losses(True))
    ]


def figures_6_7() -> list[Run]:
    """IMAE with every T, on clean and on half-noisy labels; figure 8 is of the latter, T = 16, 8, 4."""
    return [
        Run("resnet20", "IMAE", t, *noise)
        for noise, t in product((("none", 0.0), ("symmetric", 0.5)), TEMPERATURES)
    ]


def figure_8() -> list[Run]:
    """T = 16, 8, 4 on half-noisy labels."""
    return [run for run in figures_6_7() if run.rate and run.t is not None and run.t >= 4]


def human_noise() -> list[Run]:
    """CIFAR-10N: what people answered when asked for the labels."""
    return [
        Run("resnet20", loss, t, "human", human=human) for human, (loss, t) in product(HUMAN, _losses(True))
    ]


def later_table_6() -> list[Run]:
    """The later version's table: symmetric noise to the other classes, ResNet-20 and 56."""
    return [
        Run(net, loss, t, "symmetric-exclusive" if rate else "none", rate)
        for net, rate in product(("resnet20", "resnet56"), (0.0, 0.4, 0.8))
        for loss, t in _losses(rate > 0)
    ]


def choose_t() -> list[Run]:
    """T on a fifth of the training images that is held out, half of the labels wrong."""
    return [Run("resnet20", "IMAE", t, "symmetric", 0.5, held_out=0.2) for t in TEMPERATURES]


GRIDS = {
    "table1": table_1,
    "table2": table_2,
    "figure3": table_2,
    "figure4": table_2,
    "figure6": figures_6_7,
    "figure7": figures_6_7,
    "figure8": figure_8,
    "human-noise": human_noise,
    "later-tables": later_table_6,
    "choose-t": choose_t,
}


def runs(
    experiments: Iterable[str], seeds: Iterable[int], scale: Scale, only: Iterable[str] = ()
) -> list[Run]:
    """The runs of these experiments (of GRIDS), each once; `only` keeps names with one of these words."""
    size = {"iterations": scale.iterations, "images": scale.images, "test_images": scale.test_images}
    found: dict[str, Run] = {}
    words = tuple(only)
    for seed in seeds:
        for experiment in experiments:
            for run in GRIDS[experiment]():
                sized = Run(**{**vars(run), **size, "seed": seed})
                if not words or any(word in sized.name for word in words):
                    found.setdefault(sized.name, sized)
    return list(found.values())
