"""The paper's figures, drawn from records: 1, 3 to 8, human labels, the authors' CIFAR-100 logs.

A chart is one figure of one setting. Its panels share the scale of y, so that curves can be compared across
them. With several seeds a line is their mean, and the band around it reaches from the lowest to the highest.
matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import html
import re
import statistics
import textwrap
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath
from imae.paper import exact
from imae.paper.authors_logs import NOISE, authors_runs, chosen, read_curve
from imae.paper.experiments import (
    HUMAN,
    RATES,
    Run,
    cifar100,
    figures_6_7,
    human_noise,
    suspects,
    table_2,
    variants,
)
from imae.paper.experiments import figure_8 as figure_8_runs
from imae.paper.record import Point, Record
from imae.paper.results import Results, gather, net_words, noise_words, seed_words
from imae.paper.suspects import CHANGES, change_words
from imae.train import curve_style
from imae.train.curve_style import image_bytes, new_figure, style_axes, write_picture

# Line patterns. The colours of STYLES can be told apart by colour-blind people, on light and dark background.
DASHES = {"solid": "", "dashed": "5 2.5", "dotted": "1.2 1.8", "dash-dot": "7 2 1.5 2"}


class Style(NamedTuple):
    """The look of a line: its colour on light and on dark background, and the name of its dash."""

    light: str
    dark: str
    dash: str = "solid"


INK = Style(curve_style.INK, "#e6e9ee")  # text and axes
MARKS = "vertical lines: the learning rate drops"
FAINT = Style(curve_style.FAINT, "#3a424d")  # the grid, and marks where the learning rate drops
STYLES = {
    "CCE": Style("#c8500a", "#ff9350", "solid"),
    "MAE": Style("#0a66b0", "#62b0f4", "dashed"),
    "IMAE": Style("#00805c", "#2fc99a", "dash-dot"),
    "GCE": Style("#8a4fa3", "#cf9be6", "solid"),
    "MSE": Style("#6b6f76", "#a9b0ba", "dotted"),
    "DM, λ = 0.5": Style("#96720a", "#e0b840", "dashed"),
    "DM, λ = 0": Style("#96720b", "#e0b841", "dotted"),
    "DM(λ 1, β 0)": Style("#00805d", "#2fc99b", "dotted"),
    "log": Style("#1b1f25", "#e6e9ef", "solid"),
    # T, from high to low: one scale of colours, with dashes that distinguish neighbours.
    "16": Style("#7a0f3c", "#ffb1a0", "solid"),
    "8": Style("#c02a2a", "#ff8a66", "dashed"),
    "4": Style("#d96a00", "#f7a83c", "dash-dot"),
    "2": Style("#8a8500", "#d6cf3d", "solid"),
    "1": Style("#2c8a4a", "#7ed07a", "dashed"),
    "0.5": Style("#1f78a8", "#5fc3e0", "dash-dot"),
    "0": Style("#3b3b8f", "#a3a8f0", "dotted"),
}
# The name in STYLES of each change of a variant.
CHANGE_STYLES = dict(zip(CHANGES, cycle(("16", "8", "4", "2", "GCE", "0.5", "0")), strict=False))


class Line(NamedTuple):
    """A curve; `low` and `high` bound its band, and are empty if it has none."""

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    width: float = 1.5


class Panel(NamedTuple):
    """One pair of axes. marks: where the learning rate drops."""

    title: str
    lines: tuple[Line, ...]
    marks: tuple[float, ...] = ()


class Chart(NamedTuple):
    """A figure: panels in rows of `across`, with one legend. about: size and images of the runs."""

    title: str
    x: str
    y: str
    panels: tuple[Panel, ...]
    across: int = 3
    about: str = ""

    @property
    def legend(self) -> dict[str, Style]:
        """The labels of the lines of all panels, each once, and their styles."""
        return {line.label: line.style for panel in self.panels for line in panel.lines}


def _weights(title: str, curves: exact.Curves, names: Callable[[str], tuple[str, str]]) -> Chart:
    lines = []
    for name, (p, w) in curves.items():
        label, style = names(name)
        lines.append(Line(label, STYLES[style], p.tolist(), w.tolist()))
    return Chart(title, "p, probability of the annotated label", "weight", (Panel("", tuple(lines)),), 1)


def figure_1() -> Chart:
    """The weights of CCE, MAE, IMAE-8."""
    curves = exact.figure_1()
    return _weights("Figure 1: an example's weight", curves, lambda name: (name, name.partition("-")[0]))


def figure_5() -> Chart:
    """The weights of IMAE-T. T = 16 and 8 dwarf the others, so a second panel shows the weights below 3."""
    chart = _weights("Figure 5: an example's weight in IMAE-T", exact.figure_5(), lambda t: (f"T = {t}", t))
    whole = chart.panels[0].lines
    small = tuple(line for line in whole if max(line.y) < 3)
    return chart._replace(panels=(Panel("", whole), Panel("T from 0 to 4 again", small)), across=2)


def _curve(results: Results, run: Run, label: str, style: Style, read: Callable[[Point], float]) -> Line:
    together = [[100 * read(point) for point in points] for points in results.mean_points(run)]
    x = [points[0].iteration / 1000 for points in results.mean_points(run)]
    mean = [sum(values) / len(values) for values in together]
    if len(results.seeds(run)) < 2:
        return Line(label, style, x, mean)
    return Line(label, style, x, mean, [min(values) for values in together], [max(v) for v in together])


def _panel(
    results: Results,
    title: str,
    runs: Iterable[Run],
    read: Callable[[Point], float],
    name: Callable[[Run], tuple[str, str]],
) -> Panel:
    lines = []
    for run in runs:
        if run in results:
            label, style = name(run)
            lines.append(_curve(results, run, label, STYLES[style], read))
    end = results.setting.iterations / 1000
    return Panel(title, tuple(lines), (end / 2, 3 * end / 4))


def _chart(
    results: Results, title: str, y: str, panels: Iterable[Panel], across: int, runs: Iterable[Run]
) -> Chart:
    drawn = tuple(panel for panel in panels if panel.lines)
    about = f"{results.setting.words}; {results.setting.data}; {seed_words(results.of(runs))}"
    return Chart(title, "thousands of iterations", y, drawn, min(across, len(drawn)), about)


def _by_loss(run: Run) -> tuple[str, str]:
    return run.label, run.loss


def _by_t(run: Run) -> tuple[str, str]:
    return f"T = {run.t:g}", f"{run.t:g}"


def _noise_figure(results: Results, title: str, y: str, read: Callable[[Point], float]) -> Chart:
    """A panel for each net and noise rate of table 2."""
    panels = (
        _panel(
            results,
            f"{net_words(net)}, noise {100 * rate:g} %",
            [run for run in table_2() if (run.net, run.rate) == (net, rate)],
            read,
            _by_loss,
        )
        for net, rate in product(("resnet20", "resnet32"), RATES)
    )
    return _chart(results, title, y, panels, 3, table_2())


def figure_3(results: Results) -> Chart:
    """Accuracy on the corrupted labels along the training."""
    return _noise_figure(
        results, "Figure 3: corrupted training sets", "training accuracy, %", lambda p: p.corrupted
    )


def figure_4(results: Results) -> Chart:
    """Test accuracy along the training."""
    return _noise_figure(
        results, "Figure 4: test set, corrupted training labels", "test accuracy, %", lambda p: p.test
    )


def _t_panels(results: Results, runs: Sequence[Run], read: Callable[[Point], float]) -> list[Panel]:
    return [
        _panel(results, title, [run for run in runs if bool(run.rate) == noisy], read, _by_t)
        for title, noisy in (("(a) intact labels", False), ("(b) noise 50 %", True))
    ]


def figure_6(results: Results) -> Chart:
    """Test accuracy for each T."""
    panels = _t_panels(results, figures_6_7(), lambda p: p.test)
    return _chart(
        results, "Figure 6: IMAE-T, ResNet-20, test set", "test accuracy, %", panels, 2, figures_6_7()
    )


def figure_7(results: Results) -> Chart:
    """Accuracy on the training set for each T."""
    panels = _t_panels(results, figures_6_7(), lambda p: p.corrupted)
    title = "Figure 7: IMAE-T, ResNet-20, training set"
    return _chart(results, title, "training accuracy, %", panels, 2, figures_6_7())


def figure_8(results: Results) -> Chart:
    """Accuracy on the intact labels of nets trained on the corrupted labels."""
    panel = _panel(results, "trained with noise 50 %", figure_8_runs(), lambda p: p.intact, _by_t)
    title = "Figure 8: IMAE-T, ResNet-20, intact labels"
    return _chart(results, title, "accuracy, %", [panel], 1, figure_8_runs())


def human_figure(results: Results) -> Chart:
    """Test accuracy along the training on human labels."""
    panels = (
        _panel(
            results,
            f"ResNet-20, {noise_words(Run('resnet20', 'CCE', noise='human', human=human))}",
            [run for run in human_noise() if run.human == human],
            lambda p: p.test,
            _by_loss,
        )
        for human in HUMAN
    )
    return _chart(results, "Human labels (CIFAR-10N), test set", "test accuracy, %", panels, 3, human_noise())


def suspects_figure(results: Results) -> Chart:
    """How IMAE fits the labels that it is trained on, as in the paper and with one thing changed."""
    runs = [run for run in suspects() if run.loss == "IMAE"]
    panels = (
        _panel(
            results,
            f"{base.label}, {'clean' if base.noise == 'none' else f'noise {noise_words(base)}'}",
            [run for run in runs if run.base == base],
            lambda p: p.corrupted,
            _by_change,
        )
        for base in runs
        if not base.changes
    )
    title = "IMAE with one thing changed, ResNet-20, corrupted training set"
    return _chart(results, title, "training accuracy, %", panels, 3, runs)


def _by_change(run: Run) -> tuple[str, str]:
    """The label and style of a variant or a base. Bases have IMAE's style; variants reuse other styles."""
    return (change_words(run), CHANGE_STYLES[run.changes[0]]) if run.changes else ("as in the paper", "IMAE")


