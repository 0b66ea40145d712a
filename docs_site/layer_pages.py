"""A page for each layer type of the registry, and an index of all of them.

What stands on a page is read from the class, from the docstring of its module, from the schema, and from the
layer that the page's snippet builds.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import torch
from google.protobuf.descriptor import Descriptor
from torch import Tensor

import imae.layers
from docs_site import loss_pages
from docs_site.docstrings import fence, prose, to_markdown
from docs_site.schema_tables import field_table, messages_within, short_name
from docs_site.snippets import SNIPPETS, keys_of, layer_of, net_text
from imae.converters.export_onnx import DEFAULT_OPSET
from imae.converters.graph import Graph
from imae.files.errors import ExportError, LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import FIRST_PARAMETER, Layer, LossLayer, Shape
from imae.layers.registry import DRAWERS, class_of, layer_class, layer_types
from imae.layers.run import Run
from imae.prototxt import TEST, TRAIN, LayerParameter, Phase

OURS = "imae.layers."
GROUPS = {
    "data": "Data",
    "vision": "Vision",
    "recurrent": "Recurrent",
    "common": "Common",
    "normalization": "Normalization",
    "activation": "Activation",
    "utility": "Utility",
    "loss": "Losses of Caffe",
    "plugins": "Losses for wrong labels",
    "forks": "Of forks of Caffe",
}
# Types that read or write files, or run the user's code, when they are made: their pages show no blobs.
NEED_FILES = {
    "AnnotatedData", "Data", "DenseImageData", "HDF5Data", "HDF5Output", "ImageData", "ImageSegData",
    "Python", "WindowData",
}  # fmt: skip
MESSAGES_PAGE = "layers/messages.md"
# A paragraph of a docstring that names the code, or the paper, that the layer follows.
SOURCE = re.compile(r"\.(?:cpp|cu|hpp)\b|arXiv|/[\w-]+:|\bCaffe: ")
SHARED_WITH = re.compile(r"\n?Bottoms, top(?:[^:.]|\.(?=\w))*:\s+see\s+\w+\.py\.?\s*$")
FILE = re.compile(r"\b([a-z][a-z0-9_]*)\.py\b")


class LayerPage(NamedTuple):
    """A type, its folder in layers/, and where its page is, from docs/."""

    type_name: str
    drawer: str

    @property
    def path(self) -> str:
        """By drawer: LSTM and Lstm differ in case alone, which not all file systems see."""
        return f"layers/{self.drawer}/{self.type_name}.md"


def layer_pages() -> list[LayerPage]:
    """The types of this project, by drawer and name."""
    pages = []
    for name in layer_types():
        module = layer_class(name).__module__
        if module.startswith(OURS):  # not those of installed plugins
            pages.append(LayerPage(name, module.split(".")[2]))
    return sorted(pages, key=lambda page: (DRAWERS.index(page.drawer), page.type_name.lower()))


def summary(type_name: str) -> str:
    """The first sentence of a type's docstring, without its name."""
    first = " ".join(_docstring(layer_class(type_name)).split("\n\n")[0].split())
    text = re.sub(rf"^{type_name}(?: \(\w+\))?: ", "", first)
    return re.split(r"(?<=[^.]\.)\s(?=[A-Z])", text)[0].rstrip(".;")


def index_page() -> str:
    """All types by group, a line each."""
    pages = layer_pages()
    text = [
        "# Layer types",
        f'{len(pages)} types can stand in a prototxt as `type: "..."`: all 61 of Caffe 1.0, the losses for '
        "wrong labels, and what forks of Caffe added ([Forks of Caffe](../forks.md) has their fields, too). "
        "[Messages](messages.md) has the parameters that several of them share, such as fillers. A type of "
        "your own is [a plugin](../plugins.md).",
    ]
    for drawer, title in GROUPS.items():
        text.append(f"## {title}")
        rows = ["| type | |", "| --- | --- |"]
        rows += [
            f"| [`{page.type_name}`]({page.drawer}/{page.type_name}.md) | {prose(summary(page.type_name))} |"
            for page in pages
            if page.drawer == drawer
        ]
        text.append("\n".join(rows))
    return "\n\n".join(text) + "\n"


