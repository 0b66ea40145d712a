"""What the paper claims, and whether it holds: in the paper's own tables, and in ours.

A claim is a list of comparisons of quantities (accuracies, differences of accuracies), all of which must be
true. Means over seeds are compared. Words such as "much" and "almost" need a bound, which is part of the
claim. Bounds for claims about tables 1 and 2 are met by the numbers in these tables wherever they can be;
bounds for figures, which print no numbers, are our choice. "Significantly smaller" than CCE's fall is taken
for at most half of it, which one of the twelve falls in table 2 is not (3.4 of 3.9), "much" for three points,
by which one of the six leads on the intact labels falls short (2.9, ResNet-32, 20 %). A comparison is narrow
if its values differ from the bound by less than two standard errors (`Sample.error`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple, Protocol

from imae.paper.expected import paper_later_table_6, paper_tables_1_2
from imae.paper.experiments import (
    HUMAN,
    RATES,
    TEMPERATURES,
    Run,
    choose_t,
    figures_6_7,
    human_noise,
    later_table_6,
    table_1,
    table_2,
    training_command,
)
from imae.paper.results import Results, Sample, net_words, noise_words

HELD, NOT_HELD, NO_DATA = "held", "not held", "no data"
OURS = "ours"  # how the source of a claim begins that nobody but us makes

MUCH_HIGHER = 3.0  # points; CCE's smallest fall in table 2 is 3.9
ALMOST_SAME = 0.5  # MAE's largest fall in table 2 is 0.3
COMPETITIVE = 1.0  # IMAE is at most 0.4 below CCE in table 1
SIGNIFICANT = 1.0  # IMAE is at least 1.5 above MAE in table 1
AT_HIGHEST = 1.0  # figure 3
ALIKE = 2.0  # "similar", "similarly" in the text on figures that print no numbers


class Elsewhere(NamedTuple):
    """What a number belongs to if it is none of our runs: a loss on another data set, a curve of weights."""

    of: str
    loss: str
    noise: str = ""

    @property
    def label(self) -> str:
        """The loss."""
        return self.loss


Key = Run | Elsewhere


class Source(Protocol):
    """Where numbers come from: our results, the paper's tables, the authors' logs.

    digits   decimals to print
    """

    @property
    def digits(self) -> int: ...

    def sample(self, run: Key, measure: str) -> Sample | None:
        """A measure of a run, or None."""


class Printed:
    """Numbers that are given, such as those that a paper prints."""

    def __init__(
        self, numbers: Mapping[Run, Mapping[str, float]] | Mapping[Key, Mapping[str, float]], digits: int = 1
    ) -> None:
        self._numbers: dict[Key, Mapping[str, float]] = dict(numbers.items())
        self.digits = digits

    def sample(self, run: Key, measure: str) -> Sample | None:
        """The printed number of a run; `fall` is the difference of the printed best and final."""
        numbers = self._numbers.get(run, {})
        if measure == "fall" and measure not in numbers and {"best", "final"} <= set(numbers):
            return Sample((numbers["best"] - numbers["final"],))
        return Sample((numbers[measure],)) if measure in numbers else None


PAPER, LATER = Printed(paper_tables_1_2()), Printed(paper_later_table_6())


class Value(NamedTuple):
    """A quantity's value and rough standard error, in points, and its smallest number of seeds."""

    value: float
    error: float
    seeds: int


@dataclass(frozen=True)
class Quantity:
    """A compared quantity: a function of measures of some runs, all of them the same kind of number."""

    label: str
    parts: tuple[tuple[Key, str], ...]
    combine: Callable[[Sequence[float]], float]

    def value(self, source: Source) -> Value | None:
        """The quantity in the numbers of `source`; None if a part is missing."""
        samples = [sample for part in self.parts if (sample := source.sample(*part)) is not None]
        if len(samples) < len(self.parts):
            return None
        value = self.combine([sample.mean for sample in samples])
        error = math.sqrt(sum(sample.error**2 for sample in samples))
        return Value(round(value, 6), error, min(len(sample.values) for sample in samples))


def measured(run: Key, measure: str, label: str = "") -> Quantity:
    """One measure of one run."""
    return Quantity(label or run.label, ((run, measure),), lambda values: values[0])


