"""A net as a Graphviz drawing: layers as boxes, blobs as octagons.

    imae draw-net train_val.prototxt net.png --rankdir TB --phase TRAIN

OUTPUT ending in .dot, .gv or .raw is Graphviz's text and needs pydot only; any other ending is a format of
Graphviz's program `dot` (png, svg, pdf ...), which must be installed.

Caffe: python/draw_net.py, python/caffe/draw.py. Differs: nets of old forms are upgraded first; a rule without
a phase counts for both phases; kernel_h and kernel_w are read.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, PoolingParameter
from imae.prototxt.errors import ExportError, LayerError
from imae.prototxt.files import AnyPath, write_atomically
from imae.prototxt.text import read_net

if TYPE_CHECKING:
    import pydot

COMMAND = "draw-net"
HELP = "draw a net with Graphviz"

TEXT_FORMATS = ("dot", "gv", "raw")
RANKDIRS = ("LR", "TB", "RL", "BT")

BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
IN_PLACE_COLOUR, LAYER_COLOUR = "#90EE90", "#6495ED"
COLOURS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
LEARNING_TYPES = ("Convolution", "Deconvolution", "InnerProduct")


def layer_label(layer: LayerParameter, rankdir: str = "LR", display_lrm: bool = False) -> str:
    """What stands in a layer's box: name, type, window, learning rates; in lines where the graph is wide."""
    separator = " " if rankdir in ("TB", "BT") else "\\n"
    parts = [_escaped(layer.name), f"({_escaped(layer.type)})"]
    if layer.type == "Pooling":
        pool = layer.pooling_param
        parts[1] = f"({layer.type} {PoolingParameter.PoolMethod.Name(pool.pool)})"
        parts += _geometry(*(_sides(pool, name) for name in ("kernel_size", "stride", "pad")))
    elif layer.type in ("Convolution", "Deconvolution"):
        conv = layer.convolution_param
        parts += _geometry(*(_sides(conv, name) for name in ("kernel_size", "stride", "pad")))
    if display_lrm and layer.type in LEARNING_TYPES:
        mults = [spec.lr_mult for spec in layer.param[:2]]
        mults += [1.0] * (2 - len(mults))
        if any(mults):
            parts.append(f"lr mult: {mults[0]:.1f}, {mults[1]:.1f}")
    return separator.join(parts)


def edge_label(layer: LayerParameter) -> str:
    """What stands at the way to a layer's top: the batch size, or the number of channels."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    if layer.type == "InnerProduct":
        return str(layer.inner_product_param.num_output)
    return ""


def net_graph(
    net: NetParameter,
    rankdir: str = "LR",
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> pydot.Dot:
    """The graph of a net; `phase` leaves out layers whose rules name the other one.

    rankdir      the direction from input to output: LR, TB, RL or BT
    display_lrm  show the lr_mults of convolutions and inner products
    """
    pydot = _pydot()
    graph = pydot.Dot(_quoted(net.name or "Net"), graph_type="digraph", rankdir=rankdir)
    nodes: dict[str, pydot.Node] = {}
    edges: list[tuple[str, str, str]] = []
    for layer in net.layer:
        if phase is not None and not _in_phase(layer, phase):
            continue
        name = f"{layer.name}_{layer.type}"
        in_place = len(layer.bottom) == 1 and list(layer.bottom) == list(layer.top)
        colour = IN_PLACE_COLOUR if in_place else COLOURS.get(layer.type, LAYER_COLOUR)
        label = _quoted(layer_label(layer, rankdir, display_lrm))
        nodes[name] = pydot.Node(_quoted(name), label=label, shape="record", fillcolor=colour, style="filled")
        for bottom in layer.bottom:
            nodes[f"{bottom}_blob"] = pydot.Node(
                _quoted(f"{bottom}_blob"), label=_quoted(_escaped(bottom)), **BLOB_STYLE
            )
            edges.append((f"{bottom}_blob", name, ""))
        for top in layer.top:  # without a style as long as nobody reads it
            nodes[f"{top}_blob"] = pydot.Node(_quoted(f"{top}_blob"), label=_quoted(_escaped(top)))
            edges.append((name, f"{top}_blob", edge_label(layer) if label_edges else ""))
    for node in nodes.values():
        graph.add_node(node)
    for source, target, text in edges:
        graph.add_edge(pydot.Edge(nodes[source], nodes[target], label=_quoted(text)))
    return graph


def draw_net(
    net: NetParameter,
    rankdir: str = "LR",
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The drawing in a format of Graphviz; ExportError where pydot or Graphviz is missing or refuses it."""
    text: str = net_graph(net, rankdir, True, phase, display_lrm).to_string()
    if ext in TEXT_FORMATS:
        return text.encode()
    try:
        done = subprocess.run(["dot", f"-T{ext}"], input=text.encode(), capture_output=True, check=False)
    except FileNotFoundError:
        raise ExportError(
            f"a drawing as '{ext}' needs Graphviz's program `dot`, which is not here; install Graphviz, or "
            "write a .dot file"
        ) from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise ExportError(f"Graphviz cannot draw the net as '{ext}': {reason[0]}")
    return done.stdout