@cache
def page_text(page: LayerPage) -> str:
    """The page of a type."""
    cls = layer_class(page.type_name)
    keys = keys_of(page.type_name)
    body, source, differs = _parts(_docstring(cls), page.type_name)
    text = [f"# {page.type_name}", *_rewritten(body, page)]
    text += ["## In a prototxt", *_snippets(keys)]
    if curve := loss_pages.curve_of_layer(page.type_name):
        text += ["## Weight", curve, loss_pages.CAPTION]
    text += ["## Facts", _facts(page, keys)]
    text += ["## Parameters", *_parameters(page, keys)]
    if differs:
        text += ["## Differs", f"From {_original(page)}: {_links(prose(differs), page)}"]
    text += ["## Source", _links(prose(source), page), f"Here: {_files(keys, page)}"]
    if page.drawer == "forks":
        text.append("[Forks of Caffe](../../forks.md) has all layers and fields of forks.")
    for other in _other_modules(page, keys):
        stem = other.rpartition(".")[2]
        text += [f"## {stem}.py", *_rewritten(importlib.import_module(other).__doc__ or "", page)]
    return "\n\n".join(part for part in text if part) + "\n"


def messages_page() -> str:
    """The messages that are types of fields of layers' parameters."""
    used = {
        read.message.full_name: read.message
        for page in layer_pages()
        for key in keys_of(page.type_name)
        for read in _fields_read(layer_of(key))
    }
    text = [
        "# Messages",
        'Messages that stand within the parameters of layers. `weight_filler { type: "xavier" }` is a '
        "FillerParameter.",
    ]
    for message in messages_within(used.values()):
        text += [f"## {short_name(message)}", field_table(message)]
    return "\n\n".join(text) + "\n"


def _docstring(cls: type[Layer]) -> str:
    return inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")


def _parts(docstring: str, type_name: str) -> tuple[str, str, str]:
    """What a layer is, whose code it follows, and what differs from that code."""
    blocks = docstring.split("\n\n")
    place = next((index for index, block in enumerate(blocks) if re.search(r"\bDiffers: ", block)), -1)
    source = blocks.pop(place)
    if place == -1 and not SOURCE.search(source):  # it speaks of no other code
        blocks, source = [*blocks, source], ""
    before = ""
    if caffe := re.search(r"(?:^|\.\s+)(Caffe: (?:.|\n)*)", source):
        before, source = source[: caffe.start(1)].strip(), caffe[1]
    shared = SHARED_WITH.search(source)  # "Bottoms, top and S: see label_loss.py" is no part of the source
    if shared:
        source = source[: shared.start()].strip()
    blocks += [text for text in (before, shared[0].strip() if shared else "") if text]
    head, *rest = re.split(r"\s*\bDiffers: ", source, maxsplit=1)
    body = re.sub(rf"^{type_name}(?: \(\w+\))?: (\w?)", lambda m: m[1].upper(), "\n\n".join(blocks))
    return body, head.strip(), rest[0].strip() if rest else ""


