"""Run random pycaffe scripts on two nets, of which one puts blobs off, and compare all that they show.

    python tests/support/pycaffe_scripts.py [--seeds 2000] [--first 0]

A script writes into and reads from all kinds of arrays between passes over all or some of the layers. One of
the two nets runs layer by layer. The other one runs the fast plan where it may, and then makes the blobs that
the script looks at. In double precision, where rounding hides nothing.

An AssertionError shows the script's calls and what differs; otherwise the last line is a count of the calls,
in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from google.protobuf import text_format
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.files.errors import ImaeError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net import lazy_stepwise
from imae.net.lazy_stepwise import LazyStepwise
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import NetParameter

XAVIER = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -0.5 max: 0.5 }'
IMAGES = """
force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
"""
CONVOLUTIONS = f"""
layer {{ name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {XAVIER} }} }}
layer {{ name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }}
layer {{ name: "scale" type: "Scale" bottom: "norm" top: "norm"
        scale_param {{ bias_term: true filler {{ type: "uniform" min: 0.5 max: 2 }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "norm" top: "norm" }}
layer {{ name: "pool" type: "Pooling" bottom: "norm" top: "pool"
        pooling_param {{ pool: AVE kernel_size: 2 }} }}
layer {{ name: "side" type: "Convolution" bottom: "norm" top: "side"
        convolution_param {{ num_output: 4 kernel_size: 2 {XAVIER} }} }}
layer {{ name: "sum" type: "Eltwise" bottom: "pool" bottom: "side" top: "sum" }}
layer {{ name: "drop" type: "Dropout" bottom: "sum" top: "sum" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "sum" top: "ip"
        inner_product_param {{ num_output: 5 {XAVIER} }} }}
"""
NETS = {
    "classifier": IMAGES + CONVOLUTIONS + 'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }',
    "losses": IMAGES
    + CONVOLUTIONS
    + """
layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" loss_weight: 2 }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "y" top: "accuracy" }
""",
    "chosen": IMAGES
    + f"""
layer {{ name: "y" type: "Input" top: "y" input_param {{ shape {{ dim: 2 }} }} }}
layer {{ name: "a" type: "Convolution" bottom: "x" top: "a"
        convolution_param {{ num_output: 2 kernel_size: 3 {XAVIER} }} }}
layer {{ name: "chosen" type: "Filter" bottom: "a" bottom: "y" top: "chosen" }}
layer {{ name: "half" type: "Power" bottom: "chosen" top: "half" power_param {{ scale: 0.5 }} }}
layer {{ name: "tanh" type: "TanH" bottom: "half" top: "tanh" }}
""",
    "made": f"""
force_backward: true
layer {{ name: "x" type: "DummyData" top: "x" dummy_data_param {{
        shape {{ dim: 2 dim: 3 }} data_filler {{ type: "gaussian" }} }} }}
layer {{ name: "t" type: "DummyData" top: "t" dummy_data_param {{
        shape {{ dim: 2 dim: 2 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" param {{ name: "w" }} param {{ name: "b" }}
        inner_product_param {{ num_output: 3 {XAVIER} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "a" top: "a" relu_param {{ negative_slope: 0.1 }} }}
layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" param {{ name: "w" }} param {{ name: "b" }}
        inner_product_param {{ num_output: 3 }} }}
layer {{ name: "c" type: "InnerProduct" bottom: "b" top: "c"
        inner_product_param {{ num_output: 2 {XAVIER} }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "c" bottom: "t" top: "loss" }}
""",
}
LABELS = ("y",)


def make(text: str, lazily: bool, seed: int, dtype: torch.dtype) -> caffe.Net:
    """A net of phase TEST that puts blobs off, or not."""
    param = text_format.Parse(text, NetParameter())
    param.state.phase = caffe.TEST
    net = Net(param, Run(CaffeRandom(seed), dtype=dtype)).to(dtype)
    return caffe.Net.around((LazyStepwise if lazily else Stepwise)(net))


@dataclass
class Pair:
    """The same net twice: layer by layer, and with blobs put off."""

    plain: caffe.Net
    lazy: caffe.Net

    @classmethod
    def made(cls, text: str, seed: int, dtype: torch.dtype) -> Pair:
        plain, lazy = make(text, False, seed, dtype), make(text, True, seed, dtype)
        statistics = np.random.default_rng(seed)
        for name, blobs in plain.params.items():
            if plain.layer_dict[name].type == "BatchNorm":
                for blob, other in zip(blobs, lazy.params[name], strict=True):
                    blob.data[...] = statistics.uniform(0.5, 1.5, blob.shape)
                    other.data[...] = blob.data
        return cls(plain, lazy)

    @property
    def both(self) -> tuple[caffe.Net, caffe.Net]:
        return self.plain, self.lazy


class Nets:
    """A pair of nets, and another one that shares weights with it, or gives it its own.

    calls   what scripts have done with them
    """

    def __init__(self, name: str, dtype: torch.dtype, seed: int) -> None:
        self.name, self.dtype = name, dtype
        self.pair, self.others = (Pair.made(NETS[name], seed * 2 + i, dtype) for i in (1, 2))
        self.calls = [f"net {name}, {dtype}"]


class Script:
    """One random script on `nets`."""

    def __init__(self, seed: int, folder: Path, nets: Nets) -> None:
        self.chance, self.numbers, self.folder = random.Random(seed), np.random.default_rng(seed), folder
        self.name, self.dtype, self.nets, self.others = nets.name, nets.dtype, nets.pair, nets.others
        self.calls = nets.calls
        self.counts = Counter[str]()
        self.held: list[tuple[Any, Any]] = []
        net = self.nets.plain
        self.blobs, self.layers = list(net.blobs), list(net._layer_names)
        self.params = [(name, i) for name, blobs in net.params.items() for i in range(len(blobs))]
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (40, self.forward), (12, self.forward_and_name), (12, self.write_inputs), (16, self.look),
            (8, self.look_at_shape), (8, self.hold), (8, self.write_held), (4, self.release),
            (8, self.write_blob), (3, self.forward_part), (3, self.backward), (8, self.write_weights),
            (4, self.hold_weights), (4, self.look_at_weights), (4, self.share), (1, self.load),
            (8, self.reshape), (4, self.reshape_inner), (4, self.write_diff), (4, self.other_forward),
            (4, self.many_passes), (4, self.clear_diffs), (4, self.reshape_weights),
        ]  # fmt: skip

    def run(self, calls: int) -> Counter[str]:
        """Make random calls, then compare everything."""
        weights, actions = zip(*self.actions, strict=True)
        for action in self.chance.choices(actions, weights, k=calls):
            self.counts[action.__name__] += 1
            action()
        for pair in (self.nets, self.others):
            self.compare_blob(self.chance.choice(self.blobs), pair)
        for first, second in self.held:
            self.compare("a held array", first, second)
        for name, index in self.params:
            self.compare(f"weights {name}", *(net.params[name][index].data for net in self.nets.both))
            self.compare(f"their diff {name}", *(net.params[name][index].diff for net in self.nets.both))
        return self.counts

    # -- calls -----------------------------------------------------------------------------------------------

    def note(self, call: str) -> None:
        self.calls.append(call)

    def compare(self, what: str, plain: Any, lazy: Any) -> None:
        plain, lazy = np.asarray(plain), np.asarray(lazy)
        double = self.dtype == torch.float64
        rtol, atol, _ = tolerance("fast way", "float64") if double else tolerance("same arithmetic")
        if plain.shape == lazy.shape:
            size = np.abs(plain)
            if (np.abs(lazy - plain) <= atol * max(1, size.max(initial=0)) + rtol * size).all():
                return
        raise AssertionError(
            "\n".join([*self.calls, f"{what}: layer by layer", str(plain), "lazily", str(lazy)])
        )

    def compare_blob(self, name: str, pair: Pair) -> None:
        plain, lazy = (net.blobs[name] for net in pair.both)
        order = self.chance.sample(("data", "diff", "shape"), 3)
        self.note(f"look at {name}: {order}")
        for side in order:
            self.compare(f"{side} of {name}", getattr(plain, side), getattr(lazy, side))

    def values(self, name: str, shape: Sequence[int]) -> Any:
        if name in LABELS:
            return self.numbers.integers(0, 2 if self.name == "chosen" else 5, shape)
        return self.numbers.standard_normal(shape)

    def new_inputs(self) -> dict[str, Any]:
        net = self.nets.plain
        return {name: self.values(name, net.blobs[name].shape) for name in net.inputs}

    def forward(self) -> None:
        given = self.new_inputs() if self.chance.random() < 0.6 else {}
        self.note(f"forward({', '.join(given)})")
        self.same_outputs([net.forward(**given) for net in self.nets.both])

    def forward_and_name(self) -> None:
        names = self.chance.sample(self.blobs, min(2, len(self.blobs)))
        self.note(f"forward(blobs={names})")
        self.same_outputs([net.forward(blobs=names) for net in self.nets.both])

    def forward_part(self) -> None:
        first, last = sorted(self.chance.choices(range(len(self.layers)), k=2))
        start = None if self.chance.random() < 0.3 else self.layers[first]
        end = None if self.chance.random() < 0.3 else self.layers[last]
        self.note(f"forward(start={start}, end={end})")
        outputs = self.attempt(lambda net: net.forward(start=start, end=end))
        if outputs is not None:
            self.same_outputs(outputs)

    def attempt(self, call: Callable[[caffe.Net], Any]) -> list[Any] | None:
        """What both nets return, or None if both refuse for the same reason."""
        results, errors = [], []
        for net in self.nets.both:
            try:
                results.append(call(net))
                errors.append("")
            except (ImaeError, RuntimeError) as error:  # torch's own, where shapes do not fit
                results.append(None)
                errors.append(str(error))
        assert errors[0] == errors[1], "\n".join([*self.calls, *errors])
        return None if errors[0] else results

    def same_outputs(self, outputs: list[dict[str, Any]]) -> None:
        plain, lazy = outputs
        assert plain.keys() == lazy.keys()
        for name, value in plain.items():
            self.compare(f"output {name}", value, lazy[name])

    def many_passes(self) -> None:
        """So many that blobs which nobody looks at are not stored any more."""
        self.note("5 times forward()")
        for _ in range(5):
            self.same_outputs([net.forward() for net in self.nets.both])

    def other_forward(self) -> None:
        self.note("forward() of the other net")
        self.same_outputs([net.forward() for net in self.others.both])

    def write_inputs(self) -> None:
        self.note("write into the inputs")
        for name, value in self.new_inputs().items():
            for net in self.nets.both:
                net.blobs[name].data[...] = value

    def look(self) -> None:
        self.compare_blob(self.chance.choice(self.blobs), self.nets)

    def look_at_shape(self) -> None:
        name = self.chance.choice(self.blobs)
        self.note(f"shape of {name}")
        plain, lazy = (net.blobs[name].shape for net in self.nets.both)
        assert plain == lazy, "\n".join([*self.calls, f"{plain} and {lazy}"])

    def hold(self) -> None:
        name = self.chance.choice(self.blobs)
        first = self.chance.random() < 0.5
        self.note(f"hold {'a view of ' if first else ''}{name}")
        plain, lazy = (net.blobs[name].data for net in self.nets.both)
        if first and plain.ndim and len(plain):
            plain, lazy = plain[:1].T, lazy[:1].T
        self.held.append((plain, lazy))

    def release(self) -> None:
        self.note("release")
        self.held.clear()

    def write_held(self) -> None:
        if self.held:
            plain, lazy = self.chance.choice(self.held)
            self.note("write into a held array")
            self.compare("a held array", plain, lazy)
            value = np.abs(plain) % 2 if self.chance.random() < 0.5 else np.ones(plain.shape)
            plain[...] = value
            lazy[...] = value

    def write_blob(self) -> None:
        name = self.chance.choice(self.blobs)
        if name not in LABELS:
            self.note(f"write into {name}")
            value = self.values(name, self.nets.plain.blobs[name].shape)
            for net in self.nets.both:
                net.blobs[name].data[...] = value

    def write_diff(self) -> None:
        name = self.chance.choice(self.blobs)
        self.note(f"write into the diff of {name}")
        value = self.numbers.standard_normal(self.nets.plain.blobs[name].shape)
        for net in self.nets.both:
            net.blobs[name].diff[...] = value

    def backward(self) -> None:
        self.note("backward()")
        results = self.attempt(lambda net: net.backward())
        if results is not None:
            self.same_outputs(results)

    def clear_diffs(self) -> None:
        self.note("clear_param_diffs()")
        for net in self.nets.both:
            net.clear_param_diffs()

    def write_weights(self) -> None:
        name, index = self.chance.choice(self.params)
        self.note(f"write into weights {index} of {name}")
        value = self.numbers.uniform(0.2, 1, self.nets.plain.params[name][index].shape)
        for net in self.nets.both:
            net.params[name][index].data[...] = value

    def hold_weights(self) -> None:
        name, index = self.chance.choice(self.params)
        self.note(f"hold weights {index} of {name}")
        plain, lazy = (net.params[name][index].data for net in self.nets.both)
        self.held.append((plain[:1], lazy[:1]))

    def look_at_weights(self) -> None:
        name, index = self.chance.choice(self.params)
        self.note(f"look at weights {index} of {name}")
        self.compare("weights", *(net.params[name][index].data for net in self.nets.both))

    def reshape_weights(self) -> None:
        name, index = self.chance.choice(self.params)
        self.note(f"reshape weights {index} of {name} there and back")
        for net in self.nets.both:
            blob = net.params[name][index]
            shape = blob.shape
            blob.reshape(blob.count)
            blob.reshape(*shape)

    def share(self) -> None:
        self.note("share_with(the other net)")
        for net, other in zip(self.nets.both, self.others.both, strict=True):
            net.share_with(other)

    def load(self) -> None:
        self.note("copy_from(the other net)")
        for net, other, kind in zip(self.nets.both, self.others.both, ("plain", "lazy"), strict=True):
            other.save(self.folder / kind)
            net.copy_from(self.folder / kind)

    def reshape(self) -> None:
        count, through = self.chance.choice((1, 2, 3)), self.chance.random() < 0.5
        sizes = [blob.count for blob in self.nets.plain.blobs.values()]
        self.note(f"reshape the inputs to {count} items{', and the net' if through else ''}")
        for net in self.nets.both:
            for name in net.inputs:
                blob = net.blobs[name]
                blob.reshape(count, *blob.shape[1:])
        if through:
            self.attempt(lambda net: net.reshape())
        if any(blob.count > size for blob, size in zip(self.nets.plain.blobs.values(), sizes, strict=True)):
            self.forward()  # before it, a blob that has grown ends with values of any pass of before

    def reshape_inner(self) -> None:
        name = self.chance.choice(self.blobs)
        if name not in self.nets.plain.inputs:
            self.note(f"reshape {name}")
            for net in self.nets.both:
                blob = net.blobs[name]
                blob.reshape(*blob.shape[::-1])


def run_scripts(
    seeds: Sequence[int], calls: int, folder: Path, *, fresh: bool = True, names: Sequence[str] = tuple(NETS)
) -> Counter[str]:
    """Run the scripts of these seeds, of so many calls each; returns how often each call was made.

    fresh   make new nets for each script; else the scripts go on with those of the scripts before
    names   the nets to choose from
    """
    counts, made = Counter[str](), dict[tuple[str, torch.dtype], Nets]()
    with patch.object(lazy_stepwise, "PATIENCE", 3):  # so that plain passes are soon followed by others
        for seed in seeds:
            chance = random.Random(seed)
            kind = chance.choice(names), chance.choice([torch.float32, torch.float64])
            if fresh or kind not in made:
                made[kind] = Nets(*kind, seed)
            made[kind].calls.append(f"seed {seed}")
            counts += Script(seed, folder, made[kind]).run(calls)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--calls", type=int, default=25)
    arguments = parser.parse_args()
    chosen = range(arguments.first, arguments.first + arguments.seeds)
    with tempfile.TemporaryDirectory() as folder_name:
        print(json.dumps(run_scripts(chosen, arguments.calls, Path(folder_name))))
