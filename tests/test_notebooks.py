"""docs/notebooks: what is stored in them, and how .ci/execute_notebooks.py compares it with a new run."""

from __future__ import annotations

import base64
import copy
import json
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

TOP = Path(__file__).parents[1]
NOTEBOOKS = sorted((TOP / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 250_000  # bytes of a notebook, which git keeps in each of its versions
COMPARE = runpy.run_path(str(TOP / ".ci" / "execute_notebooks.py"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:  # a text is stored as a list of lines
        cell["source"] = "".join(cell["source"])
        for output in cell.get("outputs", []):
            output |= {"text": "".join(output.get("text", []))}
            output["data"] = {kind: "".join(lines) for kind, lines in output.get("data", {}).items()}
    return content


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"classification", "label_noise", "net_surgery"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    content = read(path)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "not run from the top"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o["data"]]
    assert images
    for image in images:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None and max(pixels.shape) <= 1000 and np.ptp(pixels) > 0
    text = path.read_text(encoding="utf-8")
    for foreign in (" at 0x", "/home/", "/root/", "/tmp/", str(TOP)):
        assert foreign not in text
    assert content["metadata"]["language_info"] == {"name": "python"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_starts_from_nothing(path: Path) -> None:
    """It runs in an empty folder, with the installed package: no code names a place of a checkout."""
    code = "\n".join(cell["source"] for cell in read(path)["cells"] if cell["cell_type"] == "code")
    assert "prototxt/models" not in code and "tests" not in code and "__file__" not in code


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_agree_with_themselves(path: Path) -> None:
    assert list(COMPARE["differences"](read(path), read(path))) == []


def cell(text: str, *tags: str) -> dict[str, Any]:
    output = {"output_type": "stream", "name": "stdout", "text": text}
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "outputs": [output]}


@pytest.mark.parametrize(
    ("stored", "now", "tag", "same"),
    [
        ("accuracy 0.939", "accuracy 0.939", "", True),
        ("accuracy 0.939", "accuracy 0.940", "", True),  # the last digit
        ("accuracy 0.939", "accuracy 0.949", "", False),
        ("accuracy 0.939", "accuracy 0.949", "trained", True),
        ("accuracy 0.939", "accuracy 0.739", "trained", False),
        ("class 7", "class 1", "trained", False),
        ("class 7", "class 8", "", False),
        ("(16, 1, 3, 3)", "(16, 1, 3, 5)", "", False),
        ("1.0e-07 off", "9.9e-08 off", "", True),
        ("1.0e-07 off", "1.3e-07 off", "", False),
        ("2.5 ms an image", "71 ms an image", "varies", True),
        ("2.5 ms an image", "2.5 s an image", "varies", False),
        ("-0.5", "0.5", "", False),
        ("conv1 nan", "conv1 0.5", "trained", False),
        ("one\ntwo", "one", "varies", False),
    ],
)
def test_what_may_differ(stored: str, now: str, tag: str, same: bool) -> None:
    tags = [tag] if tag else []
    found = list(COMPARE["differences"]({"cells": [cell(stored, *tags)]}, {"cells": [cell(now, *tags)]}))
    assert (not found) is same, found


def test_a_lost_image_and_an_error_are_noticed() -> None:
    image = {"output_type": "display_data", "data": {"image/png": "aaaa", "text/plain": "<Figure>"}}
    stored = {"cells": [{**cell("x"), "outputs": [image]}]}
    other = copy.deepcopy(stored)
    other["cells"][0]["outputs"][0]["data"]["image/png"] = "bbbb"  # the pixels are not compared
    assert not list(COMPARE["differences"](stored, other))
    other["cells"][0]["outputs"] = [{"output_type": "error", "ename": "ValueError", "evalue": "x"}]
    assert list(COMPARE["differences"](stored, other))


def test_a_stream_that_comes_in_pieces_is_one() -> None:
    whole, pieces = cell("one 1\ntwo 2\n"), cell("one 1\n")
    pieces["outputs"].append({"output_type": "stream", "name": "stdout", "text": "two 2\n"})
    other = copy.deepcopy(pieces)
    other["outputs"][1]["text"] = "two 3\n"
    differences = COMPARE["differences"]
    assert list(differences({"cells": [whole]}, {"cells": [pieces]})) == []
    assert len(list(differences({"cells": [whole]}, {"cells": [other]}))) == 1
