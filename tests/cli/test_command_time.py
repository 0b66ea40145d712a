"""`imae time` and `imae device-query`: Caffe's lines, times that add up, no GPU where none is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_runs import RUNS, prepared, worded

from imae.cli.command_time import measure, timed
from imae.cli.main import main
from imae.net import cuda_driver
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt.text import parse_net

NET = """
name: "tiny"
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { value: 0.5 } data_filler { value: 1 } } }
layer { name: "frozen" type: "InnerProduct" bottom: "data" top: "a" param { lr_mult: 0 } param { lr_mult: 0 }
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b"
        inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" loss_weight: 2 }
layer { name: "norm" type: "Reduction" bottom: "b" top: "norm" loss_weight: 0.5 }
"""


def test_the_lines_are_caffes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared("digits_lenet", tmp_path))
    capsys.readouterr()
    assert main(["time", "-model=net.prototxt", "-iterations", "5"]) == 0
    want = (RUNS / "digits_lenet" / "time.log").read_text(encoding="utf-8")
    got = capsys.readouterr().err
    assert worded(got) == worded(want)
    assert len(worded(got)) > 200


def test_phase_level_and_stage_choose_the_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    flags = ["-phase", "TEST", "-level", "3", "-stage", "a,b", "-iterations=1"]
    assert main(["time", "--model", str(path), *flags]) == 0
    assert 'state {\n  phase: TEST\n  level: 3\n  stage: "a"\n  stage: "b"\n}' in capsys.readouterr().err


STAGES = """
name: "tiny"
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss"
        include { stage: "cce" } }
layer { name: "norm" type: "Reduction" bottom: "fc" top: "norm" loss_weight: 1 include { stage: "l1" } }
layer { name: "fork" type: "Unheard" bottom: "fc" top: "x" include { stage: "x" } }
"""


def test_without_the_stage_of_a_loss_a_warning_says_which_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(STAGES)
    words = (
        "net 'tiny' has no loss, since its losses are in the stages cce, l1 and none of these is chosen "
        '(choose one: --stage l1, or in a solver train_state { stage: "l1" }), and '
    )
    time = ["time", "--model", str(path), "--iterations", "1"]
    assert main(time) == 0
    assert f"{words}the times of the backward pass are of nothing, as in Caffe" in capsys.readouterr().err
    for stage in ("cce", "l1"):
        assert main([*time, "--stage", stage]) == 0
        assert "has no loss" not in capsys.readouterr().err
    assert main([*time, "--phase", "TEST"]) == 0
    assert "has no loss" not in capsys.readouterr().err
    solver = tmp_path / "solver.prototxt"
    for state, warned in (
        ("", True),
        ('train_state { stage: "CCE" }', True),
        ('train_state { stage: "cce" }', False),
    ):
        fields = f'base_lr: 1 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "{tmp_path}/s" {state}'
        solver.write_text(f'net: "{path}" {fields}')
        assert main(["train", str(solver)]) == 0
        assert (f"{words}the training learns nothing" in capsys.readouterr().err) == warned
    path.write_text(STAGES.split('layer { name: "loss"')[0])
    assert main(time) == 0
    assert "has no loss" not in capsys.readouterr().err
    assert main(["train", str(solver)]) == 0
    assert "net 'tiny' has no loss, and the training learns nothing, as in Caffe" in capsys.readouterr().err


def test_times_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    forward, backward = measure(Net(parse_net(NET)), torch.device("cpu"), 3)
    names = ["data", "frozen", "b", "b_relu_0_split", "relu", "loss", "norm"]
    assert len(forward) == len(backward) == len(names)
    assert all(time > 0 for time in forward)
    assert all(time >= 0 for time in backward)


def test_the_passes_are_those_of_the_net() -> None:
    net = Net(parse_net(NET))
    passes = Stepwise(net)
    forward, backward = timed(passes)
    passes.forward()
    loss = net.loss(net.forward())
    want = torch.autograd.grad(loss, [blob for blob in net.learnable if blob.requires_grad])
    seen: list[torch.Tensor] = []
    for blob in net.learnable:
        if blob.requires_grad:
            blob.register_hook(seen.append)
    passes.backward()
    assert min(forward.layers) > 0 and backward.total > 0
    assert len(seen) == 2
    for ours, theirs in zip(sorted(seen, key=torch.numel), sorted(want, key=torch.numel), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_input_blobs_are_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "i" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
        'layer { name: "p" type: "Power" bottom: "x" top: "y" loss_weight: 1 power_param { shift: 3 } }'
    )
    assert main(["time", "--model", str(path), "--iterations", "1"]) == 0
    assert "caffe.cpp:356] Initial loss: 6\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Need a model definition to time: --model NET"),
        (["--model", "x", "--phase", "BOTH"], 'phase must be "TRAIN" or "TEST"; got \'BOTH\''),
        (["--model", "x", "--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--model", "nope.prototxt"], "nope.prototxt: no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["time", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"imae: {message}"


# -- device-query --------------------------------------------------------------------------------------------


ATTRIBUTES = {
    75: 9, 76: 0, 8: 49152, 12: 65536, 10: 32, 11: 2147483647, 1: 1024, 2: 1024, 3: 1024, 4: 64,
    5: 2147483647, 6: 65535, 7: 65535, 13: 1980000, 9: 65536, 14: 512, 15: 1, 16: 132, 17: 0,
}  # fmt: skip


class Driver:
    """As much of CUDA's driver as is asked, for a machine with two GPUs."""

    def __init__(self, gpus: int = 2, init: int = 0) -> None:
        self.gpus, self.init = gpus, init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index + 40
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = b"Some GPU" if device == 40 else b"Other GPU"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: int) -> int:
        memory._obj.value = 150_000_000_000
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = ATTRIBUTES[attribute]
        return 0


