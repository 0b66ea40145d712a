"""What `debug_info: true` logs: the mean absolute values of blobs and diffs after each layer's pass.

Caffe: net.cpp, ForwardDebugInfo, BackwardDebugInfo, Backward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from imae.files.caffe_log import debug_logger
from imae.files.caffe_log import log_line as log_any_line
from imae.layers.layer import blob_name
from imae.layers.utility.synced_memory import parameter_diff
from imae.net.step import Step

log_line = partial(log_any_line, logger=debug_logger)


def log_forward(step: Step, blobs: Mapping[str, Tensor]) -> None:
    """Log the tops and parameters of a layer that has just run."""
    where = f"[Forward] Layer {step.layer.name}"
    for top in step.tops:
        log_line("net.cpp:593", f"    {where}, top blob {blob_name(top)} data: {_mean(blobs[top])}")
    for place, (blob, spec) in enumerate(zip(step.layer.blobs, step.layer.param_specs(), strict=True)):
        log_line("net.cpp:605", f"    {where}, param blob {spec.name or place} data: {_mean(blob)}")


def log_backward(step: Step, diffs: Mapping[str, Tensor]) -> None:
    """Log the diffs of bottoms and parameters of a layer whose backward pass has just run, if it has one."""
    if not step.need_backward:
        return
    where = f"[Backward] Layer {step.layer.name}"
    for bottom, need in zip(step.bottoms, step.bottom_need_backward, strict=True):
        if need:
            log_line("net.cpp:621", f"    {where}, bottom blob {bottom} diff: {_mean(diffs[bottom])}")
    for place, blob in enumerate(step.layer.blobs):
        if blob.requires_grad:
            log_line("net.cpp:632", f"    {where}, param blob {place} diff: {_mean(parameter_diff(blob))}")


def log_totals(learnable: Sequence[torch.nn.Parameter]) -> None:
    """Log the norms of all parameters and their diffs, after the backward pass of a whole net."""
    datas, diffs = [p.detach() for p in learnable], [parameter_diff(p) for p in learnable]
    l1, l2 = ([_norm(blobs, order) for blobs in (datas, diffs)] for order in (1, 2))
    norms = f"L1 norm = ({l1[0]}, {l1[1]}); L2 norm = ({l2[0]}, {l2[1]})"
    log_line(
        "net.cpp:721", f"    [Backward] All net params (data, diff): {norms}", logging.ERROR
    )  # Caffe: at level ERROR


def _mean(blob: Tensor) -> str:
    """The mean absolute value."""
    return _number(blob.detach().abs().mean())


def _norm(blobs: Iterable[Tensor], order: int) -> str:
    """The norm of all blobs together."""
    norms = [torch.linalg.vector_norm(blob, order) for blob in blobs]
    return _number(torch.stack(norms).norm(order) if norms else torch.zeros(()))


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}"