def _snippets(keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if variant := key.partition(":")[2]:
            yield f"{variant}'s:"
        yield fence(net_text(key), "prototxt")
        if _is_source(key, class_of(layer_of(key))) and key in NEED_FILES:
            yield "The files that it names must be there."


def _facts(page: LayerPage, keys: Sequence[str]) -> str:
    """A table of what can be counted: bottoms, tops, blobs, and what becomes of the layer in an export."""
    rows = ["| | |", "| --- | --- |"]
    for key in keys:
        cls = class_of(layer_of(key))
        variant = key.partition(":")[2]
        label = f", {variant}" if variant else ""
        rows.append(f"| of{label} | {_origin(cls, page)} |")
        rows.append(f"| bottoms{label} | {_count(cls, 'bottom')} |")
        rows.append(f"| tops{label} | {_count(cls, 'top')} |")
        if blobs := _blobs(key):
            rows.append(f"| parameter blobs{label}, of the net above | {blobs} |")
        if gradients := _gradients(key):
            rows.append(f"| gradient{label} | {gradients} |")
        if issubclass(cls, LossLayer) and cls.default_loss_weight is LossLayer.default_loss_weight:
            rows.append(f"| `loss_weight`{label} | of the first top 1, unless it is written |")
        rows.append(f"| in a deployed net{label} | {_deployed(key, cls)} |")
        rows.append(f"| ONNX{label} | {_onnx(key, cls)} |")
    return "\n".join(rows)


def _origin(cls: type[Layer], page: LayerPage) -> str:
    """Whose layer it is: Caffe's, a fork's, or of this project."""
    if page.drawer == "plugins":
        return "imae"
    if page.drawer != "forks":
        return "Caffe 1.0"
    _, source, _ = _parts(_docstring(cls), page.type_name)
    return prose(re.split(r": |, which |, as in ", source)[0])


def _count(cls: type[Layer], kind: str) -> str:
    exact = getattr(cls, f"num_{kind}s")
    low, high = getattr(cls, f"min_{kind}s"), getattr(cls, f"max_{kind}s")
    text = str(exact)
    if exact is None and not (low or high):
        text = "as its own code wants" if cls.__name__ == "Python" else "see above"
    elif exact is None:
        text = str(low) if low == high else f"{low} to {high}" if high else f"{low} or more"
    if kind == "top" and cls.same_count:
        text += ", as many as bottoms"
    if kind == "top" and cls.auto_tops:
        text += "; where none is written, the net makes it"
    return text


@cache
def _built(key: str, phase: Phase = TRAIN) -> Layer | None:
    param = layer_of(key)
    if param.type in NEED_FILES:
        return None
    param.phase = phase
    layer = class_of(param)(param)
    layer.build(list(SNIPPETS[key].shapes().values()), Run(CaffeRandom(1)))
    return layer


def _blobs(key: str) -> str:
    layer = _built(key)
    if layer is None:
        return ""
    return ", ".join(
        f"`{layer.blob_name(index)}` {'x'.join(map(str, shape)) or 'a number'}"
        for index, shape in enumerate(layer.blob_shapes)
    )


def _is_source(key: str, cls: type[Layer]) -> bool:
    """Whether its tops come from outside of the net; those of a Python layer with bottoms do not."""
    return cls.makes_input and not layer_of(key).bottom


def _gradients(key: str) -> str:
    """Which bottoms and blobs get a gradient in TRAIN, tried on numbers that are labels and indices, too.

    "" where the layer takes no such numbers; its docstring speaks of gradients.
    """
    layer = _built(key)
    if layer is None or not layer.param.bottom or not layer.param.top:
        return ""
    shapes = list(SNIPPETS[key].shapes().values())
    generator = torch.Generator().manual_seed(1)
    bottoms = []
    for index, shape in enumerate(shapes):
        example = layer.example(index, shapes)
        # From 0 to 1: probabilities, and cut to integers the label or index 0.
        values = torch.rand(shape, generator=generator)
        bottoms.append(values if example is None else torch.from_numpy(example))
    try:
        layer(*bottoms)
    except LayerError:
        return ""
    found = [f"`bottom[{index}]`" for index in range(len(bottoms)) if _reaches(layer, bottoms, index)]
    blobs = [
        f"`{layer.blob_name(index)}`"
        for index, blob in enumerate(layer.blobs)
        if _reaches(layer, bottoms, blob)
    ]
    return f"to {', '.join([*found, *blobs])}" if found or blobs else "none"


def _reaches(layer: Layer, bottoms: Sequence[Tensor], end: int | Tensor) -> bool:
    """Whether a backward pass sends a gradient to a bottom, by its index, or to a blob."""
    inputs = [bottom.clone() for bottom in bottoms]
    target = inputs[end].requires_grad_() if isinstance(end, int) else end
    try:
        tops = layer(*inputs)
        tops = [top for top in ([tops] if isinstance(tops, Tensor) else tops) if top.requires_grad]
        if not tops:
            return False
        ones = [torch.ones_like(top) for top in tops]
        return torch.autograd.grad(tops, target, ones, allow_unused=True)[0] is not None
    except LayerError:  # no backward pass, or none to labels
        return False


def _deployed(key: str, cls: type[Layer]) -> str:
    if _is_source(key, cls):
        return "an Input of the same shape takes its place"
    return "stays" if cls.deployed else "left out"


def _onnx(key: str, cls: type[Layer]) -> str:
    """The operators that the layer of the snippet becomes, or why there are none."""
    if _is_source(key, cls):
        return "an input of the model"
    if not cls.deployed:
        return "left out"
    layer = _built(key, TEST)
    if layer is None or cls.to_onnx is Layer.to_onnx:
        return "none: a net with it cannot be exported"
    shapes: dict[str, Shape] = SNIPPETS[key].shapes()
    bottoms, tops = list(layer.param.bottom), list(layer.param.top)
    named = [f"{top} of it" for top in tops]  # a value of its own where the layer is in-place
    top_shapes = layer.checked_top_shapes([shapes[name] for name in bottoms])
    graph = Graph(DEFAULT_OPSET, {**shapes, **dict(zip(named, top_shapes, strict=True))})
    try:
        layer.to_onnx(graph, bottoms, named)
    except ExportError as error:
        return prose(f"not in opset {DEFAULT_OPSET}: {str(error).partition(': ')[2]}")
    operators = dict.fromkeys(node.op_type for node in graph.nodes)
    shown = ", ".join(f"`{name}`" for name in operators)
    return f"{shown} (opset {DEFAULT_OPSET}, the net above)"


class ReadField(NamedTuple):
    """A message of LayerParameter that a type reads; `parts`: those of its fields that are read, () all."""

    name: str
    number: int
    message: Descriptor
    parts: tuple[str, ...]


def _fields_read(param: LayerParameter) -> Iterator[ReadField]:
    cls = class_of(param)
    own = {name.lower() for name in (param.type, *(base.__name__ for base in cls.__mro__))}
    for field in LayerParameter.DESCRIPTOR.fields:
        message = field.message_type
        if field.number < FIRST_PARAMETER or message is None:
            continue
        parts = tuple(e.partition(".")[2] for e in cls.reads if e.startswith(f"{field.name}."))
        named = field.name.removesuffix("_param").replace("_", "") in own and field.name not in cls.namesakes
        if named or field.name in cls.reads:
            yield ReadField(field.name, field.number, cast(Descriptor, message), ())
        elif parts:
            yield ReadField(field.name, field.number, cast(Descriptor, message), parts)


def _own_first(key: str) -> list[ReadField]:
    """The messages that a snippet's layer reads: that of the type's name, then what it shares with others."""
    name = key.partition(":")[0].lower()
    reads = sorted(_fields_read(layer_of(key)), key=lambda read: -read.number)
    own = [read for read in reads if read.name.removesuffix("_param").replace("_", "") == name]
    return [*own, *(read for read in reads if read not in own)]


def _parameters(page: LayerPage, keys: Sequence[str]) -> Iterator[str]:
    shown: set[str] = set()
    for key in keys:
        for read in _own_first(key):
            if read.name not in shown:
                shown.add(read.name)
                only = [name for name in read.parts if name in read.message.fields_by_name]
                yield f"### `{read.name}`"
                yield f"{short_name(read.message)}{'; of its fields this type reads' if only else ''}"
                yield field_table(read.message, only, "../messages.md")
    if not shown:
        yield "None but those that all layers have (`include`, `param`, `loss_weight` and others)."


def _original(page: LayerPage) -> str:
    if page.drawer == "forks":
        return "the fork"
    return "the authors' code" if page.drawer == "plugins" else "Caffe 1.0"


def _files(keys: Sequence[str], page: LayerPage) -> str:
    modules = dict.fromkeys(
        [layer_class(page.type_name).__module__, *(class_of(layer_of(key)).__module__ for key in keys)]
    )
    return ", ".join(f"`{name.removeprefix('imae.').replace('.', '/')}.py`" for name in modules)


def _other_modules(page: LayerPage, keys: Sequence[str]) -> list[str]:
    """Modules of variants, and those that the docstrings refer to, `see label_loss.py`, if no type's own."""
    home = layer_class(page.type_name).__module__
    waiting = [home, *(class_of(layer_of(key)).__module__ for key in keys)]
    found: list[str] = []
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found.append(name)
            stems = FILE.findall(importlib.import_module(name).__doc__ or "")
            waiting += [f"{OURS}{_home_of(stem)}.{stem}" for stem in stems if _shared(stem)]
    return found[1:]


@cache
def _homes() -> dict[str, str]:
    """The drawer of each file in the drawers."""
    root = Path(imae.layers.__file__).parent
    return {path.stem: drawer for drawer in DRAWERS for path in sorted((root / drawer).glob("[a-z]*.py"))}


def _home_of(stem: str) -> str:
    return _homes()[stem]


@cache
def _types_by_file() -> dict[str, LayerPage]:
    return {layer_class(page.type_name).__module__.rpartition(".")[2]: page for page in layer_pages()}


def _shared(stem: str) -> bool:
    return stem in _homes() and stem not in _types_by_file()


def _links(text: str, page: LayerPage) -> str:
    """Names of files of other types as links to their pages."""

    def link(match: re.Match[str]) -> str:
        other = _types_by_file().get(match[1])
        if other is None or other == page:
            return match[0]
        return f"[`{match[1]}.py`](../{other.path.removeprefix('layers/')})"

    return re.sub(r"(?<!\[)`([a-z][a-z0-9_]*)\.py`", link, text)


def _rewritten(docstring: str, page: LayerPage) -> Iterator[str]:
    """A docstring as Markdown, with links to the pages of other types, but not in blocks of code."""
    text = to_markdown(docstring)
    yield "".join(
        part if part.startswith("```") else _links(part, page)
        for part in re.split(r"(?ms)(^```.*?^```$)", text)
    )
