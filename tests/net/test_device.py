"""Which device computes, and what each log says of it; on a machine that only says that it has GPUs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch

from imae.cli import command_extract_features, command_time, command_train
from imae.net.device import DeviceLog, GpuRequest, choose_device
from imae.net.device_log import TEST_DEVICE_LOG

USE_CPU = "Use CPU."


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The GPUs that were made the current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    return chosen


def lines(records: Sequence[logging.LogRecord]) -> list[tuple[str, str]]:
    return [(record.__dict__["caffe"], record.getMessage()) for record in records]


@pytest.mark.parametrize(
    ("log", "on_cpu", "on_gpu"),
    [
        (
            command_train.DEVICE_LOG,
            ("caffe.cpp:197", USE_CPU),
            [("caffe.cpp:204", "Using GPUs 1"), ("caffe.cpp:209", "GPU 1: card 1")],
        ),
        (
            TEST_DEVICE_LOG,
            ("caffe.cpp:275", USE_CPU),
            [("caffe.cpp:266", "Use GPU with device ID 1"), ("caffe.cpp:270", "GPU device name: card 1")],
        ),
        (
            command_extract_features.DEVICE_LOG,
            ("extract_features.cpp:62", "Using CPU"),
            [("extract_features.cpp:52", "Using GPU"), ("extract_features.cpp:58", "Using Device_id=1")],
        ),
        (
            command_time.DEVICE_LOG,
            ("caffe.cpp:343", USE_CPU),
            [("caffe.cpp:339", "Use GPU with device ID 1")],
        ),
    ],
)
def test_each_tool_says_what_computes(
    two_gpus: list[int],
    caplog: pytest.LogCaptureFixture,
    log: DeviceLog,
    on_cpu: tuple[str, str],
    on_gpu: list[tuple[str, str]],
) -> None:
    caplog.set_level(logging.INFO)
    assert choose_device(None, log) == torch.device("cpu")
    assert lines(caplog.records) == [on_cpu]
    caplog.clear()
    assert choose_device(GpuRequest("1", "--gpu 1", "leave --gpu out"), log) == torch.device("cuda", 1)
    assert lines(caplog.records) == on_gpu
    assert two_gpus == [1]


def test_each_rank_takes_its_own_gpu_and_names_all(
    two_gpus: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = GpuRequest("all", "--gpu all", "leave --gpu out")
    assert choose_device(request, command_train.DEVICE_LOG, (1, 2)) == torch.device("cuda", 1)
    assert two_gpus == [1]
    assert lines(caplog.records) == [
        ("caffe.cpp:204", "Using GPUs 0, 1"),
        ("caffe.cpp:209", "GPU 0: card 0"),
        ("caffe.cpp:209", "GPU 1: card 1"),
    ]


def test_without_a_log_nothing_is_said(two_gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose_device(GpuRequest("0", "--gpu 0", "leave --gpu out")) == torch.device("cuda", 0)
    assert choose_device(None) == torch.device("cpu")
    assert not caplog.records
