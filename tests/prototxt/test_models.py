"""The nets and solvers of prototxt/models: made by the generators, complete, and of the published sizes."""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
import pytest
from fed_nets import fed, feed, learned, unfilled
from google.protobuf.message import Message
from tolerances import tolerance

from imae.converters.export_onnx import export_net
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array
from imae.layers.layer import DataLayer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import (
    TEST,
    TRAIN,
    LayerParameter,
    NetParameter,
    Phase,
    SolverParameter,
)
from imae.prototxt.models import inception, resnet, resnet50
from imae.prototxt.models.make_models import MODELS, WIDTH, compact_text, model_files
from imae.prototxt.text import parse_text, read_net, read_solver

ROOT = MODELS.parents[1]
COMMITTED = sorted(path.relative_to(MODELS).as_posix() for path in MODELS.rglob("*.prototxt"))
NETS = [path for path in COMMITTED if path.endswith("_train_val.prototxt") and not path.startswith("digits")]
SOLVERS = [path for path in COMMITTED if path.endswith("_solver.prototxt")]
assert NETS
assert SOLVERS


@cache
def messages() -> dict[str, Message]:
    """What each generated file says."""
    generators = (resnet, inception, resnet50)
    return {f"{path}.prototxt": message for g in generators for path, _, message in g.models()}


def net_of(path: str) -> NetParameter:
    message = messages()[path]
    assert isinstance(message, NetParameter)
    return message


def deploy_of(path: str) -> str:
    """The deploy net of a train_val net: cifar10/resnet20_deploy of cifar10/resnet20_cce_train_val."""
    return path.removesuffix("_train_val.prototxt").rpartition("_")[0] + "_deploy.prototxt"


def body(net: NetParameter) -> list[LayerParameter]:
    """The layers between data and classifier."""
    layers = [layer for layer in net.layer if layer.name != "data"]
    return list(takewhile(lambda layer: layer.name != "fc", layers))


# -- the files -----------------------------------------------------------------------------------------------


def test_committed_files_are_what_the_generators_make() -> None:
    made = model_files()
    assert set(made) == {path for path in COMMITTED if not path.startswith("digits/")}
    others = [path for path, text in made.items() if (MODELS / path).read_text(encoding="utf-8") != text]
    assert not others, "run python -m imae.prototxt.models.make_models"


@pytest.mark.parametrize(
    "path",
    [
        "cifar10/resnet20_imae_train_val.prototxt",
        "cifar100/authors_resnet44_dm-0.5-6_train_val.prototxt",
        "cifar100/authors_resnet44_imae-8_inputs.prototxt",
        "mars/googlenet_bn_gce_solver.prototxt",
        "clothing1m/resnet50_deploy.prototxt",
    ],
)
def test_compact_text_is_complete(path: str) -> None:
    text = compact_text(messages()[path])
    assert parse_text(text, type(messages()[path]), path) == messages()[path]
    assert max(map(len, text.splitlines())) <= WIDTH


def test_what_does_not_fit_a_line_is_folded() -> None:
    net = NetParameter(name="n" * (WIDTH + 9), input=["a"])
    layer = net.layer.add(name="b" * 60, type="Convolution", bottom=["c" * 40], top=["d"])
    layer.convolution_param.kernel_size.extend([3] * 9)
    assert compact_text(net).splitlines() == [
        f'name: "{"n" * (WIDTH + 9)}"',
        'input: "a"',
        "layer {",
        f'  name: "{"b" * 60}" type: "Convolution"',
        f'  bottom: "{"c" * 40}" top: "d"',
        "  convolution_param {",
        "    " + " ".join(["kernel_size: 3"] * 7),
        "    " + " ".join(["kernel_size: 3"] * 2),
        "  }",
        "}",
    ]


