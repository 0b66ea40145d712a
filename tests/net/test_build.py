"""What a net is made of: steps that are run in one place, plans that leave it as it is, a run handed down."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data_resources import DataResources
from imae.layers.ranks import ALONE, Ranks
from imae.layers.run import Run
from imae.net.fuse import FusedBatchNormScale, fuse_training
from imae.net.net import Net
from imae.net.step import run_step
from imae.prototxt import TEST, TRAIN
from imae.prototxt.text import parse_net

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5, 7] } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "n" }
layer { name: "scale" type: "Scale" bottom: "n" top: "s" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "s" top: "r" }
layer { name: "cut" type: "Slice" bottom: "r" top: "a" top: "b" top: "c" slice_param { axis: 1 } }
layer { name: "none" type: "Silence" bottom: "a" bottom: "b" bottom: "c" }
"""


def net() -> Net:
    return Net(parse_net(NET), Run(CaffeRandom(1)))


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))


def test_a_step_gives_a_tuple_whatever_its_layer_returns() -> None:
    made, values = net(), {"x": picture()}
    lengths = []
    for step in made.steps[1:]:
        tops = run_step(step, values)
        assert isinstance(tops, tuple)
        values.update(zip(step.tops, tops, strict=True))
        lengths.append(len(tops))
    assert lengths == [1, 1, 1, 3, 0]


def test_a_plan_is_run_and_leaves_the_net_as_it_is() -> None:
    made, other = net(), net()
    plan = fuse_training(made)
    assert any(isinstance(step.run, FusedBatchNormScale) for step in plan)
    runs = [step.run for step in made.steps]
    fused = made.forward({"x": picture()}, keep=["r"], plan=plan)["r"]
    torch.testing.assert_close(fused, other.forward({"x": picture()}, keep=["r"])["r"])
    assert [step.run for step in made.steps] == runs
    plain, again = (each.forward({"x": picture()}, keep=["n"]) for each in (made, other))
    torch.testing.assert_close(plain["n"], again["n"])  # a blob that only the plain net has


def test_what_was_built_stays() -> None:
    built = net().built
    with pytest.raises(FrozenInstanceError):
        built.steps = ()  # type: ignore[misc]  # that is the point
    assert isinstance(built.steps, tuple) and isinstance(built.learnable, tuple)


def test_only_layers_that_need_them_have_ranks_and_resources() -> None:
    text = 'layer { name: "d" type: "MemoryData" top: "x" top: "y" memory_data_param { batch_size: 2'
    text += ' channels: 1 height: 2 width: 3 } } layer { name: "r" type: "ReLU" bottom: "x" top: "z" }'
    run = Run(CaffeRandom(1), Ranks(1, 3))
    data, relu = Net(parse_net(f"state {{ phase: TRAIN }} {text}"), run).layers
    assert data.ranks is run.ranks and data.random is relu.random is run.random
    assert not hasattr(relu, "ranks") and not hasattr(relu, "data_resources")


def test_a_run_is_handed_down_whole() -> None:
    resources = DataResources()
    run = Run(CaffeRandom(1), data_resources=resources, dtype=torch.float64)
    made = Net(parse_net(NET), run)
    assert replace(made.run, plan_windows=None) == run and made.dtype == torch.float64
    assert all(blob.dtype == torch.float64 for blob in made.learnable)
    assert Net(parse_net(NET)).run.data_resources is not None, "a net makes some for its own layers"
    assert (run.ranks_in(TRAIN), Run(ranks=Ranks(1, 2)).ranks_in(TEST)) == (ALONE, ALONE)
