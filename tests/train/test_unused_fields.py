"""Every field of a solver does something, or a warning says that it does nothing."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from google.protobuf import text_format

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter
from imae.prototxt.text import parse_solver
from imae.train.lr_policy import POLICIES
from imae.train.solver import Solver
from imae.train.solver_check import unused_fields
from imae.train.update_rules import RULES

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
TEST = "test_iter: 1 test_interval: 2"
PLATEAU = 'lr_policy: "plateau" gamma: 0.5 plateau_winsize: 1 plateau_winsize: 1 base_lr: 4'
LARC = "larc: true larc_eta: 0.5"
STAGES = "plateau_winsize: 0 stagelr: 0.5 stagelr: 0.125 stageiter: 1 stageiter: 9"
# Solvers, and a field that is set in them.
SETTINGS = [
    *((f'type: "{name}"', field) for name in RULES
      for field in ("momentum2: 0.5", "rms_decay: 0.5", "delta: 0.125")),
    *((f'lr_policy: "{name}" gamma: 0.5 power: 2 stepsize: 2 stepvalue: 2 {STAGES}', field)
      for name in POLICIES
      for field in ("gamma: 0.25", "power: 3", "stepsize: 1", "stepvalue: 1", "plateau_winsize: 2",
                    "stagelr: 0.5 stagelr: 0.0625", "stageiter: 0 stageiter: 9")),
    *((base, 'regularization_type: "L1"') for base in ("weight_decay: 0.1", "weight_decay: 0", "")),
    *((base, "average_loss: 3") for base in ("display: 1", "display: 0", "", PLATEAU)),
    *((base, field) for base in (TEST, "")
      for field in ("test_interval: 1", "test_initialization: false", "test_compute_loss: true")),
    *((base, "debug_info: true") for base in ("display: 1", TEST, "")),
    *((f"momentum: 0.5 {base}", field)
      for base in ("", 'momentum_policy: "poly"', 'momentum_policy: "opt"')
      for field in ("max_momentum: 0.5", "momentum_power: 3", "momentum: 0.25")),
    *((f"weight_decay: {decay} {base}", field)
      for decay in (0, 0.125) for base in ("", 'weight_decay_policy: "poly" max_weight_decay: 0.5')
      for field in ("max_weight_decay: 0.25", "weight_decay_power: 3", 'regularization_type: "L1"')),
    ("weight_decay: 0", 'weight_decay_policy: "poly"'),
    ("weight_decay: 0.125", 'weight_decay_policy: "poly"'),
    *((f'type: "{name}" momentum: 0', field) for name in RULES
      for field in ('momentum_policy: "poly"', "larc: true", "local_lr_auto: true")),
    *((f'type: "{name}" momentum: 0 {base}', field) for name in RULES
      for base, field in (('momentum_policy: "poly"', "max_momentum: 0.75"),
                          ('momentum_policy: "poly"', "momentum_power: 2"),
                          (LARC, 'larc_policy: "clip"'), (LARC, "larc_eta: 0.25"),
                          ("local_lr_auto: true", "local_gw_ratio: 0.25"))),
    *(("", field) for field in ('larc_policy: "clip"', "larc_eta: 0.5", "larc_turbo: true",
                                "local_gw_ratio: 0.5")),
    *((base, field) for base in ("", "rampup_interval: 3", "warmup_iter: 3")
      for field in ("rampup_lr: 0.125", "warmup_start_lr: 0.125")),
    *((base, "test_offset: 1") for base in (TEST, "")),
    ("", 'engine: "MKL2017"'),
    ("", "store_blobs_in_old_format: true"),
    ("", "layer_wise_reduce: false"),
    ("", "device_id: 1"),
    ("", 'eval_type: "detection"'),
    *((base, field) for base in (TEST, "")
      for field in ('ap_version: "11point"', "show_per_class_result: true")),
]  # fmt: skip
# What does something whatever else is set; the tests of the solver show it.
ALWAYS = """
    net net_param train_net test_net train_net_param test_net_param train_state test_state test_iter
    base_lr display max_iter iter_size lr_policy momentum weight_decay clip_gradients snapshot
    snapshot_prefix snapshot_diff snapshot_format solver_mode random_seed type snapshot_after_train
    solver_type weights
    rampup_interval min_lr warmup_iter disabled_update
    eval_type ap_version show_per_class_result
