"""Prototxts and binary messages from and to files.

Text is read by protobuf's own parser, strictly, as Caffe reads it: no unknown fields, no field given twice.
An error gives the place and the reason, with line and column counted from 1:

    net.prototxt:12:16: message "caffe.ReLUParameter" has no field "slope"; did you mean "negative_slope"?
"""

import os
import re
import warnings
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from imae.files.atomic import write_atomically
from imae.files.errors import PrototxtError
from imae.files.file_kinds import FileKind, file_kind, mistaken_for
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath, read_bytes
from imae.prototxt.broken_plugins import broken_field, perhaps_broken
from imae.prototxt.caffe_pb2 import NetParameter, SolverParameter
from imae.prototxt.fork_names import fork_of_field, fork_of_value
from imae.prototxt.upgrade import complete_snapshot_prefix, upgrade_net, upgrade_solver

M = TypeVar("M", bound=Message)


def read_net(path: AnyPath) -> NetParameter:
    """A net's prototxt of any age, as today's message."""
    return parse_net(_read_text(path), os.fspath(path))


def parse_net(text: str, path: str = "<text>") -> NetParameter:
    """A net from its text; `path` is for the log and errors."""
    return upgrade_net(parse_text(text, NetParameter, path), path)


def read_solver(path: AnyPath) -> SolverParameter:
    """A solver's prototxt of any age, as today's message; snapshot_prefix is made from the path if unset."""
    return complete_snapshot_prefix(parse_solver(_read_text(path), os.fspath(path)), os.fspath(path))


def parse_solver(text: str, path: str = "<text>") -> SolverParameter:
    """A solver from its text; `path` is for the log and errors."""
    return upgrade_solver(parse_text(text, SolverParameter, path), path)


def read_net_binary(path: AnyPath) -> NetParameter:
    """A .caffemodel (or other binary net) of any age, as today's message, its layers' blobs included."""
    return upgrade_net(read_binary(path, NetParameter), os.fspath(path))


def read_text(path: AnyPath, kind: type[M]) -> M:
    """A message from a text file, not upgraded."""
    return parse_text(_read_text(path), kind, os.fspath(path))


def read_binary(path: AnyPath, kind: type[M]) -> M:
    """A message from a binary file, such as a BlobProto or a SolverState, not upgraded."""
    return parse_binary(read_content(path), kind, path)


def parse_binary(data: bytes, kind: type[M], path: AnyPath) -> M:
    """A message from its bytes, not upgraded; `path` is for errors."""
    name, expected = kind.DESCRIPTOR.full_name, BINARY_KINDS.get(kind.DESCRIPTOR.name)
    try:
        message = kind.FromString(data)
        _check_strings(message)
    except (DecodeError, UnicodeDecodeError) as error:
        if mistaken := mistaken_for(data, expected):
            raise PrototxtError(f"{path}: not a binary {name}{mistaken}") from None
        raise PrototxtError(f"{path}: not a binary {name}, or cut short: {error}") from None
    # Another kind of message may parse by chance. (UnknownFieldSet makes an object of each unknown field.)
    foreign = len(data) < MOST_LOOKED_INTO and len(UnknownFieldSet(message)) > 0
    if foreign and (mistaken := mistaken_for(data, expected)):
        raise PrototxtError(f"{path}: not a binary {name}{mistaken}")
    if not message.ListFields():
        raise PrototxtError(f"{path}: not a binary {name}: nothing in it has a meaning there")
    return message


MOST_LOOKED_INTO = 1 << 26  # bytes
BINARY_KINDS = {"NetParameter": FileKind.NET, "SolverState": FileKind.STATE, "BlobProto": FileKind.BLOB}


def parse_text(text: str, kind: type[M], path: str) -> M:
    """A message from its text, not upgraded; `path` is for errors."""
    message = kind()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*invalid (octal )?escape sequence", DeprecationWarning)
            text_format.Parse(BACKSLASHES.sub(_octal, text), message)
    except DeprecationWarning as error:  # Caffe refuses such strings as well
        escape = re.search(r"sequence '(.+?)'", str(error))
        start = text.find(escape[1]) if escape else 0
        raise PrototxtError(
            f"{_where(path, text, start)}: a string has no such escape; for a backslash write \\\\"
        ) from None
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        start = sum(len(earlier) + 1 for earlier in text.split("\n")[: line - 1]) + column - 1
        reason = str(error).removeprefix(f"{line}:{column} : ")
        start, reason = _explain(reason, text, start, kind)
        raise PrototxtError(f"{_where(path, text, start)}: {reason}") from None
    except RecursionError:
        raise PrototxtError(f"{path}: nested too deeply") from None
    missing: list[str] = message.FindInitializationErrors()  # type: ignore[attr-defined]  # left out of the stubs
    if missing:
        raise PrototxtError(f"{path}: required field {missing[0]} is missing")
    return message


# protobuf's parser takes time quadratic in the length of such a run. No honest text has one.
BACKSLASHES = re.compile(r"(?:\\\\){100,}")