@pytest.mark.parametrize("path", SOLVERS)
def test_solver_names_its_net(path: str) -> None:
    """From the root of the repository. The digits have one net, whose losses are stages."""
    name = (
        "digits/train_val.prototxt" if path.startswith("digits/") else path.replace("_solver", "_train_val")
    )
    assert read_solver(MODELS / path).net == f"prototxt/models/{name}"
    assert (ROOT / read_solver(MODELS / path).net).is_file()


# -- settings ------------------------------------------------------------------------------------------------

PAPER = """base_lr: 0.1 lr_policy: "multistep" gamma: 0.1 stepvalue: 32000 stepvalue: 48000 max_iter: 64000
    momentum: 0.9 weight_decay: 0.0001"""
AUTHORS = """base_lr: 0.1 lr_policy: "multistep" gamma: 0.1 stepvalue: 15000 stepvalue: 22000 max_iter: 30000
    momentum: 0.9 weight_decay: 0.0005 snapshot: 1000 test_interval: 1000"""
MARS = """base_lr: 0.01 lr_policy: "step" gamma: 0.5 stepsize: 10000 max_iter: 50000
    momentum: 0.9 weight_decay: 0.0005"""
SETTINGS = {"cifar10/resnet": PAPER, "cifar100/authors": AUTHORS, "mars/": MARS}


@pytest.mark.parametrize("path", [path for path in SOLVERS if path.startswith(tuple(SETTINGS))])
def test_settings_are_those_of_the_papers(path: str) -> None:
    """Sections 5.1 and 5.2, and the authors' CIFAR-100 runs; of Clothing1M the papers say nothing."""
    (settings,) = (text for start, text in SETTINGS.items() if path.startswith(start))
    solver = read_solver(MODELS / path)
    expected = SolverParameter()
    expected.CopyFrom(solver)
    expected.ClearField("stepvalue")
    expected.MergeFrom(parse_text(settings, SolverParameter, path))
    assert solver == expected
    assert bool(solver.test_iter) == (settings != MARS)


@pytest.fixture
def data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources that the nets name, with few images: one of each of 100 classes, or five pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "authors").mkdir(parents=True)
    sizes = {"cifar10_train": 40, "cifar10_test": 32, "cifar100_train": 40, "cifar100_test": 32}
    for name, size in (sizes | {"authors/cifar100_train": 36, "authors/cifar100_test": 36}).items():
        image = np.full((3, size, size), 9, np.uint8)
        records = [(b"%08d" % label, datum_from_array(image, label)) for label in range(100)]
        write_lmdb(tmp_path / "data" / f"{name}_lmdb", records)
    for folder, lists in (("mars", ["mars_train"]), ("clothing1m", ["clothing1m_train", "clothing1m_test"])):
        (tmp_path / "data" / folder).mkdir()
        cv2.imwrite(str(tmp_path / "data" / folder / "a.png"), np.full((128, 64, 3), 9, np.uint8))
        for name in lists:
            (tmp_path / "data" / f"{name}.txt").write_text("a.png 3\n" * 5)


@pytest.mark.usefixtures("data_sets")
def test_data_layers_give_the_batches_of_the_papers() -> None:
    batches = {"cifar10": 128, "cifar100": 128, "authors": 256, "mars": 180, "clothing1m": 32}
    seen: dict[bytes, str] = {}
    for path in NETS:
        for param in net_of(path).layer[:2]:
            seen.setdefault(param.SerializeToString(deterministic=True), path)
    assert len(seen) == 2 * len(batches)
    for text, path in seen.items():
        param = LayerParameter.FromString(text)
        param.phase = param.include[0].phase
        source = param.data_param if param.type == "Data" else param.image_data_param
        if param.phase == TRAIN:
            assert source.batch_size == batches["authors" if "authors" in path else path.partition("/")[0]]
        if param.type == "ImageData":
            source.batch_size = 2
        layer = layer_class(param.type)(param)
        assert isinstance(layer, DataLayer)
        size = 32 if path.startswith("cifar") else 224
        assert layer.build([], Run(CaffeRandom(1))) == [
            (source.batch_size, 3, size, size),
            (source.batch_size,),
        ]
        values, labels = layer.next_batch()
        means = param.transform_param.mean_value
        assert values.amax((0, 2, 3)).tolist() == pytest.approx([9 - mean for mean in means])
        if param.data_order_param.classes_per_batch:
            assert labels.unique(return_counts=True)[1].tolist() == [8] * 32


