"""The names in an exported model, of nodes, values and initializers, are the net's; no Identity is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from fed_nets import unfilled
from test_onnx import test_net

from imae.converters.export_onnx import ExportOptions, export_net
from imae.converters.identities import remove_identities
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, NetParameter
from imae.prototxt.models import inception, resnet50
from imae.prototxt.models.net_parts import deploy
from imae.prototxt.text import parse_net

LENET = """
name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 2 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
        inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "drop1" type: "Dropout" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
"""
X = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }'


def model_of(text: str, **options: bool) -> onnx.ModelProto:
    net = parse_net(text)
    net.state.phase = TEST
    return export_net(Net(net, Run(CaffeRandom(1))), ExportOptions(**options)).model


def lines(model: onnx.ModelProto) -> list[str]:
    """NAME: INPUTS -> OUTPUTS for each node."""
    return [f"{node.name}: {' '.join(node.input)} -> {' '.join(node.output)}" for node in model.graph.node]


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of bodies, too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def initializers(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(value.dims) for value in model.graph.initializer}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in nodes(model.graph)]


def check_unique(model: onnx.ModelProto) -> None:
    names = [node.name for node in nodes(model.graph)]
    assert len(names) == len(set(names)) and all(names)
    values = [name for node in nodes(model.graph) for name in node.output]
    values += [value.name for value in (*model.graph.input, *model.graph.initializer)]
    assert len(values) == len(set(values))


def test_a_net_is_found_again_in_its_model() -> None:
    model = model_of(LENET)
    assert lines(model) == [
        "conv1: data conv1.weight conv1.bias -> conv1",
        "pool1: conv1 -> pool1",
        "ip1/Flatten: pool1 -> ip1/Flatten",
        "ip1/Gemm: ip1/Flatten ip1.weight ip1.bias -> ip1@ip1",
        "relu1: ip1@ip1 -> ip1",
        "ip2: ip1 ip2.weight ip2.bias -> ip2",
        "prob: ip2 -> prob",
    ]
    assert initializers(model) == {
        "conv1.weight": (2, 1, 5, 5),
        "conv1.bias": (2,),
        "ip1.weight": (6, 32),
        "ip1.bias": (6,),
        "ip2.weight": (3, 6),
        "ip2.bias": (3,),
    }
    check_unique(model)


def test_versions_of_a_blob_that_layers_overwrite() -> None:
    model = export_net(test_net()).model
    assert lines(model)[:5] == [
        "conv: data conv.weight -> conv@conv",
        "bn: conv@conv bn/constant bn/constant_2 bn.mean bn.variance -> conv@bn",
        "scale/Mul: conv@bn scale.weight -> scale/Mul",
        "scale/Add: scale/Mul scale.bias -> conv@scale",
        "relu: conv@scale -> conv",
    ]
    check_unique(model)


def test_what_is_folded_has_the_name_of_the_convolution() -> None:
    net = test_net()
    model = export_net(net, ExportOptions(fold=True, softmax=True)).model
    assert lines(model)[:2] == [
        "conv: data conv.weight conv.bias -> conv@conv",
        "relu: conv@conv -> conv",
    ]
    assert lines(model)[-2:] == [
        "fc/Gemm: fc/Flatten fc.weight fc.bias -> fc_logits",
        "Softmax: fc_logits -> fc",
    ]
    (weight,) = (value for value in model.graph.initializer if value.name == "conv.weight")
    assert weight.dims == list(net.params["conv"][0].shape)
    assert not np.allclose(onnx.numpy_helper.to_array(weight), net.params["conv"][0].detach().numpy())
    check_unique(model)


LSTM = """
layer { name: "in" type: "Input" top: "x" top: "cont"
        input_param { shape { dim: 4 dim: 2 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h"
        recurrent_param { num_output: 5 weight_filler { type: "uniform" } } }
"""


def test_an_lstm() -> None:
    model = model_of(LSTM)
    assert {name: shape for name, shape in initializers(model).items() if "." in name} == {
        "lstm.W_xc": (3, 20),
        "lstm.b_c": (20,),
        "lstm.W_hc": (5, 20),
    }
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    assert loop.name == "lstm/Loop" and loop.output[-1] == "h"
    assert {node.name.partition("/")[0] for node in nodes(model.graph)} == {"lstm"}
    # The condition passes through; the hidden state is a result, too.
    assert operators(model).count("Identity") == 2
    check_unique(model)


SHARED = f"""
{X}
layer {{ name: "left" type: "Convolution" bottom: "x" top: "l" param {{ name: "w" }} param {{ name: "b" }}
        convolution_param {{ num_output: 3 kernel_size: 1 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "right" type: "Convolution" bottom: "l" top: "r" param {{ name: "w" }} param {{ name: "b2" }}
        convolution_param {{ num_output: 3 kernel_size: 1 }} }}
"""


def test_a_blob_that_layers_share_is_there_once() -> None:
    model = model_of(SHARED)
    assert list(initializers(model)) == ["left.weight", "left.bias", "right.bias"]
    assert lines(model)[1] == "right: l left.weight right.bias -> r"


def test_a_shared_blob_in_another_form_has_the_layers_own_name() -> None:
    text = f"""{X}
        layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "y" param {{ name: "w" }}
                inner_product_param {{ num_output: 5 axis: 3 bias_term: false
                                      weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "b" type: "InnerProduct" bottom: "y" top: "z" param {{ name: "w" }}
                inner_product_param {{ num_output: 5 axis: 3 bias_term: false transpose: true }} }}"""
    assert initializers(model_of(text)) == {"a.weight": (5, 5), "b.weight": (5, 5)}


def test_names_that_are_taken_get_a_number() -> None:
    """Two layers of one name, and a blob with the name of a value inside a layer."""
    text = f"""{X}
        layer {{ name: "a" type: "Power" bottom: "x" top: "a/Mul" power_param {{ scale: 2 shift: 1 }} }}
        layer {{ name: "a" type: "ReLU" bottom: "a/Mul" top: "a/Mul" }}
        layer {{ name: "a" type: "ReLU" bottom: "a/Mul" top: "a/Mul" }}
        layer {{ name: "a" type: "InnerProduct" bottom: "a/Mul" top: "a.weight"
                inner_product_param {{ num_output: 2 bias_term: false
                                      weight_filler {{ type: "xavier" }} }} }}"""
    model = model_of(text)
    assert lines(model) == [
        "a/Mul: x a/constant -> a/Mul_2",
        "a/Add: a/Mul_2 a/constant_2 -> a/Mul@a",
        "a: a/Mul@a -> a/Mul@a_2",
        "a_2: a/Mul@a_2 -> a/Mul",
        "a/Flatten: a/Mul -> a/Flatten",
        "a/Gemm: a/Flatten a.weight_2 -> a.weight",
    ]
    check_unique(model)


# -- no Identity --------------------------------------------------------------------------------------------


def test_idle_layers_leave_nothing() -> None:
    """Split, Dropout, Power of 1, in the middle and at the end, in place or not."""
    text = f"""{X}
        layer {{ name: "one" type: "Power" bottom: "x" top: "one" }}
        layer {{ name: "twice" type: "Power" bottom: "one" top: "twice" power_param {{ scale: 2 }} }}
        layer {{ name: "drop" type: "Dropout" bottom: "twice" top: "dropped" }}
        layer {{ name: "a" type: "ReLU" bottom: "dropped" top: "a" }}
        layer {{ name: "b" type: "Sigmoid" bottom: "dropped" top: "b" }}
        layer {{ name: "drop_b" type: "Dropout" bottom: "b" top: "b" }}
        layer {{ name: "end" type: "Dropout" bottom: "a" top: "end" }}"""
    model = model_of(text)
    assert lines(model) == [
        "twice: x twice/constant -> twice",
        "a: twice -> end",  # the output keeps its name, and the blob before it loses it
        "b: twice -> b",
    ]
    assert [value.name for value in model.graph.output] == ["b", "end"]


def test_constants_are_read_without_a_copy() -> None:
    text = f"""{X}
        layer {{ name: "p" type: "Parameter" top: "p"
                parameter_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
        layer {{ name: "sum" type: "Eltwise" bottom: "x" bottom: "p" top: "sum" }}
        layer {{ name: "boxes" type: "PriorBox" bottom: "sum" bottom: "x" top: "boxes"
                prior_box_param {{ min_size: 2 }} }}
        layer {{ name: "twice" type: "Concat" bottom: "boxes" bottom: "boxes" top: "twice" }}"""
    model = model_of(text, dynamic_batch=False)
    assert lines(model) == ["sum: x p.parameter -> sum", "twice: boxes boxes -> twice"]
    assert set(initializers(model)) == {"p.parameter", "boxes"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ('layer { name: "drop" type: "Dropout" bottom: "x" top: "y" }', ["drop: x -> y"]),
        (
            """layer { name: "a" type: "ReLU" bottom: "x" top: "a" }
               layer { name: "one" type: "Dropout" bottom: "a" top: "y" }
               layer { name: "two" type: "Dropout" bottom: "a" top: "z" }""",
            ["a: x -> y", "two: y -> z"],
        ),
        (
            """layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 } } }
               layer { name: "a" type: "ReLU" bottom: "x" top: "a" }""",
            ["p: p.parameter -> p", "a: x -> a"],
        ),
    ],
    ids=["input", "output", "constant"],
)
def test_an_output_that_is_a_copy_has_a_node(layers: str, expected: list[str]) -> None:
    model = model_of(f"{X} {layers}", dynamic_batch=False)
    assert lines(model) == expected
    (identity,) = (node for node in model.graph.node if node.op_type == "Identity")
    assert identity.doc_string == f"an output of its own that equals {identity.input[0]}"


def test_bodies_read_what_has_another_name_now() -> None:
    """A Loop's body reads values of the graph around it by name."""
    node = onnx.helper.make_node
    body = onnx.helper.make_graph([node("Neg", ["inner"], ["out"], name="n")], "body", [], [])
    graph = [
        node("Abs", ["x"], ["inner"], name="abs"),
        node("Identity", ["inner"], ["blob"], name="copy"),
        node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body),
    ]
    assert remove_identities(graph, [], ["x", "c"], ["y"], ["x", "c", "blob", "y"]) == {"inner": "blob"}
    assert [made.name for made in graph] == ["abs", "if"]
    assert graph[0].output == ["blob"]
    assert [attribute.g.node[0].input for attribute in graph[1].attribute] == [["blob"], ["blob"]]


@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
def test_lenet_has_no_identity(fold: bool) -> None:
    assert "Identity" not in operators(model_of(LENET, fold=fold))


@pytest.mark.parametrize("made", [inception.googlenet_bn, resnet50.resnet50], ids=["GoogLeNet", "ResNet-50"])
def test_large_nets_fold_to_what_they_compute(made: Callable[[], NetParameter]) -> None:
    net = Net(unfilled(deploy(made(), 3, 224, 224)), Run(CaffeRandom(1)))
    generator = torch.Generator().manual_seed(2)
    for step in net.steps:
        for index, blob in enumerate(step.layer.blobs):
            if blob.dim() > 1:
                blob.data.normal_(0, (2 / blob[0].numel()) ** 0.5, generator=generator)
            elif step.layer.type == "BatchNorm":
                blob.data.fill_((0, 1, 1)[index])
    model = export_net(net, ExportOptions(fold=True, dynamic_batch=False)).model
    assert {*operators(model)} - {"Add", "MaxPool", "Concat"} == {
        *("Conv", "Relu", "AveragePool", "Flatten", "Gemm", "Softmax")
    }
    learned = [step.layer.name for step in net.steps if step.layer.type in ("Convolution", "InnerProduct")]
    assert [*initializers(model)] == [f"{name}.{kind}" for name in learned for kind in ("weight", "bias")]
    check_unique(model)
