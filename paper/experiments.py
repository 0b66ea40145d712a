"""The runs of the paper's tables and figures, and of those in its later version.

A run has a net, a loss, a kind and a rate of label noise, and a seed. Its name contains all of these, so a
run that two experiments share is trained once. A variant differs from the paper's run in one choice that the
paper leaves open or that its authors changed later; its name contains that choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import NamedTuple

from imae.files.errors import ImaeError

LOSSES = ("CCE", "MAE", "IMAE")
LATER_LOSSES = (*LOSSES, "GCE")  # of the authors' later runs
CLEAN_T, NOISY_T = 0.5, 8.0  # the paper's fixed T for clean and for noisy labels
RATES = (0.2, 0.5, 0.8)
TEMPERATURES = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.0)  # of figures 5 to 8
HUMAN = ("aggregate", "random1", "worst")
ITERATIONS = 64000
WEIGHT_DECAY, BASE_LR = 0.0001, 0.1
EPSILON = 1e-6  # of the authors' layer
LATER_DECAY = 0.0005  # of the authors' later runs
LATER_ITERATIONS = 30000
LATER_RATES = (0.0, 0.2, 0.4, 0.6)  # of the authors' logs: symmetric noise to the other classes
LATER_ASYMMETRIC_RATES = (0.2, 0.3, 0.4)  # of their table 4, which does not say IMAE's T
LATER_T = {0.0: 6.0, 0.2: 8.0, 0.4: 8.0, 0.6: 2.0}  # of IMAE in their logs
LONG = 8000  # runs of at least this many iterations have a test and a snapshot every 1,000
LONG_RUN_DECAY = 0.01  # with it, rate x decay x iterations in 640 iterations is that of the paper's 64,000
# The types that each annotation of a Run's field allows, and their name in errors. A bool is not a number.
VALUES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number, or null"),
}
# Fields of a Run that make it a variant.
VARYING = ("normalizer", "epsilon", "authors_loss", "weight_decay", "base_lr", "order", "padding")


class Choices(NamedTuple):
    """A protocol's values for the choices that the paper leaves open; see Run."""

    order: str
    padding: str
    normalizer: str
    epsilon: float
    weight_decay: float = WEIGHT_DECAY
    iterations: int = ITERATIONS


# 1: the first, scaled-down runs. 2: all other runs on CIFAR-10; order and padding are those of He et al.,
# IMAE's arithmetic is that of the authors' layer. 3: the authors' later runs on CIFAR-100, with their net,
# their layers, their batches of 32 classes x 8 images, and their crops.
PROTOCOLS = {
    1: Choices("SEQUENTIAL", "BEFORE_MEAN", "BATCH_SIZE", 0.0),
    2: Choices("SHUFFLED", "AFTER_MEAN", "SUM_OF_WEIGHTS", EPSILON),
    3: Choices("CLASS_BALANCED", "RESIZED", "SUM_OF_WEIGHTS", EPSILON, LATER_DECAY, LATER_ITERATIONS),
}
LATER = 3


