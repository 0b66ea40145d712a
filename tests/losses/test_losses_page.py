"""docs/losses.md: its block runs, its formulas and defaults are the code's, its layers are the modules."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from test_losses import layer, passes
from tolerances import tolerance

from imae import losses
from imae.losses.loss import Loss
from imae.prototxt import NetParameter

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
FORMULAS = re.findall(r"^\| `(\w+\([^`]*\))` \| `(.+?)` \| `(.+?)`(.*) \|$", PAGE, re.MULTILINE)
LAYERS = dict(re.findall(r"^\| `(\w+)` \| `(type: [^`]+)` \|", PAGE, re.MULTILINE))
CLASSES = 10
MATRIX = np.full((CLASSES, CLASSES), 0.6 / 9)
np.fill_diagonal(MATRIX, 0.4)


def the_loss(call: str) -> Loss:
    made: Loss = eval(call, {"T": MATRIX, **vars(losses)})
    return made


@pytest.mark.parametrize("call, value, weight, where", FORMULAS, ids=[row[0] for row in FORMULAS])
def test_formulas(call: str, value: str, weight: str, where: str) -> None:
    p = np.linspace(0.11, 0.99, 23) if where else np.linspace(0.01, 0.99, 25)
    loss = the_loss(f"{call[:-1]}{', ' * (call[-2] != '(')}reduction='none')")
    names = {"p": p, "r": (1 - p) / (CLASSES - 1), "C": CLASSES, "T": MATRIX}
    names |= {"inv": np.linalg.inv, **{name: getattr(loss, name) for name in loss.settings}}
    names |= {name: getattr(np, name) for name in ("exp", "log", "abs", "maximum")}
    logits = torch.zeros(len(p), CLASSES, dtype=torch.float64)
    logits[:, 0] = torch.tensor(np.log(p / names["r"]))
    got, diff = passes(loss, logits, torch.zeros(len(p)).long())
    rtol, atol, _ = tolerance("formula", "float64")
    for numbers, formula in ((got, value), (diff.abs().sum(1), weight)):
        want = eval(formula, names)
        # The logits are made from p, whose 1 - p has fewer digits near 1.
        np.testing.assert_allclose(numbers, want, rtol=100 * rtol, atol=100 * atol)


@pytest.mark.parametrize("call", [row[0] for row in FORMULAS])
def test_the_calls_have_all_defaults(call: str) -> None:
    name, arguments = re.findall(r"^(\w+)\((.*)\)$", call)[0]
    first = [word for word in arguments.split(", ") if word and "=" not in word]
    default = the_loss(f"{name}({', '.join(first)})")
    assert {s: getattr(the_loss(call), s) for s in default.settings} == {
        s: getattr(default, s) for s in default.settings
    }


def test_every_loss_is_on_the_page() -> None:
    assert {row[0].partition("(")[0] for row in FORMULAS} == LAYERS.keys() == set(losses.__all__)


@pytest.mark.parametrize("name", losses.__all__)
def test_layers_are_the_modules(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer with the numbers of the page, that without them, and the module with its defaults."""
    monkeypatch.chdir(tmp_path)
    np.savetxt("T.txt", MATRIX)
    draw = np.random.default_rng(3)
    logits = torch.tensor(draw.standard_normal((7, CLASSES)))
    labels = torch.tensor(draw.integers(0, CLASSES, 7))
    want = passes(the_loss(f"{name}(T)" if name.endswith("Correction") else f"{name}()"), logits, labels)
    texts = [LAYERS[name]]
    if not name.endswith("Correction"):
        texts.append(
            LAYERS[name].partition("_param")[0].rpartition(" ")[0] if "_param" in texts[0] else texts[0]
        )
    rtol, atol, _ = tolerance("same arithmetic")  # a prototxt has its numbers in single precision
    for text in texts:
        for got, other in zip(
            passes(layer(text, (7, CLASSES), (7,)), logits, labels.double()), want, strict=True
        ):
            torch.testing.assert_close(got, other, rtol=rtol, atol=atol)


def test_the_blocks() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(block, names)
    assert names["logits"].grad is not None
    assert names["each"].shape == (2, 4, 6) and (names["each"][0, 0] == 0).all()
    (block,) = re.findall(r"```prototxt\n(.*?)```", PAGE, re.DOTALL)
    (param,) = text_format.Parse(block, NetParameter()).layer
    assert (param.type, param.loss_param.ignore_label) == ("SCELoss", 255)
    assert param.sce_loss_param.beta == 1


def test_the_figure_is_there() -> None:
    assert "](losses.png)" in PAGE
    assert 10_000 < (DOCS / "losses.png").stat().st_size < 120_000
