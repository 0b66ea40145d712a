"""The message classes of Caffe's schema and of the plugins' parameters, in a descriptor pool of their own.

The pool is not protobuf's default one, so another package's caffe_pb2 in the same process does not clash
with it. It is built once, when this module is first imported, from caffe.proto and the file of each entry
point `NAME = PACKAGE:FILE.proto` in the group `imae.protos` of an installed package. Such a file is proto2:

    syntax = "proto2";
    package imae_xyz;
    import "caffe.proto";
    message XyzParameter { optional float scale = 1; optional caffe.FillerParameter filler = 2; }
    extend caffe.LayerParameter { optional XyzParameter xyz_param = 20001; }

Every extension of LayerParameter becomes a real field of it, so that a net can have `xyz_param { scale: 2 }`.
A plugin that is broken is left out, with one warning in the log (broken_plugins.py).

grpcio-tools compiles such a file each time that this module is imported. A package can do that once, with
the folder of caffe.proto as FOLDER, and name the result in its entry point: `NAME = PACKAGE:FILE.pb`. Then
users need no grpcio-tools.

    python -m grpc_tools.protoc -I. -IFOLDER --descriptor_set_out=FILE.pb FILE.proto
"""

import copy
import copyreg
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Self

from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from imae.files.errors import PrototxtError
from imae.prototxt import caffe_pb2
from imae.prototxt.broken_plugins import (
    distribution_of,
    is_broken,
    leave_out,
    note_fields,
    package_folders,
)

GROUP = "imae.protos"
PLUGINS_START = 20000  # of plugins' numbers in LayerParameter; R-FCN has 10000 and 10001


class Plugin(NamedTuple):
    """A plugin's schema: its entry point (for errors), the text of its .proto or the bytes of its .pb, and
    who installed it.
    """

    name: str
    proto: str | bytes
    distribution: str = ""


def installed_plugins() -> list[Plugin]:
    """The plugins that are installed, by name; their packages are located but not imported.

    One whose .proto is missing is left out, with a warning.
    """
    plugins = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        distribution = distribution_of(entry)
        package, _, file = entry.value.partition(":")
        path = _proto_path(package, file)
        if path is None:
            leave_out(
                distribution,
                f"its entry point {entry.name!r} in {GROUP} is {entry.value!r}, expected PACKAGE:FILE.proto, "
                "and there is no such file; is it listed in [tool.setuptools.package-data]?",
            )
            continue
        content = path.read_bytes()
        proto = content if file.endswith(".pb") else content.decode(errors="replace")
        plugins.append(Plugin(f"{entry.name} = {entry.value}", proto, distribution))
    return plugins


def _proto_path(package: str, file: str) -> Path | None:
    """A file of a package, which is not imported, nor are those that it is in."""
    first, *rest = package.split(".")
    paths = [Path(folder, *rest, file) for folder in package_folders(first)]
    return next((path for path in paths if os.access(path, os.R_OK) and path.is_file()), None)


def read_proto(plugin: Plugin) -> FileDescriptorProto:
    """The compiled .proto of a plugin."""
    if isinstance(plugin.proto, str):
        files = _compile(plugin, plugin.proto)
    else:
        try:
            files = FileDescriptorSet.FromString(plugin.proto)
        except DecodeError:
            files = FileDescriptorSet()
    if len(files.file) != 1:
        raise PrototxtError(
            f"plugin '{plugin.name}': the file must hold one .proto that protoc has compiled "
            f"(--descriptor_set_out, without --include_imports); it holds {len(files.file)}"
        )
    (file,) = files.file
    if file.syntax not in ("", "proto2"):
        raise PrototxtError(f"plugin '{plugin.name}': its .proto must be proto2, got {file.syntax}")
    return file


def _compile(plugin: Plugin, text: str) -> FileDescriptorSet:
    if importlib.util.find_spec("grpc_tools") is None:
        raise PrototxtError(
            f"plugin '{plugin.name}': its .proto must be compiled, and there is no grpcio-tools; "
            f"pip install grpcio-tools, or imae with its extra: imae[plugins]"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "caffe.proto").write_bytes(Path(__file__).with_name("caffe.proto").read_bytes())
        (folder / "plugin.proto").write_text(text, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            "--descriptor_set_out=set",
            "plugin.proto",
        ]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            lines = done.stderr.splitlines() or [f"protoc ended with status {done.returncode}"]
            first = next((line for line in lines if line.startswith("plugin.proto:")), lines[-1])
            if match := re.search(r'"caffe.LayerParameter" does not declare (\d+) as an extension', first):
                raise PrototxtError(_number_taken(plugin, int(match[1])))
            raise PrototxtError(f"plugin '{plugin.name}': its .proto cannot be compiled: {first}")
        return FileDescriptorSet.FromString((folder / "set").read_bytes())