@dataclass(frozen=True)
class Run:
    """One training on CIFAR-10; in protocol 3 on CIFAR-100.

    net           "resnet20", ...
    loss          "CCE", "MAE" or "IMAE"; in protocol 3 "GCE", too
    t             T of IMAE, None for the others
    noise         "none", "human", or a kind of `imae corrupt-labels`: "symmetric" includes the right class
    rate          of the noise, 0 to 1; 0 for "none" and for "human", whose rate is not a parameter
    human         the human annotation, "aggregate", "random1" or "worst"; "" otherwise
    seed          the solver's random_seed; the noise is drawn with seed + 122, so that seed 1 has the
                  authors' 123
    iterations    64,000 in the paper
    images        training images, 50,000 in the paper; a smaller number takes the first ones of each class
    test_images   10,000 in the paper
    held_out      the share of the training images that is held out to choose T on; at most `test_images`
                  of them are tested; 0 in the paper

    precision     precision of convolutions and matrix products: "fp32", "tf32" or "bf16"
    protocol      the one of PROTOCOLS that gives the following fields their defaults, for "" and None

    A run is a variant if one of these differs from the protocol's value:
    normalizer    divisor of MAE's and IMAE's gradients: "BATCH_SIZE" as in the paper, or "SUM_OF_WEIGHTS".
                  The protocol's value is for IMAE; other losses divide by the batch size
    epsilon       of IMAE, 0 for the exact form; None for other losses
    authors_loss  whether IMAE is computed by the layer of the authors' later code, UnifiedWeightLoss
    weight_decay  0.0001 in the paper
    base_lr       0.1 in the paper
    order         of the images: "SEQUENTIAL", as Caffe reads an LMDB; "SHUFFLED" in each epoch; or
                  "CLASS_BALANCED": 8 classes x 16 images, by the labels that are trained on (protocol 3: 32
                  classes x 8 images)
    padding       "AFTER_MEAN": the mean image is subtracted, then 4 zeros are put on each side, as He et al.
                  did; "BEFORE_MEAN": 4 black pixels, then each channel's mean is subtracted; "RESIZED", of
                  protocol 3: no padding, but images resized to 36x36
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
    precision: str = "fp32"
    protocol: int = 2
    normalizer: str = ""
    epsilon: float | None = None
    authors_loss: bool = False
    weight_decay: float = WEIGHT_DECAY
    base_lr: float = BASE_LR
    order: str = ""
    padding: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (types, words) = getattr(self, field.name), VALUES[str(field.type)]
            if type(value) not in types:
                raise ImaeError(f"{field.name} of a run must be {words}, got {value!r}")
        if not re.fullmatch(r"resnet[0-9]{1,4}", self.net):
            raise ImaeError(f"net of a run must be resnet20 or the like, got {self.net!r}")
        if not 1 <= self.iterations < 2**31:
            raise ImaeError(f"iterations of a run must be from 1 to {2**31 - 1}, got {self.iterations}")
        if not 0 <= self.held_out < 1:
            raise ImaeError(f"held_out of a run must be a share below 1, got {self.held_out}")
        if self.protocol not in PROTOCOLS:
            raise ImaeError(f"protocol must be {', '.join(map(str, PROTOCOLS))}, got {self.protocol}")
        losses = LATER_LOSSES if self.protocol == LATER else LOSSES
        if self.loss not in losses:
            raise ImaeError(f"loss of a run must be {', '.join(losses)}, got {self.loss!r}")
        for name, own in self._own_choices.items():
            if getattr(self, name) in ("", None):
                object.__setattr__(self, name, own)  # the class is frozen

    @property
    def _own_choices(self) -> dict[str, str | float | None]:
        """The protocol's values for this loss."""
        choices: dict[str, str | float | None] = PROTOCOLS[self.protocol]._asdict()
        del choices["weight_decay"], choices["iterations"]
        if self.loss != "IMAE":
            choices |= {"normalizer": "BATCH_SIZE", "epsilon": None}
        return choices

    @property
    def name(self) -> str:
        """The stem of its files. From protocol 2 on it contains every choice, even if it is a default."""
        loss = self.loss.lower() if self.t is None else f"{self.loss.lower()}-{self.t:g}"
        data = ["cifar100"] if self.protocol == LATER else []
        parts = [*data, self.net, loss, self.noise_name, f"seed{self.seed}"]
        if self.is_scaled:
            parts.append(f"{self.iterations}x{self.images}")
        if self.held_out:
            parts.append(f"heldout{100 * self.held_out:g}")
        if self.protocol == 1:
            return "_".join([*parts, *self.changes])
        parts += [_words(self.order), _words(self.padding)]
        parts += [] if self.loss == "CCE" else [_words(self.normalizer)]
        parts += [] if self.epsilon is None else [f"epsilon{self.epsilon:g}"]
        return "_".join([*parts, *self._free_changes, self.precision])

    @property
    def changes(self) -> list[str]:
        """The choices that make it a variant, as parts of file names; none for the protocol's own runs."""
        own = self._own_choices
        changes = [] if self.normalizer == own["normalizer"] else [_words(self.normalizer)]
        changes += [] if self.epsilon == own["epsilon"] else [f"epsilon{self.epsilon:g}"]
        changes += self._free_changes
        changes += [] if self.order == own["order"] else [_words(self.order)]
        return changes + ([] if self.padding == own["padding"] else [_words(self.padding)])

    @property
    def _free_changes(self) -> list[str]:
        """The changes in fields that no protocol sets."""
        changes = ["authors-loss"] if self.authors_loss else []
        own = PROTOCOLS[self.protocol].weight_decay
        changes += [f"decay{self.weight_decay:g}"] if self.weight_decay != own else []
        return changes + ([f"rate{self.base_lr:g}"] if self.base_lr != BASE_LR else [])

    @property
    def base(self) -> Run:
        """The protocol's own run that this run is a variant of."""
        decay = PROTOCOLS[self.protocol].weight_decay
        own = Run(self.net, self.loss, protocol=self.protocol, weight_decay=decay)
        return replace(self, **{field: getattr(own, field) for field in VARYING})

    def under(self, protocol: int) -> Run:
        """The same run in another protocol: fields with this protocol's value get the other's value."""
        own = self._own_choices
        blank = {
            field: None if field == "epsilon" else "" for field in own if getattr(self, field) == own[field]
        }
        return replace(self, protocol=protocol, **blank)  # type: ignore[arg-type]  # fields by name

    @property
    def noise_name(self) -> str:
        """The labels that it is trained on, as a part of file names."""
        if self.noise == "none":
            return "clean"
        return f"human-{self.human}" if self.noise == "human" else f"{self.noise}{100 * self.rate:g}"

    @property
    def is_scaled(self) -> bool:
        """Whether it is smaller than the paper's."""
        full = PROTOCOLS[self.protocol].iterations
        return (self.iterations, self.images, self.test_images) != (full, 50000, 10000)

    @property
    def label(self) -> str:
        """The loss as the paper writes it: CCE, MAE, IMAE-8."""
        return self.loss if self.t is None else f"{self.loss}-{self.t:g}"


