"""python execute_notebooks.py [--write] [--html FOLDER] NOTEBOOK...: do notebooks give their stored outputs?

Each notebook is run from its first cell to its last, in an empty folder, by the Python that runs this script,
with one thread. Words must be the same. Numbers may differ as tests/support/tolerances.py says: "notebook" in
general, "trained in a notebook" in cells with the tag `trained`. Whole numbers are exact. Numbers of cells
with the tag `varies`, such as times, are not compared; of an image only that it is there.

    --write   store the new outputs in the notebooks in place of comparing them
    --html    also write each notebook as a page
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tolerances import Tolerance, tolerance

# A number that is no part of a word; "-" is a sign only where no number or word ends before it.
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a Python object
LONGEST = 600  # seconds that a cell may take


def shown(output: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What an output shows: (kind, text); of an image no text."""
    if output["output_type"] == "stream":
        yield output["name"], output["text"]
    for kind, content in sorted(output.get("data", {}).items()):
        yield kind, "" if kind.startswith("image/") else content
    if output["output_type"] == "error":
        yield "error", f"{output['ename']}: {output['evalue']}"


def shown_by(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """What a cell shows. A stream comes in pieces, as the time falls; here they are one."""
    pairs: list[tuple[str, str]] = []
    for kind, text in (pair for output in cell["outputs"] for pair in shown(output)):
        if pairs and kind == pairs[-1][0] and kind in ("stdout", "stderr"):
            pairs[-1] = (kind, pairs[-1][1] + text)
        else:
            pairs.append((kind, text))
    return pairs


def is_close(stored: str, new: str, allowed: Tolerance) -> bool:
    """Whether two printed numbers agree: within the tolerance, and one in the last place that is printed."""
    difference = abs(float(stored) - float(new))
    last = 1.001 * max(_last_place(stored), _last_place(new))
    return difference <= allowed.rtol * abs(float(stored)) + (allowed.atol if last else 0) + last


def _last_place(text: str) -> float:
    """What a one in the last place of a printed number is worth; 0 of a whole number, which is exact."""
    digits, _, exponent = text.partition("e")
    places = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - places) if places else 0.0


def difference(stored: str, new: str, allowed: Tolerance | None) -> str | None:
    """How two texts differ, if they do; `allowed` is for their numbers, None if these are not compared."""
    if NUMBER.sub("0", stored).split() != NUMBER.sub("0", new).split():
        return f"stored:\n{stored}\nnow:\n{new}"
    if allowed is None:
        return None
    for one, other in zip(NUMBER.findall(stored), NUMBER.findall(new), strict=True):
        if not is_close(one, other, allowed):
            return f"{one} is stored, {other} comes out, of\n{new}"
    return None


def differences(stored: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """How the outputs of a notebook differ from the stored ones: a text for each cell that does."""
    for number, (before, now) in enumerate(zip(stored["cells"], new["cells"], strict=True)):
        if before["cell_type"] != "code":
            continue
        tags = before["metadata"].get("tags", [])
        allowed = None if "varies" in tags else tolerance(f"{'trained in a ' * ('trained' in tags)}notebook")
        kinds_before, kinds_now = shown_by(before), shown_by(now)
        if [kind for kind, _ in kinds_before] != [kind for kind, _ in kinds_now]:
            yield f"cell {number}: stored {kinds_before}, now {kinds_now}"
            continue
        for (kind, one), (_, other) in zip(kinds_before, kinds_now, strict=True):
            if (text := difference(one, other, allowed)) is not None:
                yield f"cell {number}, {kind}: {text}"


def execute(notebook: Any) -> None:
    """Run a notebook in an empty folder; its outputs are replaced."""
    from nbclient import NotebookClient  # here: tests use the comparison alone
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "OMP_NUM_THREADS": "1",
            "IPYTHONDIR": folder + "/.ipython",
            "MPLCONFIGDIR": folder + "/.mpl",
        }
        work = Path(folder, "work")
        work.mkdir()
        NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            config=Config(
                {"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}}
            ),  # no port is opened
            record_timing=False,
            resources={"metadata": {"path": str(work)}},
        ).execute()
    # What names this Python, or is another with each run, does not belong into the file.
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output["data"]["text/plain"] = ADDRESS.sub("", output["data"]["text/plain"])
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def write_page(notebook: Any, path: Path) -> None:
    """Write a notebook as an HTML page."""
    from nbconvert import HTMLExporter

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--html", type=Path)
    arguments = parser.parse_args()
    import nbformat

    status = 0
    for path in arguments.notebooks:
        stored, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
        begun = time.monotonic()
        execute(notebook)
        print(f"{path.name}: {time.monotonic() - begun:.0f} s", flush=True)
        if arguments.write:
            nbformat.write(notebook, path)
        else:
            for text in differences(stored, notebook):
                print(f"{path.name}: {text}", file=sys.stderr)
                status = 1
        if arguments.html:
            write_page(notebook, arguments.html / f"{path.stem}.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