def lead(run: Key, others: Sequence[Key], measure: str, label: str = "") -> Quantity:
    """How far a run is above the best of the others; by default it is labelled with the run's noise."""
    parts = tuple((part, measure) for part in (run, *others))
    label = label or (noise_words(run) if isinstance(run, Run) else run.noise)
    return Quantity(label, parts, lambda values: values[0] - max(values[1:]))


def half_of(run: Key, measure: str) -> Quantity:
    """Half of a measure of one run."""
    return Quantity(f"half of {run.label}'s", ((run, measure),), lambda values: values[0] / 2)


def difference_between(runs: Sequence[Run], measure: str, label: str) -> Quantity:
    """The largest minus the smallest."""
    return Quantity(label, tuple((run, measure) for run in runs), lambda values: max(values) - min(values))


class Comparison(NamedTuple):
    """left - right, or left if there is no right, is `sign` (>, <, ≥, ≤) the bound."""

    left: Quantity
    sign: str
    bound: float
    right: Quantity | None = None


SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    "≥": operator.ge,
    "≤": operator.le,
}


class Verdict(NamedTuple):
    """Whether a claim holds: HELD, NOT_HELD or NO_DATA; the numbers; whether the decision is narrow."""

    verdict: str
    numbers: str = ""
    narrow: bool = False

    @property
    def words(self) -> str:
        """The verdict, with ", narrowly" if it is narrow."""
        return f"{self.verdict}, narrowly" if self.narrow else self.verdict


@dataclass(frozen=True)
class Claim:
    """A claim about one net and noise rate, or across several.

    text         the claim; claims about different nets and rates share a text
    where        the net and the noise that it is about
    source       where the paper makes it
    shown        the tables and figures that it is listed with
    comparisons  all of them must be true
    printed      the paper's numbers to check it against; None if there is only a figure
    """

    text: str
    where: str
    source: str
    shown: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    printed: Printed | None = None

    def check(self, source: Source) -> Verdict:
        """Whether it holds in these numbers."""
        numbers: dict[str, str] = {}
        outcomes: list[tuple[bool, bool]] = []  # of each comparison: whether it is true, whether it is narrow
        for left, sign, bound, right in self.comparisons:
            quantities = [left] if right is None else [left, right]
            values = [value for quantity in quantities if (value := quantity.value(source)) is not None]
            if len(values) < len(quantities):
                return Verdict(NO_DATA)
            difference = round(values[0].value - (values[1].value if right else 0.0), 6)
            error = math.hypot(*(value.error for value in values))
            outcomes.append((SIGNS[sign](difference, bound), abs(difference - bound) < 2 * error))
            for quantity, value in zip(quantities, values, strict=True):
                numbers[quantity.label] = f"{quantity.label} {value.value:.{source.digits}f}"
        held = all(true for true, _ in outcomes)
        narrow = (
            any(close for _, close in outcomes)
            if held
            else all(close for true, close in outcomes if not true)
        )
        return Verdict(HELD if held else NOT_HELD, ", ".join(numbers.values()), narrow)

    def in_paper(self) -> Verdict:
        """Whether it holds in the numbers that the paper prints."""
        return self.check(self.printed) if self.printed else Verdict(NO_DATA)

    @property
    def whose(self) -> str:
        """Who makes it: the paper, its later version, or this reproduction."""
        if self.source.startswith(OURS):
            return OURS
        return "the later version's" if self.source.startswith("later version") else "the paper's"

    @property
    def command(self) -> str:
        """What trains the runs that it needs."""
        return training_command(self.shown[0])

    @property
    def runs(self) -> set[Run]:
        """The runs whose numbers it compares."""
        quantities = (q for c in self.comparisons for q in (c.left, c.right) if q is not None)
        return {run for quantity in quantities for run, _ in quantity.parts if isinstance(run, Run)}

    @property
    def counts(self) -> bool:
        """Whether it tells for or against the paper: its own claims, where its own numbers hold them."""
        return self.whose != OURS and self.in_paper().verdict != NOT_HELD


def above(run: Key, others: Iterable[Key], measure: str, by: float = 0.0) -> tuple[Comparison, ...]:
    """The run's measure is above that of each other run, by at least `by`."""
    sign = "≥" if by else ">"
    return tuple(Comparison(measured(run, measure), sign, by, measured(other, measure)) for other in others)