def draw_net_to_file(
    net: NetParameter,
    filename: AnyPath,
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Write the drawing; the file's ending says in which format."""
    ext = os.path.splitext(filename)[1].removeprefix(".").lower()
    if not ext:
        raise ExportError(f"'{os.fspath(filename)}': give the drawing an ending: .png, .svg, .pdf, .dot")
    write_atomically(filename, draw_net(net, rankdir, ext, phase, display_lrm))


def _in_phase(layer: LayerParameter, phase: int) -> bool:
    if layer.include and layer.exclude:
        raise LayerError(layer, "Specify either include rules or exclude rules; not both.")
    if layer.include:
        return any(not rule.HasField("phase") or rule.phase == phase for rule in layer.include)
    return not any(rule.HasField("phase") and rule.phase == phase for rule in layer.exclude)


def _geometry(kernel: str, stride: str, pad: str) -> list[str]:
    return [f"kernel size: {kernel or '1'}", f"stride: {stride or '1'}", f"pad: {pad or '0'}"]


def _sides(param: object, name: str) -> str:
    """A size of a window, both sides where they differ; nothing where it is not set."""
    stem = name.removesuffix("_size")
    high, wide = getattr(param, f"{stem}_h"), getattr(param, f"{stem}_w")
    if high or wide:
        return str(high) if high == wide else f"{high} x {wide}"
    value = getattr(param, name)
    values: Sequence[int] = [value] if isinstance(value, int) else list(value)
    return " x ".join(map(str, values)) if len(set(values)) > 1 else "".join(map(str, values[:1]))


def _escaped(text: str) -> str:
    """A name as it is in a label, whose own signs these are."""
    return re.sub(r"([\\{}|<>])", r"\\\1", text)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _pydot() -> ModuleType:
    try:
        import pydot
    except ModuleNotFoundError:
        raise ExportError("drawing needs the package pydot: pip install 'imae[draw]'") from None
    return pydot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("net", metavar="NET", help="the net's prototxt")
    parser.add_argument("output", metavar="OUTPUT", help="the drawing: .dot, .png, .svg, .pdf ...")
    parser.add_argument("--rankdir", choices=RANKDIRS, default="LR", help="where the net grows to (LR)")
    parser.add_argument(
        "--phase", choices=["TRAIN", "TEST", "ALL"], default="ALL", help="the layers of one phase only (ALL)"
    )
    parser.add_argument(
        "--display-lrm", "--display_lrm", action="store_true", help="show the lr_mults of learning layers"
    )


def run(args: argparse.Namespace) -> None:
    print(f"Drawing net to {args.output}")
    phase = {"TRAIN": TRAIN, "TEST": TEST}.get(args.phase)
    draw_net_to_file(read_net(args.net), args.output, args.rankdir, phase, args.display_lrm)
