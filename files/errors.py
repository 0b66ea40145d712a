"""The errors that bad input raises. Only `main` catches them: it prints the line and exits with status 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not at run time: the schema itself raises PrototxtError
    from imae.prototxt.caffe_pb2 import LayerParameter


LONGEST = 2000  # characters of a message


class ImaeError(Exception):
    """Input that cannot be used. The message is one line: who or where, expected, got, remedy.

    It may quote an untrusted file: unprintable characters are escaped, and a long message is cut.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return printable(text)


def printable(text: str) -> str:
    """Text with unprintable characters escaped: those of an untrusted file could control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of another program's error, for one of ours; what it is where it has no text."""
    nothing = "there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    return next(iter(str(error).strip().splitlines()), nothing)


def check_utf8(text: str, problem: str) -> None:
    """PrototxtError where a text (a path of the command line) is not UTF-8, as strings of a message must be.

    problem   what cannot be done, and the remedy
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PrototxtError(f"{problem}: {text!r} is not UTF-8") from None


class PrototxtError(ImaeError, ValueError):
    """A net or solver that cannot be read or makes no sense; a broken schema plugin."""


class LayerError(ImaeError, ValueError):
    """A layer that cannot be built or run: "layer 'conv1' (Convolution): message"."""

    def __init__(self, layer: LayerParameter | str, message: str | None = None) -> None:
        """`layer` is the layer's parameter or its name; alone, it is the whole message."""
        if message is None:
            super().__init__(layer)
        elif isinstance(layer, str):
            super().__init__(f"layer '{layer}': {message}")
        else:
            super().__init__(f"layer '{layer.name}' ({layer.type}): {message}")


class LossError(ImaeError, ValueError):
    """A loss of imae.losses that cannot be built, or bottoms that it cannot have."""


class DataError(ImaeError, ValueError):
    """Data that is missing, empty, broken or of another shape than it should be."""


class CaffemodelError(ImaeError, ValueError):
    """Weights that cannot be read or do not fit the net."""


class SnapshotError(ImaeError, ValueError):
    """A solver state that cannot be read, or that belongs to another solver."""


class NotFiniteError(ImaeError, ValueError):
    """A training whose loss is NaN or infinite."""


class ExportError(ImaeError, ValueError):
    """A net that cannot be written in another form."""


class DeviceError(ImaeError, ValueError):
    """A requested device that is not available."""


class FileError(ImaeError, OSError):
    """A file or folder that cannot be written."""