def _trio(runs: Iterable[Run], **fields: object) -> tuple[Run, Run, Run]:
    """CCE, MAE and IMAE of one net and noise: the runs of a grid with these values of `fields`."""
    by_loss = {r.loss: r for r in runs if all(getattr(r, field) == value for field, value in fields.items())}
    return by_loss["CCE"], by_loss["MAE"], by_loss["IMAE"]


Row = tuple[str, str, tuple[str, ...], tuple[Comparison, ...]]  # text, source, shown, comparisons


def _claims(where: str, printed: Printed | None, rows: Iterable[Row]) -> list[Claim]:
    """Claims about one net and noise."""
    return [
        Claim(text, where, source, shown, comparisons, printed) for text, source, shown, comparisons in rows
    ]


def _noisy_claims() -> list[Claim]:
    """Section 5.1.2: table 2, figures 3 and 4."""
    claims, section = [], "section 5.1.2"
    tested, fitted, across = ("table2", "figure4"), ("table2", "figure3"), ("table2", "figure4")
    nets = ("resnet20", "resnet32")
    for net, rate in product(nets, RATES):
        cce, mae, imae = trio = _trio(table_2(), net=net, rate=rate)
        fall = {run: measured(run, "fall") for run in trio}
        printed: list[Row] = [
            (
                "IMAE's final test accuracy is above CCE's and MAE's",
                "introduction, table 2",
                tested,
                above(imae, (cce, mae), "final"),
            ),
            (
                "IMAE's best test accuracy is above CCE's and MAE's",
                "introduction, table 2",
                tested,
                above(imae, (cce, mae), "best"),
            ),
            (
                f"CCE's best test accuracy is much above its final one ({MUCH_HIGHER:g} points or more)",
                section,
                tested,
                (Comparison(fall[cce], "≥", MUCH_HIGHER),),
            ),
            (
                "The fall from best to final is smaller for MAE and IMAE than for CCE",
                section,
                tested,
                tuple(Comparison(fall[cce], ">", 0, fall[run]) for run in (mae, imae)),
            ),
            (
                "The fall is significantly smaller for MAE and IMAE than for CCE (at most half of it)",
                section,
                tested,
                tuple(Comparison(fall[run], "≤", 0, half_of(cce, "fall")) for run in (mae, imae)),
            ),
            (
                f"MAE's final test accuracy is almost its best (within {ALMOST_SAME:g} points)",
                section,
                tested,
                (Comparison(fall[mae], "≤", ALMOST_SAME),),
            ),
            (
                "CCE fits the corrupted labels much better than MAE and IMAE "
                f"({MUCH_HIGHER:g} points or more)",
                section,
                fitted,
                above(cce, (mae, imae), "corrupted", MUCH_HIGHER),
            ),
            (
                "MAE underfits: its accuracy on the corrupted labels is much lower than CCE's and IMAE's "
                f"({MUCH_HIGHER:g} points or more; the paper excepts ResNet-20, 20 %)",
                section,
                fitted,
                above(cce, (mae,), "corrupted", MUCH_HIGHER) + above(imae, (mae,), "corrupted", MUCH_HIGHER),
            ),
            (
                "MAE underfits: its best test accuracy is much lower than CCE's and IMAE's "
                f"({MUCH_HIGHER:g} points or more; the paper excepts ResNet-20, 20 %)",
                section,
                tested,
                above(cce, (mae,), "best", MUCH_HIGHER) + above(imae, (mae,), "best", MUCH_HIGHER),
            ),
            *(
                (
                    f"MAE works much worse than CCE: its {measure} test accuracy is lower by "
                    f"{MUCH_HIGHER:g} points or more",
                    "abstract",
                    tested,
                    above(cce, (mae,), measure, MUCH_HIGHER),
                )
                for measure in ("best", "final")
            ),
            (
                "On the intact training labels IMAE is much higher than CCE and MAE "
                f"({MUCH_HIGHER:g} points or more; the paper excepts ResNet-20, 20 %)",
                "supplement 4, table 2",
                ("table2",),
                above(imae, (cce, mae), "intact", MUCH_HIGHER),
            ),
        ]
        below = measured(cce, "short of highest", "CCE below its highest by")
        drawn: Row = (
            "CCE fits the corrupted labels ever better: it ends at its highest "
            f"(within {AT_HIGHEST:g} point)",
            f"{section}, figure 3",
            ("figure3",),
            (Comparison(below, "≤", AT_HIGHEST),),
        )
        where = f"{net_words(net)}, {noise_words(cce)}"
        claims += _claims(where, PAPER, printed) + _claims(where, None, [drawn])
    for net in nets:
        trios = [_trio(table_2(), net=net, rate=rate) for rate in RATES]
        falls = [measured(cce, "fall", noise_words(cce)) for cce, _, _ in trios]
        leads = [lead(imae, (cce, mae), "final") for cce, mae, imae in trios]
        gaps = [lead(cce, (mae,), "corrupted") for cce, mae, _ in trios]
        rows: list[Row] = [
            ("CCE's fall grows with the noise rate", section, across, growing(falls)),
            (
                "MAE underfits when the noise rate is high: on the corrupted labels, how far it is below CCE "
                "grows with the rate",
                "abstract",
                ("table2", "figure3"),
                growing(gaps),
            ),
            (
                "IMAE's lead in final test accuracy grows with the noise rate",
                "introduction",
                across,
                growing(leads),
            ),
        ]
        claims += _claims(net_words(net), PAPER, rows)
    for rate in RATES:
        by_net = [_trio(table_2(), net=net, rate=rate)[0] for net in nets]
        falls = [measured(run, "fall", net_words(run.net)) for run in by_net]
        row: Row = ("CCE's fall is larger in the deeper net", section, across, growing(falls))
        claims += _claims(noise_words(by_net[0]), PAPER, [row])
    return claims