LINES = """\
caffe.cpp:138] Querying GPUs 0
common.cpp:178] Device id:                     0
common.cpp:179] Major revision number:         9
common.cpp:180] Minor revision number:         0
common.cpp:181] Name:                          Some GPU
common.cpp:182] Total global memory:           150000000000
common.cpp:183] Total shared memory per block: 49152
common.cpp:184] Total registers per block:     65536
common.cpp:185] Warp size:                     32
common.cpp:186] Maximum memory pitch:          2147483647
common.cpp:187] Maximum threads per block:     1024
common.cpp:188] Maximum dimension of block:    1024, 1024, 64
common.cpp:191] Maximum dimension of grid:     2147483647, 65535, 65535
common.cpp:194] Clock rate:                    1980000
common.cpp:195] Total constant memory:         65536
common.cpp:196] Texture alignment:             512
common.cpp:197] Concurrent copy and execution: Yes
common.cpp:199] Number of multiprocessors:     132
common.cpp:200] Kernel execution timeout:      No
"""


def use_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: driver)


def test_a_gpu_is_described_as_caffe_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_driver(monkeypatch, Driver())
    assert main(["device-query", "-gpu", "0"]) == 0
    assert re.sub(r"(?m)^I.*?(?=\S+:\d+\] )", "", capsys.readouterr().err) == LINES


def test_all_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_driver(monkeypatch, Driver())
    assert main(["device_query", "-gpu=all"]) == 0
    assert re.findall(r"Name: +(.*)", capsys.readouterr().err) == ["Some GPU", "Other GPU"]
    assert main(["device-query", "-gpu", "1,0"]) == 0
    assert re.findall(r"Device id: +(.*)", capsys.readouterr().err) == ["1", "0"]


def test_without_gpu_none_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device_query"]) == 0
    assert capsys.readouterr().err.endswith("caffe.cpp:138] Querying GPUs \n")


@pytest.mark.parametrize(
    ("driver", "gpu", "message"),
    [
        (Driver(), "2", "--gpu 2: there is no GPU 2; 2 are here, counted from 0, or say all"),
        (Driver(), "0,x", "--gpu 0,x: there is no GPU x; 2 are here, counted from 0, or say all"),
        (Driver(init=100), "all", "--gpu all: CUDA's driver answers cuInit with error 100"),
    ],
)
def test_a_gpu_that_is_not_there(
    driver: Driver,
    gpu: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_driver(monkeypatch, driver)
    assert main(["device-query", "--gpu", gpu]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"imae: {message}"


def test_no_driver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda_driver, "DRIVER", "libnothing.so.1")
    assert main(["device-query", "--gpu", "0"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "imae: --gpu 0: CUDA's driver (libnothing.so.1) is not installed here"
