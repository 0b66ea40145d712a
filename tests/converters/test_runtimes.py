"""Exported models compute the same in every runtime that is there: a small part of `benchmarks runtimes`.

OpenVINO and onnxruntime-web are no requirements, and skipped where they are not there. .ci/runtimes installs
them and sets IMAE_RUNTIMES to "all", so that none is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from tolerances import tolerance

from benchmarks import runtimes
from benchmarks.runtime_nets import NETS, layer_nets
from benchmarks.runtimes import KNOWN, RUNTIMES, Model, Runtime, Variant
from imae.cli.main import main
from imae.converters.convert_digits import read_digits
from imae.files.errors import ImaeError
from imae.prototxt.text import parse_solver
from imae.train.solver import Solver

SMALL = ("LeNet", "digits", "ResNet-20", "MobileNet, small", "SSD, small", "FCN, small", "LSTM")
PLAIN, FOLDED = Variant("plain"), Variant("--fold", fold=True)
FP16, INT8 = Variant("fp16", to="fp16"), Variant("int8", fold=True, to="int8")


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[[str], Runtime]]:
    """Starts a runtime, or skips."""
    with ExitStack() as stack:
        made: dict[str, Runtime] = {}

        def start(name: str) -> Runtime:
            if name not in made:
                folder = os.environ.get("IMAE_NODE_MODULES")
                found, absent = runtimes.start_runtimes([name], {}, Path(folder) if folder else None, stack)
                if absent:
                    assert os.environ.get("IMAE_RUNTIMES") != "all", f"{name}: {absent[name]}"
                    pytest.skip(f"{name} is not there: {absent[name]}")
                made.update(found)
            return made[name]

        yield start


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Variant], Model]:
    """Makes a net's model, once."""
    made: dict[tuple[str, str], Model] = {}

    def model(name: str, variant: Variant) -> Model:
        if (name, variant.name) not in made:
            folder = tmp_path_factory.mktemp("model")
            made[name, variant.name] = runtimes.make_model(NETS[name](), variant, folder)
        return made[name, variant.name]

    return model


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model for each type that can be exported."""
    made = {}
    for name, param in layer_nets():
        try:
            made[name] = runtimes.make_model(param, PLAIN, tmp_path_factory.mktemp("layer"))
        except ImaeError:
            continue  # a loss, or another layer that is left out of a deployed net
    assert len(made) >= 70
    return made


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_small_nets(
    runtime: str, started: Callable[[str], Runtime], models: Callable[[str, Variant], Model]
) -> None:
    process = started(runtime)
    for name in SMALL:
        for variant in (PLAIN, FOLDED):
            check(runtime, name, runtimes.result_of(process, models(name, variant)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_single_layers(runtime: str, started: Callable[[str], Runtime], layers: dict[str, Model]) -> None:
    process = started(runtime)
    for name, model in layers.items():
        check(runtime, name, runtimes.result_of(process, model))


def check(runtime: str, name: str, result: float | str) -> None:
    """It computes what the net computes, or the page says why it does not."""
    if name not in KNOWN.get(runtime, {}):
        assert isinstance(result, float) and result <= tolerance("runtimes").atol, (name, result)


@pytest.mark.parametrize("variant", [FP16, INT8], ids=["fp16", "int8"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantized_nets(
    runtime: str, variant: Variant, started: Callable[[str], Runtime], models: Callable[[str, Variant], Model]
) -> None:
    """They are about as near to the net as in ONNX Runtime, in the mean: see `difference`."""
    process, reference = started(runtime), started("ONNX Runtime")
    for name in ("digits", "ResNet-20", "MobileNet, small", "FCN, small"):
        model = models(name, variant)
        got, want = (runtimes.result_of(each, model, np.mean) for each in (process, reference))
        if variant.name in KNOWN.get(runtime, {}):
            continue
        assert isinstance(got, float) and isinstance(want, float), (name, got)
        rtol, atol, _ = tolerance("quantized in another runtime")
        assert got <= (1 + rtol) * want + atol, (name, got, want)


def test_what_computes_boxes_stays_in_float32(models: Callable[[str, Variant], Model]) -> None:
    graph = onnx.load(models("SSD, small", INT8).path).graph
    makers = {name: node for node in graph.node for name in node.output}
    read = [name for node in graph.node if node.op_type == "NonMaxSuppression" for name in node.input]
    seen: set[str] = set()
    for name in read:  # which grows
        if name in makers and name not in seen and makers[name].op_type not in ("DequantizeLinear", "Conv"):
            seen.add(name)
            read += makers[name].input
    types = {makers[name].op_type for name in seen}
    assert {"Softmax", "Exp", "Concat"} <= types and "QuantizeLinear" not in types
    quantized = {makers[name].op_type for node in graph.node if node.op_type == "QuantizeLinear"
                 for name in node.input if name in makers}  # fmt: skip
    assert "Conv" in quantized or "Relu" in quantized


# -- a trained net -----------------------------------------------------------------------------------------

LAYERS = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv"
        batch_norm_param { moving_average_fraction: 0.95 } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
"""
SCALE = 0.00390625
TRANSFORM = f"scale: {SCALE}"
TRAINING = f"""
layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ {TRANSFORM} }}
        data_param {{ source: "digits_train_lmdb" batch_size: 50 backend: LMDB }} }} {LAYERS}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}
"""
DEPLOY = f"""name: "digits"
layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 1 dim: 8 dim: 8 }} }} }}
{LAYERS}"""
SOLVER = """base_lr: 0.05 lr_policy: "step" gamma: 0.1 stepsize: 300 momentum: 0.9 weight_decay: 0.0005
max_iter: 400 random_seed: 1 snapshot_prefix: "digits" snapshot: 400 display: 100"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits, a deploy net, its trained weights, and the models of it."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["convert-digits", "."]) == 0
        Path("deploy.prototxt").write_text(DEPLOY)
        Solver(parse_solver(f"{SOLVER} net_param {{ {TRAINING} }}")).solve()
        export = ["export", "--model", "deploy.prototxt", "--weights", "digits_iter_400.caffemodel"]
        assert main([*export, "--fold", "--output", "float32.onnx"]) == 0
        transform = ["--transform", TRANSFORM]
        int8 = ["--to", "int8", "--calibrate", "digits_train_lmdb", "--records", "500", *transform]
        assert main(["quantize", "float32.onnx", "int8.onnx", *int8]) == 0
        assert main(["quantize", "float32.onnx", "fp16.onnx", "--to", "fp16", *transform]) == 0
    return folder


@pytest.mark.parametrize(
    ("runtime", "kind"),
    [
        (name, kind)
        for name in RUNTIMES
        for kind in ("fp16", "int8")
        if name != "onnx.checker" and kind not in KNOWN.get(name, {})
    ],
)
def test_accuracy_stays_within_a_point(
    runtime: str, kind: str, trained: Path, started: Callable[[str], Runtime]
) -> None:
    before, after = (accuracy(started(runtime), trained / f"{name}.onnx") for name in ("float32", kind))
    assert before > 0.9 and before - after <= tolerance("accuracy when quantized").atol


def accuracy(runtime: Runtime, path: Path) -> float:
    """On the test digits."""
    digits = read_digits()[1]
    images = digits.images.astype(np.float32) * np.float32(SCALE)
    file = path.with_suffix(".images")
    images.tofile(file)
    ((scores,),) = runtime.run(Model(path, ["fc"], [{"data": (file, images)}], [], {}))
    return float((scores.argmax(1) == digits.labels).mean())


def test_int8_of_a_deploy_net_refuses_to_guess(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    command = ["quantize", "float32.onnx", "guessed.onnx", "--to", "int8", "--calibrate", "digits_train_lmdb"]
    assert main(command) == 2
    assert "would be calibrated on other values than it will see" in capsys.readouterr().err
    assert not Path("guessed.onnx").exists()
