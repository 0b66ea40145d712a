"""A net as a Graphviz drawing: layers as boxes, blobs as octagons.

The functions have the names that scripts know from caffe.draw. They need the package pydot (`imae[draw]`),
and for formats other than Graphviz's own text (dot, gv, raw) Graphviz's program `dot`.

Caffe: python/caffe/draw.py. Differs: a rule without a phase holds in both phases; names may have any
characters; both sides of a non-square window are shown.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from typing import Any

from google.protobuf.message import Message

from imae.files.atomic import write_atomically
from imae.files.errors import ExportError, LayerError
from imae.files.read import AnyPath
from imae.prototxt import LayerParameter, NetParameter, PoolingParameter

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}  # of in-place layers
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
COLOURS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
LEARNING_TYPES = ("Convolution", "Deconvolution", "InnerProduct")
RANKDIRS = ("LR", "TB", "RL", "BT")
TEXT_FORMATS = ("dot", "gv", "raw")


def get_pooling_types_dict() -> dict[int, str]:
    """The names of the pooling methods by number."""
    return {number: name for name, number in PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: LayerParameter) -> str:
    """The label of the edge to a layer's top: the batch size, the number of outputs, or two quotes."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    if layer.type == "InnerProduct":
        return str(layer.inner_product_param.num_output)
    return '""'


def get_layer_lr_mult(layer: LayerParameter) -> tuple[float, float]:
    """lr_mult of the weights and of the biases."""
    if layer.type not in LEARNING_TYPES:
        raise LayerError(layer, f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise LayerError(layer, f"expected the param of weights and biases, got {len(layer.param)}")
    weights, biases = [*(spec.lr_mult for spec in layer.param), 1.0, 1.0][:2]
    return weights, biases


def get_layer_label(layer: LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """The label of a layer's box, in quotes: its name, type and window, and its lr_mults if `display_lrm`.

    They are side by side where the graph runs downwards or upwards, else one below the other.
    """
    kind, window = layer.type, list[str]()
    if layer.type == "Pooling":
        kind += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
        window = _window(layer.pooling_param)
    elif layer.type in ("Convolution", "Deconvolution"):
        window = _window(layer.convolution_param)
    parts = [layer.name, f"({kind})", *window]
    if display_lrm and layer.type in LEARNING_TYPES:
        weights, biases = get_layer_lr_mult(layer)
        if weights or biases:
            parts.append(f"lr mult: {weights:.1f}, {biases:.1f}")
    return _quoted((" " if rankdir in ("TB", "BT") else r"\n").join(map(_escaped, parts)))


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a layer's box."""
    return COLOURS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> Any:
    """The pydot.Dot of a net; ExportError where pydot is not installed.

    rankdir       the direction in which the net runs: LR, TB, RL or BT
    phase         draw only the layers of this phase
    display_lrm   show the lr_mults of convolutions and inner products
    """
    pydot = _pydot()
    graph = pydot.Dot(_identifier(caffe_net.name or "Net"), graph_type="digraph", rankdir=rankdir)
    nodes: dict[str, Any] = {}
    edges = []
    for layer in caffe_net.layer:
        if phase is not None and not _is_in_phase(layer, phase):
            continue
        name = _identifier(f"{layer.name}_{layer.type}")
        if len(layer.bottom) == 1 and layer.bottom == layer.top:
            style = NEURON_LAYER_STYLE
        else:
            style = LAYER_STYLE_DEFAULT | {"fillcolor": choose_color_by_layertype(layer.type)}
        nodes[name] = pydot.Node(name, label=get_layer_label(layer, rankdir, display_lrm), **style)
        for bottom in layer.bottom:
            blob = _identifier(f"{bottom}_blob")
            nodes[blob] = pydot.Node(blob, label=_quoted(_escaped(bottom)), **BLOB_STYLE)
            edges.append(pydot.Edge(blob, name, label='""'))
        for top in layer.top:  # without a style unless a layer reads it
            blob = _identifier(f"{top}_blob")
            nodes[blob] = pydot.Node(blob, label=_quoted(_escaped(top)))
            edges.append(pydot.Edge(name, blob, label=get_edge_label(layer) if label_edges else '""'))
    for node in nodes.values():
        graph.add_node(node)
    for edge in edges:
        graph.add_edge(edge)
    return graph


def draw_net(
    caffe_net: NetParameter,
    rankdir: str,
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The drawing in a format of Graphviz, or Graphviz's text for dot, gv and raw.

    ExportError where pydot or Graphviz is not installed, and where Graphviz knows no such format.
    """
    text = str(get_pydot_graph(caffe_net, rankdir, True, phase, display_lrm).to_string()).encode()
    if ext in TEXT_FORMATS:
        return text
    try:
        done = subprocess.run(["dot", f"-T{ext}"], input=text, capture_output=True, check=False)
    except FileNotFoundError:
        raise ExportError(
            f"drawing as '{ext}' needs Graphviz's program `dot`, which is not here; install Graphviz "
            "(apt-get install graphviz), or write a .dot file and draw it elsewhere"
        ) from None
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip() or "it does not say why").splitlines()[0]
        raise ExportError(f"`dot` cannot draw the net as '{ext}': {reason}")
    return done.stdout


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: AnyPath,
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Draw a net into a file, in the format that the file's ending names."""
    ext = os.path.splitext(filename)[1].removeprefix(".").lower()
    if not ext:
        raise ExportError(f"'{os.fspath(filename)}': give the drawing an ending: .png, .svg, .pdf, .dot ...")
    write_atomically(filename, draw_net(caffe_net, rankdir, ext, phase, display_lrm))


def _window(param: Message) -> list[str]:
    """Kernel, stride and pad of a convolution or pooling."""
    fields = (
        ("kernel size", "kernel_size", "kernel", 1),
        ("stride", "stride", "stride", 1),
        ("pad", "pad", "pad", 0),
    )
    return [f"{name}: {_sides(param, field, stem, default)}" for name, field, stem, default in fields]


def _sides(param: Message, field: str, stem: str, default: int) -> str:
    """A size, or the size of each axis where they differ."""
    if param.HasField(f"{stem}_h") or param.HasField(f"{stem}_w"):
        sizes = [getattr(param, f"{stem}_h"), getattr(param, f"{stem}_w")]
    else:
        value = getattr(param, field)
        sizes = [value] if isinstance(value, int) else list(value) or [default]
    return " x ".join(map(str, sizes)) if len(set(sizes)) > 1 else str(sizes[0])


def _is_in_phase(layer: LayerParameter, phase: int) -> bool:
    if layer.include and layer.exclude:
        raise LayerError(layer, "Specify either include rules or exclude rules; not both.")
    if layer.include:
        return any(not rule.HasField("phase") or rule.phase == phase for rule in layer.include)
    return not any(rule.HasField("phase") and rule.phase == phase for rule in layer.exclude)


def _escaped(text: str) -> str:
    """Text for a label, with the special characters of labels escaped."""
    return re.sub(r"([\\{}|<>])", r"\\\1", text)


def _quoted(text: str) -> str:
    """Text in quotes for a label; its backslashes are escaped already, or part of an escape."""
    return '"{}"'.format(text.replace('"', r"\""))


def _identifier(text: str) -> str:
    """A node's identifier in quotes. Backslashes are escaped: one before a quote would escape the quote."""
    return _quoted(text.replace("\\", r"\\"))


def _pydot() -> Any:
    try:
        return importlib.import_module("pydot")
    except ModuleNotFoundError:
        raise ExportError("drawing needs the package pydot: pip install 'imae[draw]'") from None