def authors_charts(
    log: AnyPath | None = None,
    noise: float | None = None,
    loss: str | None = None,
    records: Sequence[Record] = (),
) -> list[Chart]:
    """The authors' CIFAR-100 curves: the published losses, then variants; with ours over them.

    log       any log of ours; it is drawn in every panel
    records   of which the full-size runs on CIFAR-100 are drawn in the panel of their noise
    """
    runs = chosen(authors_runs(), noise, loss)
    full = [results for results in gather(records) if not results.setting.is_scaled]
    ours = read_curve(log) if log is not None else None
    plain = {"CCE", "MAE", "GCE", "MSE", "IMAE", "DM, λ = 0.5"}
    charts = []
    for title, wanted in (("", True), (", divided by the sum of the weights, and other DM", False)):
        panels = []
        for rate in NOISE:
            lines = [
                Line(
                    run.family,
                    STYLES[run.family.removesuffix("_sumW")],
                    [i / 1000 for i in run.curve.iterations],
                    [100 * a for a in run.curve.accuracy],
                )
                for run in runs
                if run.noise == rate and (run.family in plain) == wanted
            ]
            lines.sort(key=lambda line: list(STYLES.values()).index(line.style))
            if wanted:
                lines += _our_cifar100_lines(full, rate, {line.label for line in lines})
            if lines and ours is not None and log is not None:
                x = [i / 1000 for i in ours.iterations]
                y = [100 * a for a in ours.accuracy]
                lines.append(Line(Path(log).name[-40:], STYLES["log"], x, y, width=2.5))
            if lines:
                panels.append(Panel(f"noise {100 * rate:g} %", tuple(lines), (15, 22)))
        if panels:
            name = f"CIFAR-100, ResNet-44: the authors' own logs{title}"
            across = min(2, len(panels))
            charts.append(Chart(name, "thousands of iterations", "test accuracy, %", tuple(panels), across))
    return charts