def growing(quantities: Sequence[Quantity]) -> tuple[Comparison, ...]:
    """Each quantity is larger than the one before."""
    return tuple(Comparison(a, "<", 0, b) for a, b in pairwise(quantities))


def _clean_claims() -> list[Claim]:
    """Section 5.1.1: table 1."""
    claims, source, shown = [], "section 5.1.1", ("table1",)
    for net in ("resnet20", "resnet32", "resnet56"):
        cce, mae, imae = _trio(table_1(), net=net)
        rows: list[Row] = [
            (
                f"IMAE is competitive with CCE on clean labels (at most {COMPETITIVE:g} point below)",
                source,
                shown,
                above(imae, (cce,), "final", -COMPETITIVE),
            ),
            (
                f"IMAE is significantly above MAE on clean labels ({SIGNIFICANT:g} point or more)",
                source,
                shown,
                above(imae, (mae,), "final", SIGNIFICANT),
            ),
        ]
        claims += _claims(f"{net_words(net)}, clean", PAPER, rows)
    return claims


def _temperature_claims() -> list[Claim]:
    """Supplement 2 to 4: figures 6 to 8, which print no numbers."""
    clean = {run.t: run for run in figures_6_7() if not run.rate}
    noisy = {run.t: run for run in figures_6_7() if run.rate}
    to_8, to_4 = ([t for t in TEMPERATURES if t <= highest] for highest in (8, 4))

    def lowest(t: float, measure: str) -> tuple[Comparison, ...]:
        return tuple(c for other in to_8 for c in above(clean[other], (clean[t],), measure))

    def alike(runs: Sequence[Run], measure: str) -> tuple[Comparison, ...]:
        return (Comparison(difference_between(runs, measure, "largest difference"), "≤", ALIKE),)

    figure_6, figure_7, figure_8 = ("figure6",), ("figure7",), ("figure8",)
    on_clean: list[Row] = [
        (
            f"With T from 0 to 8 the final test accuracies are similar (within {ALIKE:g} points)",
            "supplement 2.1",
            figure_6,
            alike([clean[t] for t in to_8], "final"),
        ),
        ("T = 16 has the lowest final test accuracy", "supplement 2.1", figure_6, lowest(16, "final")),
        (
            f"With T from 0 to 8 the training labels are fitted similarly (within {ALIKE:g} points)",
            "supplement 3.1",
            figure_7,
            alike([clean[t] for t in to_8], "corrupted"),
        ),
        (
            "T = 16 underfits: its training accuracy is the lowest",
            "supplement 3.1",
            figure_7,
            lowest(16, "corrupted"),
        ),
    ]
    by_t = [noisy[t] for t in reversed(TEMPERATURES)]
    highest_two = [above(noisy[t], [noisy[other] for other in to_4], "final", MUCH_HIGHER) for t in (16, 8)]
    on_noisy: list[Row] = [
        (
            f"The test accuracy drops as training goes on, with every T (more than {ALMOST_SAME:g} points)",
            "supplement 2.2",
            figure_6,
            tuple(Comparison(measured(run, "fall"), ">", ALMOST_SAME) for run in noisy.values()),
        ),
        (
            "The final test accuracies with T = 16 and 8 are much higher than with any smaller T "
            f"({MUCH_HIGHER:g} points or more)",
            "supplement 2.2",
            figure_6,
            highest_two[0] + highest_two[1],
        ),
        (
            "A larger T works better: the final test accuracy grows with T from 0 to 16",
            "supplement 2.2",
            figure_6,
            growing([measured(run, "final") for run in by_t]),
        ),
        (
            "A larger T is less brittle: the fall from best to final shrinks with T from 0 to 16",
            "supplement 2.2",
            figure_6,
            growing([measured(run, "fall") for run in reversed(by_t)]),
        ),
        (
            f"T = 16 is much less brittle than T = 0: its fall is smaller by {MUCH_HIGHER:g} points or more",
            "supplement 2.2",
            figure_6,
            above(noisy[0], (noisy[16],), "fall", MUCH_HIGHER),
        ),
        (
            f"T = 4 fits the corrupted labels like T = 8 (within {ALIKE:g} points), and its final test "
            f"accuracy is much lower ({MUCH_HIGHER:g} points or more)",
            "supplement 3.2",
            ("figure6", "figure7"),
            alike([noisy[8], noisy[4]], "corrupted") + above(noisy[8], (noisy[4],), "final", MUCH_HIGHER),
        ),
        (
            f"T = 16 has a slightly better final test accuracy than T = 8 (by up to {ALIKE:g} points)",
            "supplement 3.2",
            figure_6,
            above(noisy[16], (noisy[8],), "final") + alike([noisy[16], noisy[8]], "final"),
        ),
        (
            "The accuracy on the corrupted labels grows with T from 0 to 8",
            "supplement 3.2",
            figure_7,
            growing([measured(noisy[t], "corrupted") for t in reversed(to_8)]),
        ),
        (
            f"T = 16 fits the corrupted labels much worse than T = 8 ({MUCH_HIGHER:g} points or more)",
            "supplement 3.2",
            figure_7,
            above(noisy[8], (noisy[16],), "corrupted", MUCH_HIGHER),
        ),
        (
            f"On the intact labels T = 16 and T = 8 are similar (within {ALIKE:g} points)",
            "supplement 4",
            figure_8,
            alike([noisy[16], noisy[8]], "intact"),
        ),
        (
            "On the intact labels T = 4 is below T = 8 and T = 16",
            "supplement 4",
            figure_8,
            above(noisy[8], (noisy[4],), "intact") + above(noisy[16], (noisy[4],), "intact"),
        ),
        (
            "The order on the intact labels is that on the test set: T = 4 is below T = 8 and T = 16 on both",
            "supplement 4",
            ("figure6", "figure8"),
            tuple(
                comparison
                for measure, t in product(("intact", "final"), (8, 16))
                for comparison in above(noisy[t], (noisy[4],), measure)
            ),
        ),
        *(
            (
                f"T can be chosen on held-out images, labels {labels}: the T that is best there costs at "
                f"most {SIGNIFICANT:g} point of test accuracy",
                source,
                ("choose-t",),
                (Comparison(_cost_of_choice(choose_t(), measure), "≤", SIGNIFICANT),),
            )
            for labels, measure, source in (
                ("clean", "validation_clean", "supplement 4"),
                ("as given", "validation", f"{OURS}, of the choice of T"),
            )
        ),
    ]
    return _claims("ResNet-20, clean", None, on_clean) + _claims("ResNet-20, 50 %", None, on_noisy)