def _number_taken(plugin: Plugin, number: int) -> str:
    """The error about a field number below those for plugins."""
    caffe = FileDescriptorProto.FromString(caffe_pb2.SERIALIZED)
    (layer,) = (message for message in caffe.message_type if message.name == "LayerParameter")
    names = {field.number: field.name for field in layer.field}
    taken = "is kept for Caffe and its forks"
    if number in names:
        taken = f"is also taken by {names[number]} of caffe.proto"
    return (
        f"plugin '{plugin.name}': field number {number} of LayerParameter {taken}; "
        f"use {PLUGINS_START} or more"
    )


def build_pool(plugins: Sequence[Plugin] = ()) -> DescriptorPool:
    """A pool with Caffe's schema, where the plugins' extensions of LayerParameter are fields of it.

    PrototxtError where a plugin is broken.
    """
    pool, broken = build_working_pool(plugins)
    for reason in broken.values():
        raise PrototxtError(reason)
    return pool


def build_working_pool(plugins: Sequence[Plugin]) -> tuple[DescriptorPool, dict[str, str]]:
    """`build_pool` of the plugins that are not broken; and by distribution, what is wrong with the others.

    A distribution is in the pool with all its files or with none. Of two that do not go together the later
    one is the broken one.
    """
    broken: dict[str, str] = {}
    distributions: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        distributions.setdefault(plugin.distribution or plugin.name, []).append(plugin)
    schema = _Schema()
    for distribution, members in distributions.items():
        try:
            schema = schema.extended(members)
        except PrototxtError as error:
            broken[distribution] = str(error)
    return schema.pool, broken


class _Schema:
    """Caffe's schema and that of some plugins; it does not change, a larger one is made of it.

    layer   LayerParameter, in the first of `files`
    taken   who has a name or number of a field of LayerParameter
    types   who has a full name of a type
    """

    def __init__(self) -> None:
        caffe = FileDescriptorProto.FromString(caffe_pb2.SERIALIZED)
        self.files = [caffe]
        self.names: list[str] = []
        del self.layer.extension_range[:]  # a field must not lie in one
        self.taken: dict[str | int, str] = {}
        for field in self.layer.field:
            self.taken[field.name] = self.taken[field.number] = "caffe.proto"
        self.types = {f"caffe.{name}": "caffe.proto" for name in _type_names(caffe)}
        self.pool = self._make_pool()

    @property
    def layer(self) -> DescriptorProto:
        (layer,) = (message for message in self.files[0].message_type if message.name == "LayerParameter")
        return layer

    def extended(self, plugins: Iterable[Plugin]) -> Self:
        """This schema and that of more plugins; PrototxtError where these are broken."""
        larger = copy.deepcopy(self)
        for plugin in plugins:
            larger._add(plugin)
        larger.pool = larger._make_pool()
        return larger

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = copy.copy(self)
        twin.files = [*map(copy.deepcopy, self.files[:1]), *self.files[1:]]  # only the first one is changed
        twin.names, twin.taken, twin.types = [*self.names], {**self.taken}, {**self.types}
        return twin

    def _add(self, plugin: Plugin) -> None:
        file = read_proto(plugin)
        who = f"plugin '{plugin.name}'"
        for name in _type_names(file):
            full_name = f"{file.package}.{name}".lstrip(".")
            if (other := self.types.setdefault(full_name, who)) != who:
                raise PrototxtError(f"{who}: {full_name} is also defined by {other}; rename one")
        for field in _take_layer_fields(file):
            if field.number < PLUGINS_START:
                raise PrototxtError(_number_taken(plugin, field.number))
            for key in (field.name, field.number):
                if (other := self.taken.setdefault(key, who)) != who:
                    raise PrototxtError(
                        f"{who}: field {field.name} = {field.number} of LayerParameter: "
                        f"{key} is also taken by {other}; change one of them"
                    )
            self.layer.field.append(field)
        self.files.append(file)
        self.names.append(plugin.name)

    def _make_pool(self) -> DescriptorPool:
        pool = DescriptorPool()
        try:
            pool.AddSerializedFile(_merged(self.files).SerializeToString())
        except TypeError as error:
            names = ", ".join(self.names)
            raise PrototxtError(f"the schemas of the plugins {names} do not go together: {error}") from None
        return pool


def _type_names(file: FileDescriptorProto) -> list[str]:
    return [message.name for message in file.message_type] + [enum.name for enum in file.enum_type]


