"""Nets of thousands of layers, tops, stages: the time that they take grows in proportion, no faster.

With loops within loops each of these takes 15 s or more; without, about a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from imae.files.errors import LayerError
from imae.net.fuse import fuse_training
from imae.net.in_place import note_in_place
from imae.net.net import Net
from imae.net.step import Step
from imae.prototxt import TRAIN
from imae.prototxt.state import filter_by_state
from imae.prototxt.text import parse_net

SECONDS = 8.0

DATA = 'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } } }\n'


@contextmanager
def soon() -> Iterator[None]:
    """The block takes little of this process's own time, however busy the machine is."""
    begun = time.process_time()
    yield
    assert time.process_time() - begun < SECONDS


def many(text: str, count: int) -> str:
    """The text once for each number."""
    return "".join(text.replace("#", str(i)) for i in range(count))


def test_a_layer_with_many_tops_and_one_with_many_bottoms() -> None:
    text = 'layer { name: "x" type: "DummyData" dummy_data_param { shape { dim: 1 } } ' + many(
        'top: "#" ', 20000
    )
    with soon():
        net = Net(
            parse_net(text + '} layer { name: "s" type: "Silence" ' + many('bottom: "#" ', 20000) + "}")
        )
    assert len(net.blob_shapes) == 20000
    with pytest.raises(LayerError, match="Top blob '7' produced by multiple sources"):
        Net(parse_net(text + 'top: "7" }'))


@pytest.mark.parametrize("rule", ["include", "exclude"])
def test_many_stages(rule: str) -> None:
    stages = many('stage: "#" ', 20000)
    with soon():
        param = parse_net(f'layer {{ name: "x" {rule} {{ {stages} }} }} state {{ {stages} }}')
        assert len(filter_by_state(param, param.state).layer) == (rule == "include")


def test_parameters_that_many_layers_share_with_another_net() -> None:
    layer = (
        'layer { name: "#" type: "InnerProduct" bottom: "x" top: "#" inner_product_param { num_output: 1 } }'
    )
    param = parse_net(DATA + many(layer, 1000))
    net = Net(param)
    with soon():
        other = Net(param, share_from=net)
    assert all(a is b for a, b in zip(net.learnable, other.learnable, strict=True))
    assert all(other.params[name] == net.params[name] for name in net.params)


def chain(kind: str, count: int, bottom: Callable[[int], str], top: Callable[[int], str]) -> list[Step]:
    """Steps of one layer of this type, in as many places."""
    text = DATA + f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" }}'
    layer = Net(parse_net(text)).layer("l")
    return [Step(layer, layer, (bottom(i),), (top(i),)) for i in range(count)]


def test_backward_passes_that_read_memory_which_later_layers_may_overwrite() -> None:
    steps = chain("TanH", 40000, lambda i: f"b{i}", lambda i: f"b{i + 1}")
    steps += chain("ReLU", 1, lambda i: "b7", lambda i: "b7")
    with soon():
        note_in_place(steps, TRAIN)
    assert [index for index, step in enumerate(steps) if step.overwritten] == [6]


@pytest.mark.parametrize("kind", ["BatchNorm", "ReLU"])
def test_layers_that_might_be_fused_with_one_far_away(kind: str) -> None:
    net = Net(parse_net(DATA))
    steps = chain(kind, 1, lambda i: "x", lambda i: "top0")  # its statistics are its own
    steps += chain(kind, 19999, lambda i: "x", lambda i: f"top{i + 1}")
    steps += chain("Scale" if kind == "BatchNorm" else "Power", 1, lambda i: "top0", lambda i: "y")
    net.steps = tuple(steps)
    with soon():
        plan = fuse_training(net)
    assert len(plan) == (20000 if kind == "BatchNorm" else 20001)