def _cost_of_choice(runs: Sequence[Run], held_out_measure: str) -> Quantity:
    """The best final test accuracy of any T minus that of the T that is best on held-out images."""
    parts = tuple((run, measure) for measure in (held_out_measure, "final") for run in runs)

    def cost(values: Sequence[float]) -> float:
        held_out, tested = values[: len(runs)], values[len(runs) :]
        return max(tested) - tested[held_out.index(max(held_out))]

    return Quantity("cost", parts, cost)


def _later_claims() -> list[Claim]:
    """The later version's table 6, and its text about that table."""
    claims, source, shown = [], "later version, table 6", ("later-tables",)
    for net, rate in product(("resnet20", "resnet56"), (0.4, 0.8)):
        cce, mae, imae = _trio(later_table_6(), net=net, rate=rate)
        rows: list[Row] = [
            (
                "CCE overfits wrong labels: on the noisy subset it is above MAE and IMAE",
                source,
                shown,
                above(cce, (mae, imae), "noisy_subset"),
            ),
            (
                "MAE underfits right labels: on the clean subset it is below CCE and IMAE",
                source,
                shown,
                above(cce, (mae,), "clean_subset") + above(imae, (mae,), "clean_subset"),
            ),
            (
                "Noise to the other classes: IMAE's final test accuracy is above CCE's and MAE's",
                source,
                shown,
                above(imae, (cce, mae), "final"),
            ),
            (
                "Noise to the other classes: IMAE's hybrid accuracy is above CCE's and MAE's",
                source,
                shown,
                above(imae, (cce, mae), "hybrid"),
            ),
            (
                "Noise to the other classes: the fall from best to final is smaller for MAE and IMAE than "
                "for CCE",
                source,
                shown,
                tuple(
                    Comparison(measured(cce, "fall"), ">", 0, measured(run, "fall")) for run in (mae, imae)
                ),
            ),
        ]
        claims += _claims(f"{net_words(net)}, {noise_words(cce)}", LATER, rows)
    for net in ("resnet20", "resnet56"):
        cce, mae, imae = _trio(later_table_6(), net=net, rate=0.0)
        rows = [
            (
                f"Clean labels: IMAE is competitive with CCE (at most {COMPETITIVE:g} point below)",
                source,
                shown,
                above(imae, (cce,), "final", -COMPETITIVE),
            ),
            (
                "Clean labels: MAE underfits, its accuracy on the training labels is below CCE's and IMAE's",
                source,
                shown,
                above(cce, (mae,), "clean_subset") + above(imae, (mae,), "clean_subset"),
            ),
        ]
        claims += _claims(f"{net_words(net)}, clean", LATER, rows)
    return claims