def _take_layer_fields(scope: FileDescriptorProto | DescriptorProto) -> list[FieldDescriptorProto]:
    """Remove the extensions of LayerParameter from a file or message and return them as plain fields."""
    fields = [field for field in scope.extension if field.extendee == ".caffe.LayerParameter"]
    for field in fields:
        scope.extension.remove(field)
        field.ClearField("extendee")
    nested = scope.message_type if isinstance(scope, FileDescriptorProto) else scope.nested_type
    return fields + [field for message in nested for field in _take_layer_fields(message)]


def _merged(files: Iterable[FileDescriptorProto]) -> FileDescriptorProto:
    """All files as one.

    LayerParameter now uses the plugins' messages, and these may use Caffe's. Files cannot import each other
    in a circle, but messages of one file can use each other. The file has no package: a message named like
    each package holds that package's types, so every full name stays the same.
    """
    merged = FileDescriptorProto(name="caffe.proto")
    for file in files:
        messages, enums, extensions = merged.message_type, merged.enum_type, merged.extension
        for part in filter(None, file.package.split(".")):
            same_name = [message for message in messages if message.name == part]
            package = same_name[0] if same_name else messages.add(name=part)
            messages, enums, extensions = package.nested_type, package.enum_type, package.extension
        messages.extend(file.message_type)
        enums.extend(file.enum_type)
        extensions.extend(file.extension)
    return merged


def message_class(pool: DescriptorPool, full_name: str) -> type[Message]:
    """The class of a message, e.g. caffe.NetParameter or imae_xyz.XyzParameter."""
    return GetMessageClass(pool.FindMessageTypeByName(full_name))


def caffe_name(name: str) -> Any:
    """A message class, an enum or an enum value of package caffe: NetParameter, Phase, TRAIN.

    DESCRIPTOR and _NETPARAMETER, _V1LAYERPARAMETER_LAYERTYPE, ... are descriptors, as in the modules that
    protoc writes. They describe caffe.proto itself; in our pool its package is a message.
    """
    if name == "DESCRIPTOR" or name in (descriptors := _caffe_descriptors()):
        return _caffe_file() if name == "DESCRIPTOR" else descriptors[name]
    kinds = (CAFFE.nested_types_by_name, CAFFE.enum_types_by_name, CAFFE.enum_values_by_name)
    if not any(name in kind for kind in kinds):
        raise AttributeError(f"caffe.proto has no {name}")
    return getattr(GetMessageClass(CAFFE), name)


@cache
def _caffe_file() -> FileDescriptor:
    pool = DescriptorPool()
    pool.AddSerializedFile(caffe_pb2.SERIALIZED)
    return pool.FindFileByName("caffe.proto")


@cache
def _caffe_descriptors() -> dict[str, Any]:
    """The descriptors of messages and enums by the names that protoc gives them."""
    descriptors: dict[str, Any] = {}

    def add(name: str, descriptor: Any) -> None:
        name = f"{name}_{descriptor.name.upper()}"
        descriptors[name] = descriptor
        for nested in (*getattr(descriptor, "nested_types", ()), *getattr(descriptor, "enum_types", ())):
            add(name, nested)

    file = _caffe_file()
    for descriptor in (*file.message_types_by_name.values(), *file.enum_types_by_name.values()):
        add("", descriptor)
    return descriptors


def _parsed(full_name: str, data: bytes) -> Message:
    return message_class(POOL, full_name).FromString(data)


def _reduced(message: Message) -> tuple[Any, ...]:
    return _parsed, (message.DESCRIPTOR.full_name, message.SerializePartialToString())


def _make_picklable(message: Descriptor) -> None:
    """Pickle with our pool, e.g. for worker processes: protobuf itself would search its default pool."""
    copyreg.pickle(GetMessageClass(message), _reduced)
    for nested in message.nested_types:
        _make_picklable(nested)


def _installed_pool() -> DescriptorPool:
    """The pool with the plugins that are installed; broken ones are left out, with a warning each."""
    plugins = installed_plugins()
    broken = {
        plugin.distribution for plugin in plugins if is_broken(plugin.distribution)
    }  # a file is missing
    pool, reasons = build_working_pool([plugin for plugin in plugins if plugin.distribution not in broken])
    for distribution, reason in reasons.items():
        leave_out(distribution, reason)
    for plugin in plugins:
        if is_broken(plugin.distribution) and isinstance(plugin.proto, str):
            note_fields(plugin.distribution, plugin.proto)
    return pool


POOL = _installed_pool()
CAFFE = POOL.FindMessageTypeByName("caffe")
for _message in POOL.FindFileByName("caffe.proto").message_types_by_name.values():
    _make_picklable(_message)
