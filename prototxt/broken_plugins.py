"""Installed plugins that are broken: each is named once in the log and left out, whole.

A plugin is a distribution, such as imae-xyz, with its entry points of the groups `imae.protos` and
`imae.layers`. If one of them is broken, none of it is used, so that no net meets half of it. Only a net that
has a type or a field of it is an error, and this module knows its words.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

from imae.files.errors import printable

logger = logging.getLogger(__name__)

# What foreign code may raise while it is imported. Not KeyboardInterrupt and MemoryError.
IMPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    ReferenceError,
    RuntimeError,
    SyntaxError,
    SystemExit,
    TypeError,
    ValueError,
    Warning,
)
REGISTERED = re.compile(r"""register_layer\(\s*(["'])(\w+)\1""")
EXTENSION = re.compile(r"extend\s+\.?caffe\.LayerParameter\s*\{([^}]*)\}")
MOST_SOURCE = 1 << 20  # bytes of a source file in which types are looked for


class BrokenPlugin(NamedTuple):
    """A plugin that is left out.

    name     its distribution
    reason   what is wrong, and how it is mended
    """

    name: str
    reason: str

    @property
    def remedy(self) -> str:
        return f"mend it or pip uninstall {self.name}"


_broken: dict[str, BrokenPlugin] = {}
_types: dict[str, str] = {}  # the plugin that has a type, as far as that is known
_fields: dict[str, str] = {}  # the plugin that has a field of LayerParameter


def distribution_of(entry: EntryPoint) -> str:
    """The name of the package, as pip knows it, that has an entry point."""
    return str(entry.dist.name) if entry.dist is not None else entry.name


def leave_out(name: str, reason: str) -> None:
    """Note that a plugin is broken, with one warning in the log."""
    if name not in _broken:
        plugin = _broken[name] = BrokenPlugin(
            name, " ".join(printable(" ".join(reason.splitlines())).split())
        )
        logger.warning("plugin %s is broken and left out: %s; %s", name, plugin.reason, plugin.remedy)


def is_broken(name: str) -> bool:
    """Whether this plugin is left out."""
    return name in _broken


def note_fields(name: str, proto: str) -> None:
    """Note which fields of LayerParameter the text of a broken plugin's .proto has."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", proto, flags=re.DOTALL)
    for body in EXTENSION.findall(text):
        for field in re.findall(r"(\w+)\s*=\s*\d+", body):
            _fields.setdefault(field, name)


def note_types(entry: EntryPoint) -> None:
    """Note which types the sources of a broken plugin register; nothing is imported."""
    for folder in package_folders(re.split("[.:]", entry.value)[0].strip()):
        for path in sorted(folder.rglob("*.py")):
            try:
                if path.stat().st_size > MOST_SOURCE:
                    continue
                source = path.read_text(encoding="utf-8", errors="replace")
            except OSError:  # its types are not known then
                continue
            for _, layer_type in REGISTERED.findall(source):
                _types.setdefault(layer_type, distribution_of(entry))


def package_folders(package: str) -> list[Path]:
    """Where the files of an installed package lie; its name has no dot, and it is not imported."""
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def broken_type(layer_type: str) -> str | None:
    """The error about a type of a broken plugin, or None where no plugin is known to have it."""
    if layer_type not in _types:
        return None
    return f"type {layer_type}: {_is_broken(_broken[_types[layer_type]])}"


def broken_field(message: str, field: str) -> str:
    """The end of an error about an unknown field that a broken plugin has: "; ...", or ""."""
    if message != "LayerParameter" or field not in _fields:
        return ""
    return f"; {_is_broken(_broken[_fields[field]])}"


def perhaps_broken() -> str:
    """The end of an error about a type or field that nobody knows, where a broken plugin may have it."""
    if not _broken:
        return ""
    plugins = "; ".join(f"{plugin.name}: {plugin.reason}; {plugin.remedy}" for plugin in _broken.values())
    return f"; a broken plugin may have it: {plugins}"


def _is_broken(plugin: BrokenPlugin) -> str:
    return f"the plugin {plugin.name} that has it is broken: {plugin.reason}; {plugin.remedy}"
