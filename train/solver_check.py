"""Checks of a solver before its nets are built: invalid fields, and fields without effect.

Caffe ignores fields that have no effect; here a warning names them. They are no error, since solver files
often keep fields of an earlier `type` or `lr_policy`.
"""

from __future__ import annotations

import logging
import math

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter
from imae.train.detection_evaluation import AP_VERSIONS, EVAL_TYPES
from imae.train.snapshots import check_removable, check_writable

logger = logging.getLogger(__name__)

# Fields whose NaN or infinity would turn the weights into NaN.
FINITE = ("base_lr", "delta", "gamma", "momentum", "momentum2", "power", "rms_decay", "weight_decay")
TYPES = {
    "momentum2": ("Adam",),
    "rms_decay": ("RMSProp",),
    "delta": ("AdaDelta", "AdaGrad", "Adam", "RMSProp"),
}
POLICIES = {
    "gamma": ("exp", "inv", "multistep", "sigmoid", "step"),
    "power": ("inv", "poly"),
    "stepsize": ("sigmoid", "step"),
    "stepvalue": ("multistep",),
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
        **{name: f'with type: "{param.type}"' for name, types in TYPES.items() if param.type not in types},
        **{
            name: f'with lr_policy: "{param.lr_policy}"'
            for name, policies in POLICIES.items()
            if param.lr_policy not in policies
        },
        "layer_wise_reduce": "here: ranks sum the gradients of all layers at once",
    }
    if device == "cpu":
        where["device_id"] = "on the CPU"
    if not param.weight_decay:
        where["regularization_type"] = "without weight_decay"
    if not param.display:
        where["average_loss"] = "without display"
    if not param.test_iter:
        where |= dict.fromkeys(
            ("test_interval", "test_initialization", "test_compute_loss"), "without test_iter"
        )
    if param.eval_type != "detection":
        where["ap_version"] = where["show_per_class_result"] = 'without eval_type: "detection"'
    if not param.test_iter:
        where |= dict.fromkeys(("eval_type", "ap_version", "show_per_class_result"), "without test_iter")
    if not (param.display or param.test_iter):
        where["debug_info"] = "without display or test_iter"
    return {field.name: where[field.name] for field, _ in param.ListFields() if field.name in where}
