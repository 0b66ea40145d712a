"""Checks of a solver before its nets are built: invalid fields, and fields without effect.

Caffe ignores fields that have no effect; here a warning names them. They are no error, since solver files
often keep fields of an earlier `type` or `lr_policy`. A field of a fork that would change the training and is
not supported is an error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter
from imae.prototxt.caffe_pb2 import NvidiaDataType
from imae.train.detection_evaluation import AP_VERSIONS, EVAL_TYPES
from imae.train.local_rates import check_local_rates
from imae.train.schedules import check_schedules, decay_varies
from imae.train.snapshots import check_removable, check_writable

logger = logging.getLogger(__name__)

# Fields whose NaN or infinity would turn the weights into NaN.
FINITE = (
    "base_lr", "delta", "gamma", "momentum", "momentum2", "power", "rms_decay", "weight_decay",
    "rampup_lr", "min_lr", "max_momentum", "momentum_power", "max_weight_decay", "weight_decay_power",
    "larc_eta", "warmup_start_lr", "local_gw_ratio",
)  # fmt: skip
TYPES = {
    "momentum2": ("Adam", "AdamW"),
    "rms_decay": ("RMSProp",),
    "delta": ("AdaDelta", "AdaGrad", "Adam", "AdamW", "RMSProp"),
    **dict.fromkeys(
        ("momentum_policy", "max_momentum", "momentum_power", "larc", "larc_policy", "larc_eta",
         "larc_turbo", "local_lr_auto", "local_gw_ratio"),
        ("SGD",),
    ),
}  # fmt: skip
POLICIES = {
    "gamma": ("exp", "inv", "multistep", "plateau", "sigmoid", "step"),
    "power": ("inv", "poly"),
    "stepsize": ("sigmoid", "step"),
    "stepvalue": ("multistep",),
    "plateau_winsize": ("plateau",),
    "stagelr": ("multifixed",),
    "stageiter": ("multifixed",),
}
# Fields that do something only where another one does: what that one must be.
SWITCHES: dict[str, tuple[str, Callable[[SolverParameter], bool]]] = {
    "rampup_lr": ("rampup_interval", lambda param: param.rampup_interval > 0),
    "warmup_start_lr": ("warmup_iter", lambda param: param.warmup_iter > 0),
    "max_momentum": ("a momentum_policy", lambda param: param.momentum_policy != "fixed"),
    "momentum_power": ('momentum_policy: "poly"', lambda param: param.momentum_policy == "poly"),
    "max_weight_decay": ("a weight_decay_policy", decay_varies),
    "weight_decay_power": ("a weight_decay_policy", decay_varies),
    "larc_policy": ("larc", lambda param: param.larc),
    "larc_eta": ("larc", lambda param: param.larc),
    "larc_turbo": ("larc", lambda param: param.larc),
    "local_gw_ratio": ("local_lr_auto", lambda param: param.local_lr_auto),
}


def check_param(param: SolverParameter, device: str, *, writes: bool, removes: bool) -> None:
    """PrototxtError for invalid fields; a warning in the log for each field without effect.

    device    cpu or cuda
    writes    whether this process writes snapshots; FileError where it cannot
    removes   whether it removes snapshots that are not kept; FileError where it must not
    """
    for name in ("display", "max_iter", "snapshot", "test_interval"):
        if (value := getattr(param, name)) < 0:
            raise PrototxtError(f"{name} must be at least 0, got {value}")
    if param.test_iter and min(param.test_iter) < 0:
        raise PrototxtError(f"test_iter must be at least 0, got {min(param.test_iter)}")
    for name in FINITE:
        if not math.isfinite(value := getattr(param, name)):
            raise PrototxtError(f"{name} must be a finite number, got {value}")
    if math.isnan(param.clip_gradients):
        raise PrototxtError("clip_gradients must be the largest L2 norm, or below 0 (off); got nan")
    if param.average_loss < 1:
        raise PrototxtError(
            f"average_loss should be non-negative: it must be at least 1, got {param.average_loss}"
        )
    if param.iter_size < 1:
        raise PrototxtError(f"iter_size must be at least 1, got {param.iter_size}")
    if not all(math.isfinite(value) for value in param.stagelr):
        raise PrototxtError(f"stagelr must be finite numbers, got {', '.join(map(str, param.stagelr))}")
    check_schedules(param)
    check_local_rates(param)
    if param.solver_data_type != NvidiaDataType.FLOAT:
        name = NvidiaDataType.Type.Name(param.solver_data_type)
        raise PrototxtError(
            f"solver_data_type: {name}, of NVIDIA's fork, would keep weights and history in that type, which "
            f"is not supported; remove it{' and give --double' if name == 'DOUBLE' else ''}"
        )
    if param.test_and_snapshot_last_epochs > 0:
        raise PrototxtError(
            "test_and_snapshot_last_epochs, of NVIDIA's fork, would test and snapshot after each of the last "
            "epochs, which is not supported; remove it, and set test_interval and snapshot"
        )
    if param.regularization_type not in ("L1", "L2"):
        raise PrototxtError(f"Unknown regularization type: {param.regularization_type} (known types: L1, L2)")
    if param.eval_type not in EVAL_TYPES:
        raise PrototxtError(
            f"Unknown evaluation type: {param.eval_type} (known types: {', '.join(EVAL_TYPES)})"
        )
    if param.ap_version not in AP_VERSIONS:
        raise PrototxtError(f"Unknown ap_version: {param.ap_version} (known: {', '.join(AP_VERSIONS)})")
    if "\0" in param.snapshot_prefix:
        raise PrototxtError(f"there is a zero byte in snapshot_prefix '{param.snapshot_prefix}'")
    if param.snapshot:
        if not param.HasField("snapshot_prefix"):
            raise PrototxtError("In solver params, snapshot is specified but snapshot_prefix is not")
        if writes:
            check_writable(param.snapshot_prefix)
    if removes:
        check_removable(param.snapshot_prefix)
    for name, where in unused_fields(param, device).items():
        logger.warning("%s has no effect %s", name, where)


def unused_fields(param: SolverParameter, device: str = "cpu") -> dict[str, str]:
    """Where each unused field has no effect: {"momentum2": 'with type: "SGD"'}. `device` is cpu or cuda."""
    where = {
        **{name: f"without {switch}" for name, (switch, is_on) in SWITCHES.items() if not is_on(param)},
        **{name: f'with type: "{param.type}"' for name, types in TYPES.items() if param.type not in types},
        **{
            name: f'with lr_policy: "{param.lr_policy}"'
            for name, policies in POLICIES.items()
            if param.lr_policy not in policies
        },
        "layer_wise_reduce": "here: ranks sum the gradients of all layers at once",
        "engine": "here: it names the library with which Intel's fork computes",
        "store_blobs_in_old_format": "here: snapshots always have Caffe's format",
    }
    if param.type == "SGD" and param.momentum_policy == "opt":
        where["momentum"] = 'with momentum_policy: "opt"'
    if device == "cpu":
        where["device_id"] = "on the CPU"
    if not param.weight_decay and not (decay_varies(param) and param.max_weight_decay):
        where["regularization_type"] = where["weight_decay_policy"] = "without weight_decay"
    if not param.display and param.lr_policy != "plateau":
        where["average_loss"] = "without display"
    if not param.test_iter:
        where |= dict.fromkeys(
            ("test_interval", "test_initialization", "test_compute_loss", "test_offset"), "without test_iter"
        )
    if param.eval_type != "detection":
        where["ap_version"] = where["show_per_class_result"] = 'without eval_type: "detection"'
    if not param.test_iter:
        where |= dict.fromkeys(("eval_type", "ap_version", "show_per_class_result"), "without test_iter")
    if not (param.display or param.test_iter):
        where["debug_info"] = "without display or test_iter"
    return {field.name: where[field.name] for field, _ in param.ListFields() if field.name in where}
