"""A net as a picture: layers as boxes, blobs as octagons, drawn by Graphviz.

    caffe.draw.draw_net_to_file(net_param, "net.png", rankdir="TB")

Needs the package pydot (`pip install 'imae[draw]'`) and the program `dot` of Graphviz; a file NAME.raw is dot's own
text and does without the program.

Caffe: python/caffe/draw.py. Differs: all blobs look alike; a rule without a phase holds in both; names may have any
characters.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from imae.prototxt import LayerParameter, NetParameter, Phase, PoolingParameter
from imae.prototxt.errors import ImaeError
from imae.prototxt.files import write_atomically

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
COLORS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
LEARNING_TYPES = ("Convolution", "Deconvolution", "InnerProduct")


def get_pooling_types_dict() -> dict[int, str]:
    """The names of the pooling methods by number."""
    return {number: name for name, number in PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: LayerParameter) -> str:
    """What stands at the edge to a layer's top: the batch size or the number of outputs, where there is one."""
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
        raise ImaeError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ImaeError(f"layer '{layer.name}' has {len(layer.param)} params; expected weights and biases")
    weights, biases = [*(param.lr_mult for param in layer.param), 1.0, 1.0][:2]
    return weights, biases


def get_layer_label(layer: LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """What stands in a layer's box, in quotes: its name, type, kernel, and lr_mults if asked for.

    Side by side where the graph runs downwards or upwards, else in lines.
    """
    what = layer.type
    if layer.type == "Pooling":
        what += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
    parts = [layer.name, f"({what})"]
    if layer.type == "Pooling":
        pooling = layer.pooling_param
        parts += _spatial(pooling.kernel_size, pooling.stride, pooling.pad)
    elif layer.type in ("Convolution", "Deconvolution"):
        conv = layer.convolution_param
        parts += _spatial(*(list(given)[:1] for given in (conv.kernel_size, conv.stride, conv.pad)))
    if display_lrm and layer.type in LEARNING_TYPES and any(mults := get_layer_lr_mult(layer)):
        parts.append("lr mult: {:.1f}, {:.1f}".format(*mults))
    return _quoted((" " if rankdir in ("TB", "BT") else r"\n").join(map(_record_text, parts)))


def _spatial(kernel: int | list[int], stride: int | list[int], pad: int | list[int]) -> list[str]:
    return [
        f"{name}: {(given[0] if given else default) if isinstance(given, list) else given}"
        for name, given, default in (("kernel size", kernel, 1), ("stride", stride, 1), ("pad", pad, 0))
    ]


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a layer's box."""
    return COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> Any:
    """The pydot.Dot of a net.

    rankdir   the direction in which it runs: LR, RL, TB or BT
    phase     draw the layers of this phase only
    """
    pydot = _pydot()
    graph = pydot.Dot(_quoted(caffe_net.name or "Net"), graph_type="digraph", rankdir=rankdir)
    blobs: set[str] = set()
    for layer in caffe_net.layer:
        if phase is not None and not _is_in_phase(layer, phase):
            continue
        if len(layer.bottom) == 1 and layer.bottom == layer.top:
            style = NEURON_LAYER_STYLE
        else:
            style = LAYER_STYLE_DEFAULT | {"fillcolor": choose_color_by_layertype(layer.type)}
        name = _quoted(f"{layer.name}_{layer.type}")
        graph.add_node(pydot.Node(name, label=get_layer_label(layer, rankdir, display_lrm), **style))
        for blob in (*layer.bottom, *layer.top):
            if blob not in blobs:
                graph.add_node(pydot.Node(_quoted(f"{blob}_blob"), label=_quoted(blob), **BLOB_STYLE))
                blobs.add(blob)
        for blob in layer.bottom:
            graph.add_edge(pydot.Edge(_quoted(f"{blob}_blob"), name, label='""'))
        label = get_edge_label(layer) if label_edges else '""'
        for blob in layer.top:
            graph.add_edge(pydot.Edge(name, _quoted(f"{blob}_blob"), label=label))
    return graph


def _is_in_phase(layer: LayerParameter, phase: int) -> bool:
    if layer.include and layer.exclude:
        raise ImaeError(f"layer '{layer.name}' has both include and exclude specified; keep one of them")
    met = [not rule.HasField("phase") or rule.phase == phase for rule in layer.include or layer.exclude]
    return any(met) if layer.include else not any(met)


def draw_net(
    caffe_net: NetParameter,
    rankdir: str,
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The picture in a format that Graphviz knows (png, svg, pdf, ...), or `raw`, dot's text."""
    graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
    if ext == "raw":
        return str(graph.to_string()).encode()
    try:
        picture: bytes = graph.create(format=ext)
    except FileNotFoundError as error:
        raise ImaeError(
            "drawing needs the program `dot`: install Graphviz (e.g. apt-get install graphviz), or write a .raw "
            "file and draw it elsewhere"
        ) from error
    except AssertionError as error:  # pydot's answer to dot's failure
        raise ImaeError(f"`dot` cannot draw this net as {ext!r}; formats are png, svg, pdf, raw ...") from error
    return picture


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: str | os.PathLike[str],
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Draw a net into a file, in the format that the file's ending names."""
    ext = os.fspath(filename).rpartition(".")[2]
    write_atomically(filename, draw_net(caffe_net, rankdir, ext, phase, display_lrm))


def _pydot() -> Any:
    try:
        return importlib.import_module("pydot")
    except ModuleNotFoundError as error:
        raise ImaeError("drawing needs the package pydot: pip install 'imae[draw]'") from error


def _quoted(text: str) -> str:
    """As a string of the dot language."""
    return '"{}"'.format(text.replace('"', r"\""))


def _record_text(text: str) -> str:
    """Without the characters that mean something in the label of a record."""
    return "".join(f"\\{c}" if c in "{}|<>" else c for c in text)
