"""The paper's report on a narrow screen: nothing is cut without a mark, no loss's name is broken.

What only a browser knows is asked of Chromium, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Page, chromium, find_chromium

from imae.paper import figures, report
from imae.paper.record import RECORDS, read_records

WIDTH = 420
NAMES = re.compile(r"(?<![\w./_-])I?MAE-\d")
# For each table: what is hidden of it in its box, and whether the box can be moved and shows that it can.
TABLES = """Array.from(document.querySelectorAll('table'), (table) => {
  const box = table.closest('.wide'), style = getComputedStyle(box);
  return { hidden: box.scrollWidth - box.clientWidth, out: box.getBoundingClientRect().right - innerWidth,
    moves: style.overflowX === 'auto' && box.tabIndex === 0, mark: style.backgroundImage.includes('gradient'),
    text: table.className === 'text' };
})"""
UNFOLD = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
WORDS = """Array.from(document.querySelectorAll('td, th, li, p'), (element) => {
  const range = document.createRange();
  let broken = 0;
  const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    for (const found of walk.currentNode.data.matchAll(/I?MAE[-\\u2011]\\d+/g)) {
      range.setStart(walk.currentNode, found.index);
      range.setEnd(walk.currentNode, found.index + found[0].length);
      broken += new Set(Array.from(range.getClientRects(), (box) => box.top)).size > 1;
    }
  }
  return broken;
}).reduce((one, other) => one + other, 0)"""


@pytest.fixture(scope="module")
def text() -> str:
    return report.page(read_records(RECORDS))


@pytest.fixture(scope="module")
def phone(text: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report in Chromium, on a screen of 420 pixels, with all of it unfolded."""
    program = find_chromium()
    if program is None:
        pytest.skip("there is no chromium, in which the page could be looked at")
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(text, encoding="utf-8")
    with chromium(program, folder / "profile") as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=WIDTH, height=800, deviceScaleFactor=2, mobile=True
        )
        tab.open((folder / "report.html").as_uri())
        tab.value(UNFOLD)
        yield tab


def test_the_page_is_as_wide_as_the_screen(phone: Page) -> None:
    assert phone.value("innerWidth") == WIDTH
    assert phone.value("document.documentElement.scrollWidth") <= WIDTH


def test_no_table_is_cut_without_a_mark(phone: Page) -> None:
    tables: list[dict[str, Any]] = phone.value(TABLES)
    assert any(table["text"] for table in tables) and any(table["hidden"] > 0 for table in tables)
    for table in tables:
        assert table["out"] <= 0
        assert not (table["text"] and table["hidden"] > 0), "a table of sentences is not moved sideways"
        assert table["hidden"] <= 0 or (table["moves"] and table["mark"])


def test_no_name_of_a_loss_is_broken(phone: Page) -> None:
    assert phone.value(WORDS) == 0


def test_its_names_have_a_hyphen_at_which_no_line_ends(text: str) -> None:
    body = re.sub(r"<(style|pre|code|svg)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    assert not NAMES.findall(body) and "IMAE\N{NON-BREAKING HYPHEN}8" in body


def test_the_drops_of_the_rate_are_explained_beside_each_figure_that_has_them() -> None:
    records = read_records(RECORDS)
    marked = 0
    for section in report.SECTIONS:
        for name in section.figures:
            for chart in figures.charts(name, records):
                has_marks = any(panel.marks for panel in chart.panels)
                assert ("the learning rate drops" in figures.legend_html(chart)) == has_marks
                marked += has_marks
    assert marked


def test_what_imae_is_comes_first_with_a_figure(text: str) -> None:
    start = text.index("<body>")
    first = [text.index(words, start) for words in ("IMAE is a loss", "<svg", "Not held", "<table")]
    assert first == sorted(first)
