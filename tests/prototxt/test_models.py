"""The nets and solvers of prototxt/models: made by the generators, complete, and of the published sizes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import cache
from itertools import product, takewhile
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
from imae.prototxt.models.net_parts import deploy
from imae.prototxt.models.stages import DEPLOY
from imae.prototxt.state import filter_net
from imae.prototxt.text import parse_net, parse_solver, parse_text, read_net, read_solver

ROOT = MODELS.parents[1]
COMMITTED = sorted(path.relative_to(MODELS).as_posix() for path in MODELS.rglob("*.prototxt"))
SOLVERS = [path for path in COMMITTED if path.endswith("_solver.prototxt")]
assert SOLVERS
LOSSES = {
    **{
        f"{folder}/resnet{depth}": [*resnet.LOSSES]
        for folder in ("cifar10", "cifar100")
        for depth in resnet.DEPTHS
    },
    "cifar100/authors_resnet44": [*resnet.AUTHORS_LOSSES],
    "mars/googlenet_bn": [*inception.LOSSES],
    "clothing1m/resnet50": [*inception.LOSSES],
}
NETS = [(path, stage) for path, stages in LOSSES.items() for stage in stages]
# Of the 107 files that there were instead, one for each loss and for deployment: SHA-256 without comments.
BEFORE = {
    path: digest
    for digest, path in map(
        str.split, (ROOT / "tests/cases/models/before_stages.sha256").read_text("ascii").splitlines()
    )
}
assert len(BEFORE) == 107


@cache
def messages() -> dict[str, Message]:
    """The text of each generated file."""
    generators = (resnet, inception, resnet50)
    return {f"{path}.prototxt": message for g in generators for path, _, message in g.models()}


@cache
def net_of(path: str) -> NetParameter:
    """A net's file, with all of its stages."""
    return read_net(MODELS / f"{path}.prototxt")


def in_stage(net: NetParameter, stage: str, phase: Phase) -> NetParameter:
    """The net's layers in a stage and phase, without the rules by which they are there."""
    result = filter_net(net, phase, stages=[stage])
    result.ClearField("state")
    for layer in result.layer:
        layer.ClearField("include")
        layer.ClearField("exclude")
    return result


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
        "cifar10/resnet20.prototxt",
        "cifar100/authors_resnet44.prototxt",
        "cifar100/authors_resnet44_inputs.prototxt",
        "mars/googlenet_bn_solver.prototxt",
        "clothing1m/resnet50.prototxt",
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
    """From the root of the repository."""
    name = "digits/train_val.prototxt" if path.startswith("digits/") else path.replace("_solver", "")
    assert read_solver(MODELS / path).net == f"prototxt/models/{name}"
    assert (ROOT / read_solver(MODELS / path).net).is_file()


# -- stages: what there was in files of its own before -------------------------------------------------------


def plain_nets() -> dict[str, tuple[NetParameter, str, str]]:
    """By the path that it had: a net of one loss, or for deployment, the net it is in now, and its stage."""
    found: dict[str, tuple[NetParameter, str, str]] = {}

    def put(path: str, suffix: str, net: NetParameter, stage: str, now: str = "") -> None:
        found[f"{path}_{suffix}.prototxt"] = net, now or path, stage

    for depth, (dataset, classes) in product(resnet.DEPTHS, (("cifar10", 10), ("cifar100", 100))):
        path, sources = (
            f"{dataset}/resnet{depth}",
            (f"data/{dataset}_train_lmdb", f"data/{dataset}_test_lmdb"),
        )
        with_data = resnet.with_cifar10_data if classes == 10 else resnet.with_cifar100_data
        for stage, loss in resnet.LOSSES.items():
            put(path, f"{stage}_train_val", with_data(resnet.resnet(depth, classes, loss), *sources), stage)
        put(path, "deploy", deploy(resnet.resnet(depth, classes), 3, 32, 32), DEPLOY)
    path, lmdb = "cifar100/authors_resnet44", "data/authors/cifar100_{}_lmdb"
    for stage, loss in resnet.AUTHORS_LOSSES.items():
        net = resnet.authors_resnet(loss)
        with_images = resnet.with_authors_data(net, lmdb.format("train"), lmdb.format("test"))
        put(path, f"{stage}_train_val", with_images, stage)
        if stage == "imae-8":
            put(path, "deploy", deploy(net, 3, 32, 32), DEPLOY)
            put(path, "imae-8_inputs", resnet.with_inputs(net), stage, f"{path}_inputs")
    for stage, loss in inception.LOSSES.items():
        mars = inception.with_mars_data(inception.googlenet_bn(loss=loss))
        put("mars/googlenet_bn", f"{stage}_train_val", mars, stage)
        clothes = resnet50.with_clothing1m_data(resnet50.resnet50(loss=loss))
        put("clothing1m/resnet50", f"{stage}_train_val", clothes, stage)
    put("mars/googlenet_bn", "deploy", deploy(inception.googlenet_bn(), 3, 224, 224), DEPLOY)
    put("clothing1m/resnet50", "deploy", deploy(resnet50.resnet50(), 3, 224, 224), DEPLOY)
    return found


