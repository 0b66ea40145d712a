"""Messages of Caffe's schema as tables: fields, types, defaults, and the comments of the .proto file."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

import imae.prototxt
from docs_site.docstrings import escape, prose

# The numbers of fields in descriptor.proto, by which a place in a .proto file is named.
MESSAGES, NESTED, FIELDS, EXTENSIONS, FILE_EXTENSIONS = 4, 3, 2, 6, 7
TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}
RULE = re.compile(r"(?m)^ *---- .*$")  # a line that parts a file
Comments = dict[tuple[str, str], str]


def field_table(message: Descriptor, only: Collection[str] = (), prefix: str = "") -> str:
    """The fields of a message, or some of them, as a table; types that are messages link to their table.

    prefix   of the links to the page of messages
    """
    rows = ["| field | type | default | |", "| --- | --- | --- | --- |"]
    for field in message.fields:
        if not only or field.name in only:
            comment = comments().get((message.full_name, field.name), "")
            rows.append(f"| `{field.name}` | {_type(field, prefix)} | {_default(field)} | {prose(comment)} |")
    return "\n".join(rows)


def messages_within(messages: Iterable[Descriptor]) -> list[Descriptor]:
    """The messages that are types of fields of these messages, and of theirs, by name."""
    found: dict[str, Descriptor] = {}
    waiting = list(messages)
    while waiting:
        for field in waiting.pop().fields:
            if (inner := field.message_type) is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return [found[name] for name in sorted(found)]


def short_name(message: Descriptor) -> str:
    """Its name in the .proto file: FillerParameter, Datum.Annotation."""
    return message.full_name.removeprefix("caffe.")


def _type(field: FieldDescriptor, prefix: str) -> str:
    many = "repeated " if field.is_repeated else ""
    if field.enum_type is not None:
        return many + ", ".join(f"`{value.name}`" for value in field.enum_type.values)
    if field.message_type is not None:
        name = short_name(field.message_type)
        return f"{many}[{escape(name)}]({prefix}#{anchor(field.message_type)})"
    return many + TYPES[field.type]


def anchor(message: Descriptor) -> str:
    """The anchor of a message's heading."""
    return short_name(message).lower().replace(".", "")


def _default(field: FieldDescriptor) -> str:
    if field.is_repeated or not field.has_default_value:
        return ""
    value = field.default_value
    if field.enum_type is not None:
        return f"`{field.enum_type.values_by_number[value].name}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


@cache
def comments() -> Comments:
    """The comments of fields, by message and field, as protoc reads them.

    A comment alone above several fields of an `extend` belongs to all of them: it names the fork.
    """
    folder = Path(imae.prototxt.__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "set")
        files = ("caffe.proto", "forks.proto")
        options = (f"-I{folder}", f"--descriptor_set_out={out}", "--include_source_info")
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *files], check=True)
        parsed = FileDescriptorSet.FromString(out.read_bytes()).file
    found: Comments = {}
    for file in parsed:
        _read_comments(file, found)
    return found


def _read_comments(file: FileDescriptorProto, found: Comments) -> None:
    group: dict[str, str] = {}
    for location in file.source_code_info.location:
        path = list(location.path)
        kinds = path[::2]  # of what is nested in what; the numbers between count them
        if len(path) % 2 or not (
            kinds == [FILE_EXTENSIONS]
            or (
                kinds[:1] == [MESSAGES] and kinds[-1] in (FIELDS, EXTENSIONS) and set(kinds[1:-1]) <= {NESTED}
            )
        ):
            continue
        above, beside = (
            RULE.sub("", comment).strip()
            for comment in (location.leading_comments, location.trailing_comments)
        )
        if path[0] == FILE_EXTENSIONS:
            field, owner = file.extension[path[1]], file.extension[path[1]].extendee.removeprefix(".")
            if above:
                group[owner] = above
            above = group.get(owner, "")
        else:
            message, names = file.message_type[path[1]], [file.package, file.message_type[path[1]].name]
            for index in path[3:-2:2]:
                message = message.nested_type[index]
                names.append(message.name)
            extends = path[-2] == EXTENSIONS
            field = (message.extension if extends else message.field)[path[-1]]
            owner = field.extendee.removeprefix(".") if extends else ".".join(names)
        text = "; ".join(part for part in (above, beside) if part)
        if text:
            found[owner, field.name] = text