# -- nets ----------------------------------------------------------------------------------------------------


@cache
def built(path: str) -> Net:
    """A deploy net."""
    return Net(unfilled(net_of(f"{path}_deploy.prototxt")), Run(CaffeRandom(1)))


def weighted(net: Net) -> int:
    return sum(step.layer.type in ("Convolution", "InnerProduct") for step in net.steps)


# He et al. 2016, table 6: millions of parameters.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_has_the_published_size(depth: int, millions: float) -> None:
    net = built(f"cifar10/resnet{depth}")
    assert f"{learned(net) / 1e6:.2g}" == f"{millions:.2g}"
    assert weighted(net) == depth
    assert net.blob_shapes["res3_1"] == (1, 64, 8, 8)
    assert net.blob_shapes["prob"] == (1, 10)
    assert (net.inputs, net.outputs) == (["data"], ["prob"])


@pytest.mark.parametrize("depth", resnet.DEPTHS)
def test_resnet_for_cifar100_has_more_classes(depth: int) -> None:
    expected = NetParameter()
    expected.CopyFrom(net_of(f"cifar10/resnet{depth}_deploy.prototxt"))
    (fc,) = (layer for layer in expected.layer if layer.name == "fc")
    fc.inner_product_param.num_output = 100
    assert net_of(f"cifar100/resnet{depth}_deploy.prototxt") == expected


def test_authors_net_is_built() -> None:
    net = built("cifar100/authors_resnet44")
    assert weighted(net) == 44 + 2
    assert (net.inputs, net.outputs) == (["data"], ["probs"])
    assert net.blob_shapes["probs"] == (1, 100)


def test_googlenet_bn_has_the_published_shapes() -> None:
    """Figure 5 of Ioffe and Szegedy; 3c and 4e, whose printed sizes are those of their bottoms, halve."""
    net = built("mars/googlenet_bn")
    stem = {
        "conv1/7x7_s2": (64, 112),
        "pool1/3x3_s2": (64, 56),
        "conv2/3x3": (192, 56),
        "pool2/3x3_s2": (192, 28),
    }
    modules = {"3a": (256, 28), "3b": (320, 28), "3c": (576, 14), "4a": (576, 14), "4b": (576, 14)}
    modules |= {"4c": (576, 14), "4d": (576, 14), "4e": (1024, 7), "5a": (1024, 7), "5b": (1024, 7)}
    outputs = {f"inception_{name}/output": shape for name, shape in modules.items()}
    for name, (channels, size) in (stem | outputs | {"pool5": (1024, 1)}).items():
        assert net.blob_shapes[name] == (1, channels, size, size)
    assert net.blob_shapes["prob"] == (1, 625)
    assert (net.inputs, net.outputs) == (["data"], ["prob"])


def test_embedding_is_what_the_classifier_of_googlenet_bn_gets() -> None:
    embedding, whole = (
        net_of(f"mars/googlenet_bn_{kind}.prototxt").layer for kind in ("embedding", "deploy")
    )
    assert embedding == whole[:-2]
    assert list(embedding[-1].top) == list(whole[-2].bottom) == ["pool5"]


