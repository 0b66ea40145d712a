"""`imae new-plugin`: names, numbers, what it refuses. What it writes: layers/test_plugin_package.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from imae.cli.main import main
from imae.converters.new_plugin import LARGEST_NUMBER, TEMPLATES, field_number, plugin_files, plugin_names
from imae.files.errors import LayerError
from imae.prototxt.schema import PLUGINS_START


@pytest.mark.parametrize(
    ("name", "lower"),
    [("Xyz", "xyz"), ("MyShift", "my_shift"), ("HTTPShift2", "http_shift2"), ("A1b", "a1b"), ("ABC", "abc")],
)
def test_names(name: str, lower: str) -> None:
    """The field is the one that Layer takes for the type's own: without underscores it is the type."""
    names = plugin_names(name)
    assert (names.name, names.package) == (lower, f"imae_{lower}")
    assert names.project == f"imae-{lower.replace('_', '-')}"
    assert lower.replace("_", "") == name.lower()
    files = plugin_files(names)
    assert f'@register_layer("{name}")' in files[f"imae_{lower}/layer.py"]
    assert all("$" not in text for text in files.values())


def test_every_template_is_used() -> None:
    assert len(plugin_files(plugin_names("Xyz"))) == len(list(TEMPLATES.iterdir()))


def test_numbers() -> None:
    """They are the plugins', even and the next, the same for ever, and differ from name to name."""
    numbers = {field_number(f"Name{i}") for i in range(1000)}
    assert len(numbers) == 1000 and all(number % 2 == PLUGINS_START % 2 for number in numbers)
    assert min(numbers) >= PLUGINS_START and max(numbers) + 1 <= LARGEST_NUMBER
    assert field_number("Xyz") == 119559050


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shift", "new-plugin: 'shift' must be a layer type as Caffe writes them: a capital letter, "),
        ("My-Shift", "new-plugin: 'My-Shift' must be a layer type"),
        ("../Up", "new-plugin: '../Up' must be a layer type"),
        ("\u00dcber", "new-plugin: '\u00dcber' must be a layer type"),
        ("A" * 41, "at most 40 characters"),
        ("ReLU", "new-plugin: 'ReLU': there is a layer type 'ReLU' already; choose another name"),
        ("Relu", "new-plugin: 'Relu': there is a layer type 'ReLU' already; choose another name"),
        ("Gce", "new-plugin: 'Gce': there is a layer type 'GCELoss' already; choose another name"),
        ("Transform", "LayerParameter has a field 'transform_param' already; choose another name"),
        ("MyLoss", "leave out the word Loss: a plugin My has the layer My and the loss MyLoss"),
        ("Tensor", "has another meaning in Python or in the plugin's files; choose another name"),
        ("None", "has another meaning in Python"),
    ],
)
def test_names_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(LayerError) as error:
        plugin_names(name)
    assert message in str(error.value)


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "MyShift"]) == 0
    assert capsys.readouterr().out.startswith(
        "wrote imae-my-shift: the layer MyShift and the loss MyShiftLoss\n"
    )
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert len(before) == 9
    assert main(["new-plugin", "MyShift"]) == 2
    assert main(["new-plugin", "Other", "--folder", "no/such"]) == 2
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err.splitlines() == [
        "imae: cannot write 'imae-my-shift': it exists already; remove it or choose another name",
        f"imae: cannot write 'no/such': there is no folder '{here / 'no'}'",
    ]