def _our_cifar100_lines(full: Sequence[Results], rate: float, losses: Container[str]) -> list[Line]:
    """Our runs with symmetric noise of this rate and one of these losses, mean over seeds."""
    lines = []
    for results in full[:1]:
        for run in cifar100():
            if run.rate == rate and run.noise != "asymmetric-cifar100" and run.loss in losses:
                points = results.mean_points(run)
                x = [seeds[0].iteration / 1000 for seeds in points]
                y = [100 * statistics.fmean(point.test for point in seeds) for seeds in points]
                if points:
                    style = STYLES[run.loss]._replace(dash="dotted")
                    lines.append(Line(f"{run.loss}, ours", style, x, y, width=2.5))
    return lines


# The figures drawn from runs: the function that makes each, and its runs.
FROM_RUNS: dict[str, tuple[Callable[[Results], Chart], Callable[[], list[Run]]]] = {
    "figure3": (figure_3, table_2),
    "figure4": (figure_4, table_2),
    "figure6": (figure_6, figures_6_7),
    "figure7": (figure_7, figures_6_7),
    "figure8": (figure_8, figure_8_runs),
    "human-noise": (human_figure, human_noise),
    "suspects": (suspects_figure, variants),
}
OTHER = {"figure1": figure_1, "figure5": figure_5}
NAMES = (*OTHER, *FROM_RUNS, "later-tables")