def _words(choice: str) -> str:
    """A choice as a part of a file name."""
    return choice.lower().replace("_", "-")


@dataclass(frozen=True)
class Scale:
    """The size of a grid: iterations of each run, training images, test images."""

    iterations: int = ITERATIONS
    images: int = 50000
    test_images: int = 10000

    @classmethod
    def parse(cls, text: str) -> Scale:
        """ITERATIONS:IMAGES or ITERATIONS:IMAGES:TEST_IMAGES; ImaeError for anything else."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", text)
        if not match:
            raise ImaeError(
                f"--scale must be ITERATIONS:IMAGES or ITERATIONS:IMAGES:TEST_IMAGES, got {text!r}"
            )
        scale = cls(*(int(number) for number in match.groups() if number is not None))
        if not 200 <= scale.iterations <= ITERATIONS:
            raise ImaeError(f"--scale: iterations must be from 200 to {ITERATIONS}, got {scale.iterations}")
        if scale.iterations % 40:
            raise ImaeError(
                f"--scale: iterations must be a multiple of 40, so that drops and tests fall on whole ones, "
                f"got {scale.iterations}"
            )
        if scale.iterations > LONG and scale.iterations % 1000:
            raise ImaeError(
                f"--scale: above {LONG} iterations, tests and snapshots come every 1000, so iterations must "
                f"be a multiple of 1000, got {scale.iterations}"
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
    """Labels replaced at random, by any class: ResNet-20, 32. Figures 3 and 4 show these runs."""
    return [
        Run(net, loss, t, "symmetric", rate)
        for net, rate, (loss, t) in product(("resnet20", "resnet32"), RATES, _losses(True))
    ]


def figures_6_7() -> list[Run]:
    """IMAE with every T, on clean and on half-noisy labels; figure 8 shows the latter, T = 16, 8, 4."""
    return [
        Run("resnet20", "IMAE", t, *noise)
        for noise, t in product((("none", 0.0), ("symmetric", 0.5)), TEMPERATURES)
    ]


def figure_8() -> list[Run]:
    """T = 16, 8, 4 on half-noisy labels."""
    return [run for run in figures_6_7() if run.rate and run.t is not None and run.t >= 4]


def human_noise() -> list[Run]:
    """CIFAR-10N: labels given by people."""
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


def cifar100() -> list[Run]:
    """The authors' later runs: symmetric noise to the other classes as in their logs, and asymmetric noise.

    They do not say the T of their runs with asymmetric noise; here it is 8.
    """
    noises = [("symmetric-exclusive" if rate else "none", rate, LATER_T[rate]) for rate in LATER_RATES]
    noises += [("asymmetric-cifar100", rate, NOISY_T) for rate in LATER_ASYMMETRIC_RATES]
    return [later_run(loss, t, noise, rate) for noise, rate, t in noises for loss in LATER_LOSSES]


def later_run(loss: str, t: float, noise: str, rate: float) -> Run:
    """A run of the authors' later protocol; `t` is for IMAE."""
    own = PROTOCOLS[LATER]
    return Run(
        "resnet44",
        loss,
        t if loss == "IMAE" else None,
        noise,
        rate,
        iterations=own.iterations,
        protocol=LATER,
        weight_decay=own.weight_decay,
    )