def _octal(run: re.Match[str]) -> str:
    """The same backslashes of a string, each as an octal escape."""
    return r"\134" * (len(run[0]) // 2)


def to_text(message: Message) -> str:
    """The text of a message, as Caffe prints it: fields by number, floats in 6 digits where exact."""
    return re.sub(
        r"(?m)^( *\w+: )(-?\d[\d.]*[.e][\d.e+-]*)$", _short_float, text_format.MessageToString(message)
    )


def write_text(message: Message, path: AnyPath) -> None:
    """Write a message as text."""
    write_atomically(path, to_text(message).encode())


def _short_float(match: re.Match[str]) -> str:
    """Python's 1.0 and 1000000.0 are C++'s 1 and 1e+06."""
    short = f"{float(match[2]):.6g}"
    return match[1] + (short if float(short) == float(match[2]) else match[2].removesuffix(".0"))


def read_content(path: AnyPath) -> bytes:
    """The content of a file; PrototxtError where it is missing, unreadable or empty."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise PrototxtError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise PrototxtError(f"{path}: is a folder, expected a file") from None
    except OSError as error:
        raise PrototxtError(f"{path}: cannot be read: {error.strerror}") from None
    if not data or data.isspace():
        raise PrototxtError(f"{path}: the file is empty")
    return data


def _read_text(path: AnyPath) -> str:
    data = read_content(path)
    if file_kind(data) in NOT_PROTOTXTS:
        raise PrototxtError(f"{path}: expected a prototxt in UTF-8{mistaken_for(data)}")
    if b"\0" in data:
        raise PrototxtError(
            f"{path}: is a binary file, expected a prototxt, which is text{mistaken_for(data)}"
        )
    try:
        return data.decode()
    except UnicodeDecodeError:
        data = STRING_OR_COMMENT.sub(_decodable_comment, data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        where = _where(os.fspath(path), before, len(before))
        raise PrototxtError(f"{where}: byte 0x{data[error.start]:02x} is not UTF-8") from None


# Kinds of files that are no prototxts; some have no zero byte.
NOT_PROTOTXTS = (FileKind.LFS, FileKind.HTML, FileKind.UTF16, FileKind.GZIP, FileKind.BZIP2)

# A string that is not closed ends with its line; else the search would start again at each quote in it.
STRING_OR_COMMENT = re.compile(rb""" "(?:\\.|[^"\\\n])*+"? | '(?:\\.|[^'\\\n])*+'? | \#[^\n]* """, re.VERBOSE)


def _decodable_comment(match: re.Match[bytes]) -> bytes:
    """A comment may be in any encoding, as in Caffe."""
    return match[0].decode(errors="replace").encode() if match[0].startswith(b"#") else match[0]


def _check_strings(message: Message) -> None:
    """Raise UnicodeDecodeError for a string that is not UTF-8; protobuf returns such strings as bytes."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for nested in [value] if isinstance(value, Message) else value:
                _check_strings(nested)
        elif field.type == field.TYPE_STRING:
            for string in [value] if isinstance(value, str | bytes) else value:
                if isinstance(string, bytes):
                    string.decode()


def _where(path: str, text: str, start: int) -> str:
    """The place of the character at an offset: path:line:column, counted from 1."""
    return f"{path}:{text.count(chr(10), 0, start) + 1}:{start - text.rfind(chr(10), 0, start)}"


def _explain(reason: str, text: str, start: int, kind: type[Message]) -> tuple[int, str]:
    """The offset and the message of our error, for protobuf's `reason` to refuse the text at `start`."""
    got, pool = _token(text, start), kind.DESCRIPTOR.file.pool
    if match := re.search('Message type "(.*?)" has no field named "(.*?)"', reason):
        fields = pool.FindMessageTypeByName(match[1]).fields_by_name
        message = match[1].rpartition(".")[2]
        hint = _other_root(match[1], match[2]) or broken_field(message, match[2])
        hint = hint or fork_of_field(message, match[2]) or did_you_mean(match[2], fields, '"', any_case=True)
        if message == "LayerParameter" and not broken_field(message, match[2]):
            hint += perhaps_broken()
        return start, f'message "{match[1]}" has no field "{match[2][:60]}"{hint}'
    if match := re.search('Message type "(.*?)" should not have multiple "(.*?)" fields', reason):
        return text.rfind(match[2], 0, start), f'field "{match[2]}" of message "{match[1]}" is given twice'
    if match := re.search('Enum type "(.*?)" has no value', reason):
        names = pool.FindEnumTypeByName(match[1]).values_by_name
        hint = fork_of_value(match[1], got) or did_you_mean(got, names, any_case=True)
        return start, f'enum "{match[1]}" has no value {got}; known: {", ".join(names)}{hint}'
    if match := re.match('Expected "(.)"', reason):
        return start, f'expected "{match[1]}" before the end of the file'
    if match := re.search('Expected "(.)"', reason):
        return start, f'expected "{match[1]}", got {got}'
    if "does not have extensions" in reason:
        return text.rfind("[", 0, start), "expected a field name, got ["
    for words, expected in EXPECTED.items():
        if words in reason:
            return start, f"expected {expected}, got {got}"
    if "Value out of range" in reason:
        return start, f"{got} is out of range for this field"
    if "missing ending quote" in reason:
        return start, f"the string {got} is not closed on its line"
    if "codec" in reason:
        return start, "the escapes of a string do not make UTF-8 text"
    return start, reason.rpartition("': ")[2]


def _other_root(message: str, field: str) -> str:
    """The end of an error where a net is read and the field is a solver's, or the reverse; else ""."""
    for here, there, owner in (
        (NetParameter, SolverParameter, "a solver"),
        (SolverParameter, NetParameter, "a net"),
    ):
        if message == here.DESCRIPTOR.full_name and field in there.DESCRIPTOR.fields_by_name:
            return f"; {owner} has that field: this is the prototxt of {owner}"
    return ""


EXPECTED = {
    "Expected identifier": "a field name",
    "parse integer": "an integer",
    "parse float": "a number",
    "octal float": "a number",
    '"true" or "false"': "true or false",
    "Expected string": "a string in quotes",
}


def _token(text: str, start: int) -> str:
    match = re.compile(r"""\s*("[^"\n]*"?|'[^'\n]*'?|[\w.+-]+|\S)""").match(text, start)
    if not match:
        return "the end of the file"
    return match[1][:60] if match[1].isprintable() else ascii(match[1][:60])