def charts(
    name: str,
    records: Sequence[Record],
    log: AnyPath | None = None,
    noise: float | None = None,
    loss: str | None = None,
) -> list[Chart]:
    """The charts of one of NAMES; figures of runs have one per setting. ImaeError for another name."""
    if name in FROM_RUNS:
        make, runs = FROM_RUNS[name]
        return [make(results) for results in gather(records) if results.has(runs())]
    if name in OTHER:
        return [OTHER[name]()]
    if name == "later-tables":
        return authors_charts(log, noise, loss, records)
    raise ImaeError(f"there is no figure '{name}'; known: {', '.join(NAMES)}")


def draw(
    name: str,
    records: Sequence[Record],
    path: AnyPath,
    log: AnyPath | None = None,
    noise: float | None = None,
    loss: str | None = None,
) -> None:
    """Write one of NAMES as an image file, settings below each other; DataError if there are no runs for it.

    log, noise, loss   for later-tables: the log of a CIFAR-100 run, drawn with the authors' of this noise
                       and loss
    """
    drawn = charts(name, records, log, noise, loss)
    if not drawn:
        raise DataError(f"there is no record of a run for {name}; train some first: imae paper {name}")
    draw_charts(drawn, path)


def draw_charts(drawn: Sequence[Chart], path: AnyPath) -> None:
    """Write charts as an image file, below each other."""
    heights = [1.1 + 2.6 * -(-len(chart.panels) // chart.across) for chart in drawn]

    def draw_all(figure: Any) -> None:
        parts = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False)[:, 0]
        for chart, part in zip(drawn, parts, strict=True):
            _draw_chart(part, chart)

    write_picture(path, draw_all, height=sum(heights))


def _draw_chart(figure: Any, chart: Chart) -> None:
    """Draw the title, the panels, and the legend below them."""
    rows = -(-len(chart.panels) // chart.across)
    axes = figure.subplots(rows, chart.across, squeeze=False, sharey=_shared(chart)).ravel()
    for place, panel in zip(axes, chart.panels, strict=False):
        _draw_panel(place, panel, chart)
        if _shared(chart):
            place.label_outer()
    for place in axes[len(chart.panels) :]:
        place.set_visible(False)
    handles: dict[str, Any] = {}
    for place in axes:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.suptitle("\n".join(filter(None, (chart.title, *textwrap.wrap(chart.about, 100)))), fontsize=9.5)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=7 if sum(map(len, handles)) < 45 else 4,
        fontsize=8,
        frameon=False,
        handlelength=3.5,
    )


def _shared(chart: Chart) -> bool:
    """Whether the panels share one scale: not in figure 5, whose second panel enlarges the first."""
    return chart.y != "weight"


def _draw_panel(axes: Any, panel: Panel, chart: Chart) -> None:
    for mark in panel.marks:
        axes.axvline(mark, color=FAINT.light, linewidth=1)
    for line in panel.lines:
        dash = DASHES[line.style.dash]
        pattern = (0, tuple(map(float, dash.split()))) if dash else "-"
        few = len(line.x) <= 12
        axes.plot(
            line.x,
            line.y,
            color=line.style.light,
            linestyle=pattern,
            linewidth=line.width,
            marker="o" if few else "",
            markersize=3.5,
            label=line.label,
        )
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=line.style.light, alpha=0.18, linewidth=0)
    style_axes(axes, panel.title, chart.x, chart.y)


