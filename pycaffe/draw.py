"""caffe.draw: draw a net with Graphviz; see imae.converters.draw_net.

        caffe.draw.draw_net_to_file(net_param, "net.png", rankdir="TB")

Caffe: python/caffe/draw.py.
"""

from imae.converters.draw_net import (
    BLOB_STYLE,
    LAYER_STYLE_DEFAULT,
    NEURON_LAYER_STYLE,
    choose_color_by_layertype,
    draw_net,
    draw_net_to_file,
    get_edge_label,
    get_layer_label,
    get_layer_lr_mult,
    get_pooling_types_dict,
    get_pydot_graph,
)

__all__ = [
    "BLOB_STYLE", "LAYER_STYLE_DEFAULT", "NEURON_LAYER_STYLE", "choose_color_by_layertype", "draw_net",
    "draw_net_to_file", "get_edge_label", "get_layer_label", "get_layer_lr_mult", "get_pooling_types_dict",
    "get_pydot_graph",
]  # fmt: skip
