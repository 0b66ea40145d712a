"""The kernels of torch.compile, on the CPU, against torch's in double precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_resnet import net_on, numbers_of, solver_param, write_images
from tolerances import tolerance

from imae.net.executor import NetExecutor
from imae.net.fuse import FusedBatchNormScale
from imae.net.kernels.compiled_norm import normalize_compiled
from imae.net.kernels.norm_call import NormCall
from imae.prototxt import NetParameter
from imae.prototxt.text import parse_net
from imae.train.options import Options
from imae.train.solver import Solver

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler for torch.compile"),
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() == "DEFAULT",
        reason="without vectors torch.compile writes C++ for them that it does not declare",
    ),
    # Of torch's compiler, about torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning"),
]


def test_values_and_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    x, shortcut, top_diff = torch.randn(3, 4, 8, 6, 6, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    x = x * 3 + 5
    found = []
    for compiled in (True, False):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias, shortcut)]
        if compiled:
            call = NormCall(leaves[0], leaves[1], leaves[2], 1e-5, True, leaves[3])
            top, *statistics = normalize_compiled(call, *torch.zeros(2, 8, dtype=torch.float64))
        else:
            top = F.relu(F.batch_norm(leaves[0], None, None, *leaves[1:3], True, 0, 1e-5) + leaves[3])
            statistics = [x.mean((0, 2, 3)), x.var((0, 2, 3))]
        found.append([top.detach(), *statistics, *torch.autograd.grad(top, leaves, top_diff)])
    for got, want in zip(*found, strict=True):
        error = float((got - want).abs().max() / want.abs().max())
        assert error <= tolerance("kernel", "float64").atol


NET = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 bias_term: false weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 10 weight_filler { type: "msra" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def test_a_solver_trains_with_them(tmp_path: Path) -> None:
    """Two iterations in double precision, blobs in the order N, H, W, C."""
    data = [layer for layer in net_on(write_images(tmp_path)).layer if layer.type == "Data"]
    net = NetParameter(layer=data)
    net.MergeFrom(parse_net(NET))
    trained = []
    for compiled in (True, False):
        solver = Solver(
            solver_param(net, 2, "momentum: 0.9"),
            Options(compiled=compiled, fast=compiled),
            dtype=torch.float64,
        )
        solver.step(2)
        trained.append(solver)
    executor = trained[0]._run
    assert isinstance(executor, NetExecutor)
    (run,) = (step.run for step in executor.plan if isinstance(step.run, FusedBatchNormScale))
    assert run.relu and run.by_batch is normalize_compiled
    for got, want in zip(*map(numbers_of, trained), strict=True):
        error = float((got - want).abs().max()) / (float(want.abs().max()) or 1.0)
        assert error <= tolerance("fast way", "float64").atol
