"""imae.load: a net as a torch.nn.Module, with named parameters, for all that PyTorch does with modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from layer_cases import CASES, make, write_files
from test_onnx import NET, SHAPE
from tolerances import tolerance
from torch import Tensor

import imae
from imae.converters.deploy import deploy_net
from imae.converters.preprocessing import Preprocessing
from imae.converters.run_onnx import image_batches
from imae.converters.torch_module import CaffeModule, NamedLayer, layer_name
from imae.files.errors import CaffemodelError, DataError, ExportError, LayerError, PrototxtError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST, NetParameter
from imae.prototxt.models.resnet import resnet
from imae.prototxt.text import parse_net, to_text

KEYS = [
    "conv.weight", "bn.mean", "bn.variance", "bn.scale_factor", "scale.weight", "scale.bias", "fc.weight",
    "fc.bias",
]  # fmt: skip
# Names that no Python attribute can have, that modules have already, that another layer has, and none.
ODD_NAMES = ["inception_3a/1x1", "a.b", "train", "50%", "a%2Eb", "forward", "layer", "%_2", "", "x", "x", "x"]


def inner_product(name: str, bottom: str, top: str, num_output: int = 3, spec: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" {spec} '
        f'inner_product_param {{ num_output: {num_output} weight_filler {{ type: "xavier" }} }} }}\n'
    )


def data(*names: str, shape: str = "dim: 2 dim: 3") -> str:
    tops = " ".join(f'top: "{name}"' for name in names)
    return f'name: "n" layer {{ name: "in" type: "Input" {tops} input_param {{ shape {{ {shape} }} }} }}\n'


def load(text: str, **options: object) -> CaffeModule:
    Path("net.prototxt").write_text(text, encoding="utf-8")
    return imae.load("net.prototxt", random_seed=3, **options)  # type: ignore[arg-type]


@pytest.fixture
def net(here: Path) -> CaffeModule:
    """NET with statistics as after some training, from a train_val prototxt and a caffemodel."""
    source = Net(deploy_net(parse_net(NET), SHAPE), Run(CaffeRandom(1)))
    with torch.no_grad():
        for blob, value in zip(source.params["bn"], (0.1, 2, 0.5), strict=True):
            blob.fill_(value)
    save_caffemodel(source, "w.caffemodel")
    return load(NET, weights="w.caffemodel", input_shape=SHAPE)


def images(size: int = 2) -> Tensor:
    return torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(size))


def test_a_module_computes_what_the_net_computes(net: CaffeModule) -> None:
    same = Net(deploy_net(parse_net(NET), SHAPE), Run(CaffeRandom(1)))
    with torch.no_grad():
        for blob, value in zip(same.params["bn"], (0.1, 2, 0.5), strict=True):
            blob.fill_(value)
    x = images()
    expected = same({"data": x}, keep=["max", "conv"])
    assert torch.equal(net(x), expected["fc"])
    kept = net(data=x, keep=["max", "conv"])
    assert list(kept) == ["fc", "max", "conv"]
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    assert list(net(x, keep="max")) == ["fc", "max"]
    assert net.inputs == {"data": (1, *SHAPE)} and net.outputs == {"fc": (1, 4)}


def test_parameters_have_the_names_of_layers_and_blobs(net: CaffeModule) -> None:
    assert list(net.state_dict()) == KEYS == [name for name, _ in net.named_parameters()]
    assert net.conv.weight is net.caffe_net.layer("conv").blobs[0]
    assert [p.requires_grad for p in net.bn.parameters()] == [False] * 3
    assert "NamedLayer(Convolution, 'conv', data -> conv)" in repr(net)


def test_names_are_kept_whatever_they_are(here: Path) -> None:
    tops = [f"t{index}" for index in range(len(ODD_NAMES))]
    layers = zip(ODD_NAMES, ["data", *tops], tops, strict=False)
    net = load(data("data") + "".join(inner_product(*names) for names in layers))
    children = [name for name, _ in net.named_children()]
    assert [layer_name(child) for child in children] == ODD_NAMES
    assert children == [
        "inception_3a/1x1", "a%2Eb", "%74rain", "50%25", "a%252Eb", "%66orward", "layer", "%25_2", "%_", "x",
        "x%_2", "x%_3",
    ]  # fmt: skip
    other = load(data("data") + "".join(inner_product(*n) for n in zip(ODD_NAMES, ["data", *tops], tops)))  # noqa: B905
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(net.state_dict())
    x = torch.ones(2, 3)
    assert torch.equal(other(x), net(x)) and net(x).abs().max() > 0


def test_odd_names_go_through_torch_export_and_compile(here: Path) -> None:
    tops = [f"t{index}" for index in range(len(ODD_NAMES))]
    layers = zip(ODD_NAMES, ["data", *tops], tops, strict=False)
    net, x = load(data("data") + "".join(inner_product(*names) for names in layers)), torch.ones(2, 3)
    program = torch.export.export(net, (x,))
    assert list(program.state_dict) == list(net.state_dict())
    assert torch.equal(program.module()(x), net(x))
    assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), net(x))


def test_several_inputs_and_outputs(here: Path) -> None:
    net = load(data("a", "b") + inner_product("p", "a", "pa") + inner_product("q", "b", "qb"))
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    both = net(a, b)
    assert list(both) == ["pa", "qb"] and both["pa"].abs().max() > 0 and not both["qb"].any()
    for again in (net(b=b, a=a), net(a, b=b)):
        assert all(torch.equal(again[name], both[name]) for name in both)


def test_a_shared_blob_is_one_parameter(here: Path) -> None:
    spec = 'param { name: "w" } param { name: "b" }'
    text = (
        data("a", "b") + inner_product("p", "a", "pa", spec=spec) + inner_product("q", "b", "qb", spec=spec)
    )
    net = load(text)
    assert [name for name, _ in net.named_parameters()] == ["p.weight", "p.bias"]
    assert list(net.state_dict()) == ["p.weight", "p.bias", "q.weight", "q.bias"]
    for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301  # made here
        assert one.p.weight is one.q.weight
        a = torch.ones(2, 3)
        with torch.no_grad():
            one.p.weight.fill_(2)
        assert torch.equal(one(a, a)["qb"], torch.full((2, 3), 6.0))


def test_copies_are_of_their_own(net: CaffeModule) -> None:
    x = images()
    before = net(x).detach()
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301  # made here
        assert torch.equal(made(x), before)
        with torch.no_grad():
            made.conv.weight.mul_(2)
        assert not torch.equal(made(x), before) and torch.equal(net(x), before)


def test_a_state_dict_is_strict(net: CaffeModule) -> None:
    fresh = load(NET, input_shape=SHAPE)
    assert not torch.equal(fresh(images()), net(images()))
    state = net.state_dict()
    fresh.load_state_dict(state, assign=True)
    assert torch.equal(fresh(images()), net(images()))
    del state["fc.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"fc.bias\""):
        fresh.load_state_dict(state)


def test_other_types_of_numbers(net: CaffeModule) -> None:
    x = images()
    single = net(x).detach()
    double = copy.deepcopy(net).to(torch.float64)(x.double()).detach()
    limits = tolerance("same arithmetic")
    assert double.dtype == torch.float64
    assert torch.allclose(
        single.double(), double, rtol=limits.rtol, atol=limits.atol * float(double.abs().max())
    )
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(net).to(dtype)(x.to(dtype)).detach()
        assert low.dtype == dtype
        limit = tolerance("loss in bfloat16").rtol * float(single.abs().max())
        assert float((low - single).abs().max()) < limit


def test_torch_export(net: CaffeModule) -> None:
    x = images()
    exported = torch.export.export(net, (x,))
    assert list(exported.state_dict) == KEYS
    assert torch.equal(exported.module()(x), net(x))
    sizes = {"inputs": ({0: torch.export.Dim("batch")},)}
    any_size = torch.export.export(net, (x,), dynamic_shapes=sizes).module()
    assert torch.equal(any_size(images(5)), net(images(5)))


def test_torch_compile_makes_one_graph(net: CaffeModule) -> None:
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for x in (images(), images(5), images(3)):
        assert torch.equal(compiled(x), net(x))
    compiled(images()).square().sum().backward()
    assert net.conv.weight.grad is not None
    gradient = net.conv.weight.grad.clone()
    net.zero_grad()
    net(images()).square().sum().backward()
    assert torch.equal(gradient, net.conv.weight.grad) and gradient.any()
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.fc.weight.mul_(2)
    again = torch.compile(copied, backend="aot_eager", fullgraph=True)
    assert torch.equal(again(images()), copied(images()))
    assert torch.equal(compiled(images()), net(images()))
    assert not torch.equal(net(images()), copied(images()))


def test_functional_calls_and_hooks(net: CaffeModule) -> None:
    x, seen = images(), list[Tensor]()
    doubled = {
        name: value * 2 if name.startswith("fc") else value for name, value in net.state_dict().items()
    }
    assert torch.equal(torch.func.functional_call(net, doubled, (x,)), 2 * net(x))
    assert isinstance(net.max, NamedLayer)
    net.max.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(net(x, keep="max")["max"], seen[0])


def test_train_and_eval_change_nothing(net: CaffeModule) -> None:
    x = images()
    assert torch.equal(net.train()(x), net.eval()(x))


def test_fine_tuning_in_pytorch(net: CaffeModule) -> None:
    x, labels = images(8), torch.arange(8) % 4
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    save_caffemodel(net.caffe_net, "tuned.caffemodel")
    assert torch.equal(load(NET, weights="tuned.caffemodel", input_shape=SHAPE)(x), net(x))


def test_the_phase_train(here: Path) -> None:
    text = data("data", shape="dim: 6 dim: 3 dim: 4 dim: 4") + data("label", shape="dim: 6")
    text = text.replace('name: "n" layer', "layer").replace('name: "in"', 'name: "in2"', 1)
    text += 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }'
    text += inner_product("fc", "bn", "fc")
    text += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    net = load(text, phase="TRAIN")
    assert list(net.inputs) == ["data", "label"] and net.outputs == {"loss": ()}
    x, label = torch.randn(6, 3, 4, 4), torch.arange(6.0) % 3
    net(x, label).backward()
    mean = x.mean((0, 2, 3))
    limits = tolerance("same arithmetic")
    assert torch.allclose(net.bn.mean, mean, rtol=limits.rtol, atol=limits.atol)
    normed = torch.nn.functional.batch_norm(x, None, None, training=True).flatten(1)
    weight, bias = (p.detach().clone().requires_grad_() for p in (net.fc.weight, net.fc.bias))
    torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(normed, weight, bias), label.long()
    ).backward()
    assert weight.grad is not None
    atol = limits.atol * float(weight.grad.abs().max())
    assert torch.allclose(net.fc.weight.grad, weight.grad, rtol=limits.rtol, atol=atol)


def test_a_resnet_on_another_batch(here: Path) -> None:
    param = parse_net(data("data", shape="dim: 1 dim: 3 dim: 32 dim: 32"))
    param.layer.extend(resnet(8).layer)
    net = load(to_text(param))
    assert net(torch.randn(3, 3, 32, 32)).shape == (3, 10)
    assert not [name for name, _ in net.named_children() if "split" in name]


# Types whose result has a size that depends on values, or whose code is another program's.
NOT_EXPORTED = {
    "Python", "Python:ProposalLayer", "Proposal", "ROIPooling", "DetectionOutput", "YoloDetectionOutput",
    "Yolov3DetectionOutput",
}  # fmt: skip


# Types that go on where the pass before ended, or draw.
STATEFUL = {"LSTM", "RNN", "Dropout"}


def of_type(key: str) -> tuple[CaffeModule, Net, list[Tensor]] | None:
    """A net of one layer as a module, the same net, and values of its inputs; None where it has no inputs."""
    case, layer, param = CASES[key], make(key, {}), NetParameter(name=key)
    if not layer.bottom or not class_of(layer).deployed:
        return None
    param.state.phase = TEST
    for name, bottom in zip(layer.bottom, case.bottoms, strict=True):
        source = param.layer.add(name=f"in {name}", type="Input", top=[name])
        source.input_param.shape.add().dim.extend(bottom.shape)
    param.layer.add().CopyFrom(layer)
    nets = [Net(param, Run(CaffeRandom(1))) for _ in range(2)]
    values = [torch.as_tensor(bottom).float() for bottom in case.bottoms]
    return CaffeModule(nets[0], [layer.name]), nets[1], values


def same(module: Callable[..., Any], values: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    result = module(*values)
    got = [result] if isinstance(result, Tensor) else list(result.values())
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("key", CASES)
def test_each_type_is_the_same_in_a_module(key: str, here: Path) -> None:
    write_files(here)
    if (made := of_type(key)) is None:
        return
    module, net, values = made
    tops = net(dict(zip(module.inputs, values, strict=True)))
    expected = [tops[name] for name in module.outputs]
    copied = copy.deepcopy(module)
    assert same(module, values, expected) and same(copied, values, expected)
    if module.outputs:
        double = copy.deepcopy(copied).to(torch.float64)(*(value.double() for value in values))
        for value in [double] if isinstance(double, Tensor) else double.values():
            assert value.dtype == torch.float64


@pytest.mark.parametrize("key", [key for key in CASES if key not in NOT_EXPORTED])
def test_each_type_goes_through_torch_export(key: str, here: Path) -> None:
    write_files(here)
    if (made := of_type(key)) is None:
        return
    module, net, values = made
    tops = net(dict(zip(module.inputs, values, strict=True)))
    program = torch.export.export(module, tuple(values)).module()
    assert same(program, values, [tops[name] for name in module.outputs])


@pytest.mark.parametrize("key", CASES)
def test_each_type_gives_the_same_under_torch_compile(key: str, here: Path) -> None:
    write_files(here)
    made = of_type(key)
    if made is None or key in STATEFUL:
        return
    module, net, values = made
    tops = net(dict(zip(module.inputs, values, strict=True)))
    torch.compiler.reset()
    with torch.no_grad():
        result = torch.compile(module, backend="aot_eager")(*values)
    limits = tolerance("same arithmetic")
    got = [result] if isinstance(result, Tensor) else list(result.values())
    for value, name in zip(got, module.outputs, strict=True):
        expected = tops[name]
        atol = limits.atol * float(expected.detach().nan_to_num().abs().amax()) if expected.numel() else 0
        assert torch.allclose(value, expected, rtol=limits.rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(), "input data is not given"),
        (lambda net: net(images(), images()), "has the inputs data; got 2 tensors"),
        (lambda net: net(images(), date=images()), "has no input 'date'; did you mean data?"),
        (lambda net: net(images(), data=images()), "input 'data' is given twice"),
        (lambda net: net(images().numpy()), "input 'data' must be a torch.Tensor, got ndarray"),
        (lambda net: net(images(), keep="fcc"), "has no blob 'fcc'; did you mean fc?"),
        (lambda net: net(torch.zeros(2, 4, 11, 9)), "Input size incompatible with convolution kernel"),
    ],
)
def test_calls_that_do_not_fit(net: CaffeModule, call: Callable[[CaffeModule], object], message: str) -> None:
    with pytest.raises(LayerError) as caught:
        call(net)
    assert message in str(caught.value)


def test_files_that_do_not_fit(net: CaffeModule) -> None:
    with pytest.raises(DataError, match="phase must be TRAIN or TEST, got 'test'"):
        load(NET, phase="test")
    with pytest.raises(LayerError, match="makes its own batches, and a module gets tensors"):
        memory = "memory_data_param { batch_size: 1 channels: 1 height: 1 width: 1 }"
        source = f'layer {{ name: "m" type: "MemoryData" top: "x" top: "label" {memory} }}'
        load(source + inner_product("fc", "x", "fc"), phase="TRAIN")
    with pytest.raises(CaffemodelError, match="has no blobs for the layers out, which would be"):
        load(NET + inner_product("out", "fc", "out"), weights="w.caffemodel", input_shape=SHAPE)
    text = NET + inner_product("out", "fc", "out")
    assert list(load(text, weights="w.caffemodel", input_shape=SHAPE, allow_missing=True).outputs) == ["out"]
    with pytest.raises(PrototxtError, match="no-such"):
        imae.load("no-such.prototxt")
    with pytest.raises(ExportError, match="input 'x' has no shape"):
        load('layer { name: "in" type: "Input" top: "x" }' + inner_product("fc", "x", "fc"))


def test_images_are_prepared_as_for_a_model(net: CaffeModule) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 17, 3), np.uint8)
    cv2.imwrite("image.png", pixels)
    prepared = net.preprocessing
    assert isinstance(prepared, Preprocessing) and list(prepared.transform.mean_value) == [100]
    ((expected, _),) = image_batches(["image.png"], prepared, 1, net.inputs["data"])
    assert net.prepare(pixels, "BGR").numpy().tolist() == expected.tolist()
    assert net.prepare(np.ascontiguousarray(pixels[:, :, ::-1])).numpy().tolist() == expected.tolist()
    assert net(net.prepare(pixels)).shape == (1, 4)
    assert copy.deepcopy(net).to(torch.float64).prepare(pixels).dtype == torch.float64
    gray = pixels[:, :, 0]
    assert torch.equal(net.prepare(gray), net.prepare(np.repeat(gray[:, :, None], 3, 2)))
    for wrong, channels, message in (
        (pixels.astype(np.float32), "RGB", "an image must be bytes"),
        (pixels[..., :2], "RGB", r"got uint8 of shape \(20, 17, 2\)"),
        (pixels, "rgb", "channels must be RGB or BGR, got 'rgb'"),
    ):
        with pytest.raises(DataError, match=message):
            net.prepare(wrong, channels)  # type: ignore[arg-type]


def test_images_for_a_net_of_one_channel_and_by_options(here: Path) -> None:
    text = data("data", shape="dim: 1 dim: 1 dim: 8 dim: 8") + inner_product("fc", "data", "fc")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="nothing says how its images are prepared; load it with transform"):
        load(text).prepare(pixels)
    net = load(text, transform="scale: 0.5", mean="8")
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).astype(np.float32)
    assert net.prepare(pixels, "BGR")[0, 0].numpy().tolist() == ((gray - 8) * 0.5).tolist()


def test_a_mean_that_is_not_here_is_missed_when_it_is_needed(here: Path) -> None:
    net = load(NET.replace("mean_value: 100", 'mean_file: "no.binaryproto"'), input_shape=SHAPE)
    assert net(images()).shape == (2, 4)
    for use in (lambda: net.preprocessing, lambda: net.prepare(np.zeros((11, 9, 3), np.uint8))):
        with pytest.raises(DataError, match=r"no\.binaryproto"):
            use()
