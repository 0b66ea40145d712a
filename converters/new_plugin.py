"""A new plugin: a package with a layer type and a loss of its own, their parameters, and tests that pass.

It is made from the files of plugin_template/. The package in tests/plugin_xyz is what this makes for Xyz.
"""

from __future__ import annotations

import builtins
import hashlib
import keyword
import re
from pathlib import Path
from string import Template
from typing import NamedTuple

from imae.files.atomic import atomic_folder
from imae.files.errors import LayerError
from imae.files.read import AnyPath
from imae.layers.registry import layer_types
from imae.prototxt import LayerParameter
from imae.prototxt.schema import PLUGINS_START

LONGEST_NAME = 40  # characters; lines of the files stay readable
LARGEST_NUMBER = 2**29 - 1  # of a field, in protobuf
TEMPLATES = Path(__file__).with_name("plugin_template")
# Names that the files themselves import or define.
USED = {"F", "Layer", "LayerError", "LayerParameter", "Net", "OnnxGraph", "Path", "Run", "Sequence", "Shape"}
USED |= {"Solver", "Tensor", "WeightNormalization", "Designed"}


class PluginNames(NamedTuple):
    """The names that follow from that of a layer type, MyShift."""

    Name: str  # MyShift, and the loss MyShiftLoss
    name: str  # my_shift, and the field my_shift_param
    package: str  # imae_my_shift
    project: str  # imae-my-shift
    number: int  # of the layer's field in LayerParameter
    loss_number: int


def plugin_names(name: str) -> PluginNames:
    """The names for a layer type; LayerError where the name is not possible or is taken."""
    who = f"new-plugin: {name!r}"
    if not re.fullmatch("[A-Z][A-Za-z0-9]*", name) or len(name) > LONGEST_NAME:
        raise LayerError(
            f"{who} must be a layer type as Caffe writes them: a capital letter, then letters and digits, at "
            f"most {LONGEST_NAME} characters, such as MyShift"
        )
    if name.endswith("Loss"):
        stem = name.removesuffix("Loss") or "MyShift"
        raise LayerError(
            f"{who}: leave out the word Loss: a plugin {stem} has the layer {stem} and the loss {stem}Loss"
        )
    if name in USED or keyword.iskeyword(name) or hasattr(builtins, name):
        raise LayerError(f"{who} has another meaning in Python or in the plugin's files; choose another name")
    known = {known.lower(): known for known in layer_types()}
    for layer_type in (name, f"{name}Loss"):
        if other := known.get(layer_type.lower()):
            raise LayerError(f"{who}: there is a layer type {other!r} already; choose another name")
    words = re.findall("[A-Z]+(?![a-z])[a-z0-9]*|[A-Z][a-z0-9]*", name)
    lower = "_".join(words).lower()
    for field in (f"{lower}_param", f"{lower}_loss_param"):
        if field in LayerParameter.DESCRIPTOR.fields_by_name:
            raise LayerError(f"{who}: LayerParameter has a field {field!r} already; choose another name")
    number = field_number(name)
    return PluginNames(name, lower, f"imae_{lower}", f"imae-{lower.replace('_', '-')}", number, number + 1)


def field_number(name: str) -> int:
    """The first of two numbers in LayerParameter for a plugin of this name, the same on every machine.

    There are 268 million such pairs: of 100 plugins two have the same with a probability of 2e-5.
    """
    pairs = (LARGEST_NUMBER - PLUGINS_START) // 2
    digest = hashlib.sha256(name.encode()).digest()
    return PLUGINS_START + 2 * (int.from_bytes(digest[:8], "big") % pairs)


def plugin_files(names: PluginNames) -> dict[str, str]:
    """The files of the plugin: text by path."""
    paths = {
        "readme.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        "package.py": f"{names.package}/__init__.py",
        "layer.py": f"{names.package}/layer.py",
        "loss.py": f"{names.package}/loss.py",
        "plugin.proto": f"{names.package}/{names.name}.proto",
        "net.prototxt": "example/net.prototxt",
        "solver.prototxt": "example/solver.prototxt",
        "test_plugin.py": f"tests/test_{names.name}.py",
    }
    return {path: _filled(template, names) for template, path in paths.items()}


def _filled(template: str, names: PluginNames) -> str:
    text = (TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
    return Template(text).substitute(names._asdict())


def write_plugin(name: str, folder: AnyPath | None = None) -> Path:
    """Write a plugin for the layer type `name` into a new folder, by default imae-NAME; returns the folder.

    FileError where it exists.
    """
    names = plugin_names(name)
    target = Path(names.project if folder is None else folder)
    with atomic_folder(target) as new:
        for path, text in plugin_files(names).items():
            (new / path).parent.mkdir(exist_ok=True)
            (new / path).write_text(text, encoding="utf-8")
    return target