"""
# What other values of these would change is not supported.
REFUSED = {
    "solver_data_type: FLOAT16": "solver_data_type: FLOAT16, of NVIDIA's fork, would keep weights",
    "solver_data_type: DOUBLE": "remove it and give --double",
    "test_and_snapshot_last_epochs: 1": "test_and_snapshot_last_epochs, of NVIDIA's fork, would test and",
    "larc: true larc_turbo: true": "larc_turbo, of NVIDIA's fork, would lower each blob's rate by",
    "larc: true local_lr_auto: true": "larc is a field of NVIDIA's fork, local_lr_auto one of Intel's",
    'larc: true larc_policy: "clp"': "Unknown larc policy: clp (known policies: scale, clip)",
    'momentum_policy: "exp"': "Unknown momentum_policy: exp (known policies: fixed, poly, opt)",
    'weight_decay_policy: "opt"': "Unknown weight_decay_policy: opt (known policies: fixed, poly)",
    'lr_policy: "multifixed" stagelr: nan stageiter: 1': "stagelr must be finite numbers, got nan",
}


def solver_param(base: str, field: str = "") -> SolverParameter:
    common = 'base_lr: 0.25 max_iter: 8 random_seed: 1 snapshot_after_train: false lr_policy: "fixed"'
    param = parse_solver(f"net_param {{ {NET} }}")
    for text in (common, base, field):
        given = text_format.Parse(text, SolverParameter())
        for descriptor, _ in given.ListFields():
            param.ClearField(descriptor.name)
        param.MergeFrom(given)
    return param


def observed(param: SolverParameter, caplog: pytest.LogCaptureFixture) -> tuple[list[str], bytes]:
    """What four iterations log, without the solver's text, warnings and times, and the weights after them."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="imae"):
        solver = Solver(param)
        solver.step(4)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    lines = [re.sub(r"\(.* iter/s, .*s/", "", line) for line in lines if "Initializing solver" not in line]
    weights = torch.cat([blob.detach().flatten() for blob in (*solver.net.learnable, *solver.history)])
    return lines, weights.numpy().tobytes()


@pytest.mark.parametrize(("base", "field"), SETTINGS)
def test_a_field_has_an_effect_or_is_said_to_have_none(
    base: str, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    param, name = solver_param(base, field), field.partition(":")[0]
    has_effect = observed(param, caplog) != observed(solver_param(base), caplog)
    assert has_effect == (name not in unused_fields(param))


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_supported_is_refused(field: str) -> None:
    with pytest.raises(PrototxtError, match=re.escape(REFUSED[field])):
        Solver(solver_param("", field))


def test_every_field_is_looked_into() -> None:
    looked_into = {field.partition(":")[0] for _, field in SETTINGS}
    looked_into |= {field.partition(":")[0] for field in REFUSED}
    assert looked_into | set(ALWAYS.split()) == {field.name for field in SolverParameter.DESCRIPTOR.fields}


def test_the_log_names_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    Solver(solver_param("", "momentum2: 0.9 gamma: 0.1 stepvalue: 5 device_id: 0 test_interval: 10"))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "test_interval has no effect without test_iter",
        'gamma has no effect with lr_policy: "fixed"',
        "device_id has no effect on the CPU",
        'stepvalue has no effect with lr_policy: "fixed"',
        'momentum2 has no effect with type: "SGD"',
    ]
    assert "device_id" not in unused_fields(solver_param("", "device_id: 0"), "cuda")