def test_googlenet_bn_has_the_published_size() -> None:
    """11,295,240: BN-Inception with 1000 classes as others publish it, with 128 for the projections of 4c and
    4d and a bias in each convolution."""
    modules = inception.MODULES
    wider = modules | {name: modules[name]._replace(proj=128) for name in ("4c", "4d")}
    param = fed(inception.googlenet_bn(1000, modules=wider), 1, 3, 224, 224)
    net = Net(unfilled(param), Run(CaffeRandom(1)))
    biases = sum(blobs[0].shape[0] for blobs in net.params.values() if blobs[0].dim() == 4)
    assert learned(net) + biases == 11_295_240
    assert learned(built("mars/googlenet_bn")) + (1000 - 625) * (1024 + 1) == 11_194_984


def test_resnet50_has_the_published_size_and_shapes() -> None:
    """25,557,032 parameters with 1000 classes, and conv1's bias, which He's Caffe release has."""
    net = built("clothing1m/resnet50")
    assert learned(net) + (1000 - 14) * (2048 + 1) == 25_557_032 + 64
    assert weighted(net) == 50 + 4
    shapes = {
        "pool1": (64, 56),
        "res2c": (256, 56),
        "res3d": (512, 28),
        "res4f": (1024, 14),
        "res5c": (2048, 7),
    }
    for name, (channels, size) in shapes.items():
        assert net.blob_shapes[name] == (1, channels, size, size)
    assert net.blob_shapes["prob"] == (1, 14)
    assert (net.inputs, net.outputs) == (["data"], ["prob"])


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize("path", NETS)
def test_train_val_net_is_built(path: str, phase: Phase) -> None:
    """Up to the classifier it is its deploy net, for which see above; from there on it is built here."""
    param = net_of(path)
    layers = body(param)
    assert layers == body(net_of(deploy_of(path)))
    tail = NetParameter(layer=param.layer[len(layers) + 2 :])
    tail = fed(tail, 2, 5, 1, 1, phase=phase)
    tail.layer[0].top[0] = layers[-1].top[0]
    net = Net(tail, Run(CaffeRandom(1)))
    assert net.loss_weights == {"loss": 1}
    assert ("accuracy" in net.outputs) == (phase == TEST)


def test_authors_net_with_the_old_header_is_the_same() -> None:
    param = read_net(MODELS / "cifar100/authors_resnet44_imae-8_inputs.prototxt")
    assert param.layer[1:] == net_of("cifar100/authors_resnet44_imae-8_train_val.prototxt").layer[2:]
    net = Net(unfilled(param), Run(CaffeRandom(1)))
    assert net.inputs == ["data", "label"]
    assert (net.blob_shapes["data"], net.blob_shapes["label"]) == ((256, 3, 32, 32), (256, 1, 1, 1))
    assert net.blob_shapes["prob_groundtruth"] == (256, 1)


@pytest.mark.parametrize(
    "path",
    [f"cifar10/resnet20_{loss}_train_val.prototxt" for loss in ("cce", "mae", "imae")]
    + ["cifar100/authors_resnet44_imae-8_train_val.prototxt"],
)
def test_loss_and_gradients_are_finite(path: str) -> None:
    net = Net(fed(net_of(path), 4, 3, 32, 32), Run(CaffeRandom(1)))
    loss = net.loss(net(feed(4, 3, 32, 32, classes=10)))
    loss.backward()
    assert loss.isfinite()
    for name in ("conv1", "res2_1_conv1", "fc"):
        gradient = net.params[name][0].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize(
    "path", ["cifar10/resnet20_deploy.prototxt", "cifar100/authors_resnet44_deploy.prototxt"]
)
def test_deploy_net_is_exported(path: str) -> None:
    param = NetParameter()
    param.CopyFrom(net_of(path))
    param.state.phase = TRAIN
    train = Net(param, Run(CaffeRandom(4)))
    train({"data": feed(4, 3, 32, 32, classes=10)["data"]})  # for BatchNorm's statistics
    param.state.phase = TEST
    result = export_net(Net(param, share_from=train))
    assert result.difference <= tolerance("onnx").rtol * result.largest
    assert 0.01 < result.largest < 0.99
    assert result.outputs == train.outputs