PLAIN_NETS = plain_nets()
# What is not a stage: the features for retrieval, the deploy net up to pool5; `imae retrieve --blob pool5`.
EMBEDDING = "mars/googlenet_bn_embedding.prototxt"


def sha256(message: Message) -> str:
    return hashlib.sha256(compact_text(message).encode()).hexdigest()


def test_every_file_that_there_was_is_in_a_stage_of_one_that_there_is() -> None:
    solvers = {f"{path}_{stage}_solver.prototxt" for path, stage in NETS}
    assert set(BEFORE) == {*PLAIN_NETS, *solvers, EMBEDDING}
    assert 3 * len(COMMITTED) <= len(BEFORE) + len([p for p in COMMITTED if p.startswith("digits/")])


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize("path", PLAIN_NETS)
def test_a_net_in_its_stage_is_the_net_that_had_a_file_of_its_own(path: str, phase: Phase) -> None:
    """The net to compare with has the SHA-256 of that file; then layer by layer, message by message."""
    plain, now, stage = PLAIN_NETS[path]
    assert sha256(plain) == BEFORE[path]
    expected = in_stage(parse_net(compact_text(plain)), "", phase)
    assert in_stage(net_of(now), stage, phase) == expected
    assert in_stage(net_of(now), "", phase) != expected


def test_the_embedding_that_had_a_file_of_its_own_is_the_deploy_net_up_to_pool5() -> None:
    net = in_stage(net_of("mars/googlenet_bn"), DEPLOY, TEST)
    del net.layer[-2:]
    assert net.layer[-1].name == "pool5"
    assert sha256(net) == BEFORE[EMBEDDING]


@pytest.mark.parametrize(("path", "stage"), NETS)
def test_a_solver_with_another_stage_is_the_solver_that_had_a_file_of_its_own(path: str, stage: str) -> None:
    """As its header describes: by one `sed`. Its own stage is the last."""
    text = (MODELS / f"{path}_solver.prototxt").read_text(encoding="utf-8")
    own = LOSSES[path][-1]
    others = [other for other in LOSSES[path] if other != own]
    assert f"#     {', '.join(others)}\n" in text
    assert (
        f"#     sed 's/{own}\"/{others[0]}\"/' prototxt/models/{path}_solver.prototxt > solver.prototxt\n"
        in text
    )
    solver = parse_solver("\n".join(line.replace(f'{own}"', f'{stage}"', 1) for line in text.splitlines()))
    assert list(solver.train_state.stage) == [stage]
    assert [list(state.stage) for state in solver.test_state] == [[stage]] * len(solver.test_iter)
    solver.ClearField("train_state")
    solver.ClearField("test_state")
    solver.net = f"prototxt/models/{path}_{stage}_train_val.prototxt"
    assert sha256(solver) == BEFORE[f"{path}_{stage}_solver.prototxt"]


@pytest.mark.parametrize("path", LOSSES)
def test_the_header_of_a_net_names_its_stages(path: str) -> None:
    text = (MODELS / f"{path}.prototxt").read_text(encoding="utf-8")
    assert f"#     {', '.join(LOSSES[path])}\n" in text and f"In stage {DEPLOY} " in text
    rules = [rule for layer in net_of(path).layer for rule in (*layer.include, *layer.exclude)]
    named = {stage for rule in rules for stage in (*rule.stage, *rule.not_stage)}
    assert named == {*LOSSES[path], DEPLOY}


