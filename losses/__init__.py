"""The losses that papers about label noise compare, as torch modules; docs/losses.md has them all in a table.

    from imae.losses import IMAE
    loss = IMAE(t=8)(logits, labels)  # logits (N, C) or (N, C, H, W), labels (N) or (N, H, W)

`layers/plugins` has the same arithmetic as layers of a prototxt.
"""

from imae.losses.of_all_classes import (
    NCE,
    BackwardCorrection,
    Bootstrapping,
    ForwardCorrection,
    LabelSmoothing,
)
from imae.losses.of_probability import AEL, AGCE, AUL, CCE, DM, GCE, IMAE, MAE, MSE, SCE, TCE

__all__ = [
    "CCE",
    "MAE",
    "MSE",
    "GCE",
    "IMAE",
    "DM",
    "SCE",
    "AUL",
    "AGCE",
    "AEL",
    "TCE",
    "NCE",
    "LabelSmoothing",
    "Bootstrapping",
    "ForwardCorrection",
    "BackwardCorrection",
]
