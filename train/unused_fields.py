"""Fields of a solver that are set and change nothing. Caffe passes over them; here a warning names them.

They are no error: solver files keep what an earlier `type` or `lr_policy` had a use for.
"""

from __future__ import annotations

import logging

from imae.prototxt import SolverParameter

logger = logging.getLogger(__name__)

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
    if not (param.display or param.test_iter):
        where["debug_info"] = "without display or test_iter"
    return {field.name: where[field.name] for field, _ in param.ListFields() if field.name in where}


def warn_of_unused_fields(param: SolverParameter, device: str) -> None:
    """A warning in the log for each unused field."""
    for name, where in unused_fields(param, device).items():
        logger.warning("%s has no effect %s", name, where)