def _human_claims() -> list[Claim]:
    """The same questions about human labels; the paper has no such experiment."""
    claims, source, shown = [], f"{OURS}, of CIFAR-10N", ("human-noise",)
    for human in HUMAN:
        cce, mae, imae = trio = _trio(human_noise(), human=human)
        fall = {run: measured(run, "fall") for run in trio}
        rows: list[Row] = [
            (
                "Human labels: IMAE's final test accuracy is above CCE's and MAE's",
                source,
                shown,
                above(imae, (cce, mae), "final"),
            ),
            (
                "Human labels: the fall from best to final is smaller for MAE and IMAE than for CCE",
                source,
                shown,
                tuple(Comparison(fall[cce], ">", 0, fall[run]) for run in (mae, imae)),
            ),
            (
                "Human labels: CCE fits the wrong ones better than MAE and IMAE",
                source,
                shown,
                above(cce, (mae, imae), "noisy_subset"),
            ),
        ]
        claims += _claims(f"ResNet-20, {human}", None, rows)
    return claims


CLAIMS = (*_noisy_claims(), *_clean_claims(), *_temperature_claims(), *_human_claims(), *_later_claims())


def count(results: Results) -> dict[str, int]:
    """The number of claims per verdict, without those that the paper's own numbers do not hold."""
    verdicts = [claim.check(results).verdict for claim in CLAIMS if claim.counts]
    return {verdict: verdicts.count(verdict) for verdict in (HELD, NOT_HELD, NO_DATA)}


def by_text(claims: Iterable[Claim]) -> dict[str, list[Claim]]:
    """Claims grouped by their text."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.text, []).append(claim)
    return groups