# -- HTML pages: each panel is an SVG whose colours are CSS variables of the page ----------------------------


def _variables() -> dict[str, Style]:
    """The CSS variables and their styles."""
    numbered = {f"--line{index}": style for index, style in enumerate(STYLES.values())}
    return {"--ink": INK, "--faint": FAINT, **numbered}


def css_variables(dark: bool) -> str:
    """The declarations of the colour variables that `panel_svgs` and `legend_html` use."""
    return " ".join(f"{name}: {style.dark if dark else style.light};" for name, style in _variables().items())


def _variable(style: Style) -> str:
    return next(f"var({name})" for name, other in _variables().items() if other == style)


def panel_svgs(chart: Chart, prefix: str) -> list[str]:
    """Each panel as an <svg> element; equal panels give equal text. prefix: of the ids inside."""
    svgs = []
    for index, panel in enumerate(chart.panels):
        figure = new_figure(3.7, 2.7)
        figure.set_layout_engine("none")  # the margins are known, and fitting them takes most of the time
        axes = figure.add_axes((0.15, 0.165, 0.83, 0.74))
        _draw_panel(axes, panel, chart)
        if _shared(chart):
            axes.set_ylim(*_limits(chart))
        svg = image_bytes(figure, "svg", {"svg.fonttype": "none"}, transparent=True).decode()
        svgs.append(_for_page(svg, f"{prefix}-{index}-", f"{chart.title}. {panel.title}"))
    return svgs


def _limits(chart: Chart) -> tuple[float, float]:
    """The limits of y, the same for all panels."""
    values = [y for panel in chart.panels for line in panel.lines for y in (*line.y, *line.low, *line.high)]
    margin = 0.04 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _for_page(svg: str, prefix: str, label: str) -> str:
    """The <svg> element of an SVG file, with unique ids and the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{prefix}", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for name, style in _variables().items():
        svg = svg.replace(style.light, f"var({name})")
    start = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    box = start[0] if start else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{html.escape(label)}">{body}'
    )


def legend_html(chart: Chart) -> str:
    """The legend: the label of each line with a sample of the line."""
    items = []
    for label, style in chart.legend.items():
        line = f'<line x1="1" y1="6" x2="35" y2="6" style="stroke: {_variable(style)}"'
        lengths = " ".join(f"{2 * float(length):g}" for length in DASHES[style.dash].split())
        dash = f' stroke-dasharray="{lengths}"' if lengths else ""
        swatch = f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">{line}{dash}/></svg>'
        items.append(f"<li>{swatch}{html.escape(label)}</li>")
    if any(panel.marks for panel in chart.panels):
        line = f'<line x1="18" y1="0" x2="18" y2="12" style="stroke: {_variable(FAINT)}"/>'
        swatch = f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">{line}</svg>'
        items.append(f"<li>{swatch}{MARKS}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'