def choose_t() -> list[Run]:
    """Runs to choose T on a held-out fifth of the training images, with 50 % noise."""
    return [Run("resnet20", "IMAE", t, "symmetric", 0.5, held_out=0.2) for t in TEMPERATURES]


def arithmetic() -> list[Run]:
    """IMAE-8 with and without the epsilon, divided by the batch size or by the sum of the weights.

    The hypotheses about them are in suspects.py.
    """
    return [
        Run("resnet20", "IMAE", NOISY_T, "symmetric", rate, normalizer=normalizer, epsilon=epsilon)
        for epsilon, rate, normalizer in product((EPSILON, 0.0), (0.5, 0.8), ("SUM_OF_WEIGHTS", "BATCH_SIZE"))
    ]


def suspects() -> list[Run]:
    """Variants that test why a claim does not hold in scaled-down runs, and their bases, all in protocol 1.

    The hypotheses about them are in suspects.py.
    """
    clean = Run("resnet20", "IMAE", CLEAN_T, protocol=1)
    suspected = [
        clean,
        replace(clean, authors_loss=True),
        replace(clean, weight_decay=LONG_RUN_DECAY),
        replace(clean, base_lr=BASE_LR / 10),
    ]
    for rate in (0.5, 0.8):
        cce, mae, imae = (
            Run("resnet20", loss, t, "symmetric", rate, protocol=1) for loss, t in _losses(True)
        )
        suspected += [cce, imae, replace(imae, normalizer="SUM_OF_WEIGHTS"), replace(imae, authors_loss=True)]
        suspected += [replace(run, weight_decay=LONG_RUN_DECAY) for run in (cce, imae)]
        if rate == 0.5:
            suspected += [mae, replace(mae, normalizer="SUM_OF_WEIGHTS")]
            suspected += [replace(run, order="CLASS_BALANCED") for run in (cce, imae)]
            suspected += [replace(run, order="SHUFFLED") for run in (cce, imae)]
            suspected += [replace(imae, weight_decay=LATER_DECAY)]
    return suspected


def variants() -> list[Run]:
    """The runs of `suspects` that are variants."""
    return [run for run in suspects() if run.changes]


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
    "cifar100": cifar100,
    "choose-t": choose_t,
    "suspects": suspects,
    "arithmetic": arithmetic,
}


def training_command(experiment: str) -> str:
    """What trains the runs of one of GRIDS, at the paper's size."""
    data = "--cifar100 PATH" if experiment == "cifar100" else "--cifar10 PATH"
    human = " --human-labels CIFAR-10N.npz" if experiment == "human-noise" else ""
    return f"imae paper {experiment} {data}{human}"


def runs(
    experiments: Iterable[str],
    seeds: Iterable[int],
    scale: Scale,
    only: Iterable[str] = (),
    precision: str = "fp32",
) -> list[Run]:
    """The runs of these experiments (of GRIDS), each once; with `only`, names must have one of its words.

    At the paper's scale, Scale(), each has the size that its protocol gives it.
    """
    size = {**({} if scale == Scale() else vars(scale)), "precision": precision}
    by_name: dict[str, Run] = {}
    words = tuple(only)
    for seed in seeds:
        for experiment in experiments:
            for run in GRIDS[experiment]():
                sized = Run(**{**vars(run), **size, "seed": seed})
                if not words or any(word in sized.name for word in words):
                    by_name.setdefault(sized.name, sized)
    return list(by_name.values())