def test_the_readme_lists_the_nets_and_their_stages() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (MODELS / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    listed = {}
    for nets, _, _, stages, maker in rows:
        first, *depths = nets.replace("`", "").split(", ")
        for path in (first, *(first.removesuffix("20") + depth for depth in depths)):
            listed[path] = stages
        assert maker == "by hand" or (MODELS / maker.strip("`")).is_file()
    assert listed.pop("digits/train_val") == ", ".join(resnet.LOSSES)
    assert listed.pop("cifar100/authors_resnet44_inputs") == "the same"
    assert listed == {path: ", ".join(stages) for path, stages in LOSSES.items()}


def test_what_is_made_is_marked_as_generated() -> None:
    """On GitHub, by .gitattributes; what is written by hand is not."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("git alone knows what .gitattributes means, and it needs a checkout")
    made = [f"prototxt/models/{path}" for path in model_files()]
    made += ["prototxt/caffe_pb2.py", "prototxt/caffe_pb2.pyi", "paper/records/a.json"]
    by_hand = [f"prototxt/models/{path}" for path in COMMITTED if path not in model_files()]
    by_hand += ["prototxt/caffe.proto", "prototxt/models/resnet.py", "prototxt/models/README.md"]
    command = ["git", "-C", str(ROOT), "check-attr", "linguist-generated", *made, *by_hand]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    marked = {line.partition(": ")[0] for line in lines if line.endswith(": linguist-generated: set")}
    assert len(lines) == len(made) + len(by_hand) and marked == set(made)


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
    for path in LOSSES:
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
    return Net(unfilled(in_stage(net_of(path), DEPLOY, TEST)), Run(CaffeRandom(1)))


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
    expected.CopyFrom(in_stage(net_of(f"cifar10/resnet{depth}"), DEPLOY, TEST))
    (fc,) = (layer for layer in expected.layer if layer.name == "fc")
    fc.inner_product_param.num_output = 100
    assert in_stage(net_of(f"cifar100/resnet{depth}"), DEPLOY, TEST) == expected


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
    whole = in_stage(net_of("mars/googlenet_bn"), DEPLOY, TEST).layer
    assert list(whole[-3].top) == list(whole[-2].bottom) == ["pool5"]


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
@pytest.mark.parametrize(("path", "stage"), NETS)
def test_train_val_net_is_built(path: str, stage: str, phase: Phase) -> None:
    """Up to the classifier it is its deploy net, for which see above; from there on it is built here."""
    param = in_stage(net_of(path), stage, phase)
    layers = body(param)
    assert layers == body(in_stage(net_of(path), DEPLOY, phase))
    tail = NetParameter(layer=param.layer[len(layers) + 1 :])
    tail = fed(tail, 2, 5, 1, 1, phase=phase)
    tail.layer[0].top[0] = layers[-1].top[0]
    net = Net(tail, Run(CaffeRandom(1)))
    assert net.loss_weights == {"loss": 1}
    assert ("accuracy" in net.outputs) == (phase == TEST)


def test_authors_net_with_the_old_header_is_the_same() -> None:
    inputs, with_data = (net_of(f"cifar100/authors_resnet44{suffix}") for suffix in ("_inputs", ""))
    param = in_stage(inputs, "imae-8", TRAIN)
    assert param.layer[1:] == in_stage(with_data, "imae-8", TRAIN).layer[1:]
    net = Net(unfilled(param), Run(CaffeRandom(1)))
    assert net.inputs == ["data", "label"]
    assert (net.blob_shapes["data"], net.blob_shapes["label"]) == ((256, 3, 32, 32), (256, 1, 1, 1))
    assert net.blob_shapes["prob_groundtruth"] == (256, 1)


@pytest.mark.parametrize(
    ("path", "stage"),
    [("cifar10/resnet20", stage) for stage in ("cce", "mae", "imae")]
    + [("cifar100/authors_resnet44", "imae-8")],
)
def test_loss_and_gradients_are_finite(path: str, stage: str) -> None:
    net = Net(fed(in_stage(net_of(path), stage, TRAIN), 4, 3, 32, 32), Run(CaffeRandom(1)))
    loss = net.loss(net(feed(4, 3, 32, 32, classes=10)))
    loss.backward()
    assert loss.isfinite()
    for name in ("conv1", "res2_1_conv1", "fc"):
        gradient = net.params[name][0].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("path", ["cifar10/resnet20", "cifar100/authors_resnet44"])
def test_deploy_net_is_exported(path: str) -> None:
    param = in_stage(net_of(path), DEPLOY, TEST)
    param.state.phase = TRAIN
    train = Net(param, Run(CaffeRandom(4)))
    train({"data": feed(4, 3, 32, 32, classes=10)["data"]})  # for BatchNorm's statistics
    param.state.phase = TEST
    result = export_net(Net(param, share_from=train))
    assert result.difference <= tolerance("onnx").rtol * result.largest
    assert 0.01 < result.largest < 0.99
    assert result.outputs == train.outputs
