"""The layer types by name: Caffe's own, this project's plugins, and the types of installed packages.

A third-party package adds layers with an entry point in the group `imae.layers`, which names the module that
calls `register_layer`:

    [project.entry-points."imae.layers"]
    xyz = "imae_xyz.layers"
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, TypeVar

from imae.files.errors import LayerError
from imae.files.nearest import did_you_mean
from imae.prototxt.broken_plugins import (
    IMPORT_ERRORS,
    broken_type,
    distribution_of,
    is_broken,
    leave_out,
    note_types,
    perhaps_broken,
)
from imae.prototxt.fork_names import fork_of_type
from imae.prototxt.python_layers import BUILT_IN

if TYPE_CHECKING:
    from imae.layers.layer import Layer
    from imae.prototxt import LayerParameter

LayerClass = TypeVar("LayerClass", bound="type[Layer]")

DRAWERS = (
    "data",
    "vision",
    "recurrent",
    "common",
    "normalization",
    "activation",
    "utility",
    "loss",
    "plugins",
    "forks",
)

_classes: dict[str, type[Layer]] = {}
_python_layers: dict[tuple[str, str], type[Layer]] = {}
_loaded: set[str] = set()


def register_layer(type_name: str) -> Callable[[LayerClass], LayerClass]:
    """Class decorator: `type: "<type_name>"` builds this class."""

    def register(cls: LayerClass) -> LayerClass:
        other = _classes.get(type_name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise LayerError(
                f"layer type {type_name!r} is registered twice: by {other.__module__}.{other.__qualname__} "
                f"and by {cls.__module__}.{cls.__qualname__}; rename one of them"
            )
        _classes[type_name] = cls
        return cls

    return register


def register_python_layer(module: str, layer: str) -> Callable[[LayerClass], LayerClass]:
    """Class decorator: `type: "Python"` with this module and layer builds this class, and imports nothing.

    They are those of BUILT_IN in prototxt/python_layers.py.
    """

    def register(cls: LayerClass) -> LayerClass:
        _python_layers[module, layer] = cls
        return cls

    return register


def python_layer_class(module: str, layer: str) -> type[Layer] | None:
    """The built-in class in place of a user's Python layer, if there is one."""
    home = BUILT_IN.get((module, layer))
    if home is None:
        return None
    _load_one(home)
    return _python_layers[module, layer]


def layer_class(type_name: str) -> type[Layer]:
    """The class that is registered under Caffe's type string; LayerError lists the known ones."""
    if type_name not in _classes and not _plugins():
        _load_one(type_name)  # import no more than the net's types need
    if type_name not in _classes or _plugins():
        _load_all()  # all, so that a plugin that registers one of our types is named as broken
    if type_name not in _classes:
        if broken := broken_type(type_name):
            raise LayerError(broken)
        hint = fork_of_type(type_name) or did_you_mean(type_name, _classes, "'")
        raise LayerError(
            f"Unknown layer type: {type_name}{hint} (known types: {', '.join(layer_types())})"
            f"{perhaps_broken()}"
        )
    return _classes[type_name]


def class_of(param: LayerParameter) -> type[Layer]:
    """The class that makes this layer: its type's, or the variant that its fields ask for."""
    return layer_class(param.type).variant(param)


def layer_types() -> list[str]:
    """All known type strings, sorted."""
    _load_all()
    return sorted(_classes)


def plugin_of_module(module: str) -> str | None:
    """The distribution that brings this module, if an entry point of it names the module's package."""
    package = module.partition(".")[0]
    for entry in _plugins():
        if entry.module.partition(".")[0] == package != "imae":
            return distribution_of(entry)
    return None


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="imae.layers"))


@cache
def _modules() -> dict[str, str]:
    """The modules of the drawers, by file name without underscores."""
    modules = {}
    for drawer in DRAWERS:
        package = importlib.import_module(f"imae.layers.{drawer}")
        for module in pkgutil.iter_modules(package.__path__):
            modules[module.name.replace("_", "")] = f"imae.layers.{drawer}.{module.name}"
    return modules


def _load_one(type_name: str) -> None:
    """Import the module that is named like the type, if there is one: SoftmaxWithLoss is in softmax_loss."""
    name = type_name.lower()
    module = _modules().get(name) or _modules().get(name.replace("with", ""))
    if module is not None:
        importlib.import_module(module)


def _load_all() -> None:
    if "drawers" not in _loaded:
        for module in _modules().values():
            importlib.import_module(module)
        _loaded.add("drawers")
    if "plugins" not in _loaded:
        for distribution, entries in _plugins_by_distribution().items():
            _load_plugin(distribution, entries)
        _loaded.add("plugins")


def _plugins_by_distribution() -> dict[str, list[EntryPoint]]:
    distributions: dict[str, list[EntryPoint]] = {}
    for entry in sorted(_plugins(), key=lambda entry: (entry.name, entry.value)):
        distributions.setdefault(distribution_of(entry), []).append(entry)
    return distributions


def _load_plugin(distribution: str, entries: list[EntryPoint]) -> None:
    """Import the modules of a plugin; one that is broken is left out, with all its types and a warning."""
    before = dict(_classes)
    try:
        for entry in [] if is_broken(distribution) else entries:
            importlib.import_module(entry.module)
    except IMPORT_ERRORS as error:
        _classes.clear()
        _classes.update(before)
        reason = str(error) if isinstance(error, LayerError) else f"{type(error).__name__}: {error}"
        leave_out(distribution, f"{entry.value} cannot be imported: {reason}")
    if is_broken(distribution):
        for entry in entries:
            note_types(entry)
    for name, cls in _classes.items():
        if before.get(name) is not cls and plugin_of_module(cls.__module__):
            cls.plugin = distribution
