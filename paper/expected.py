"""The numbers that the paper and its later version print, copied as printed.

Paper: "Improving MAE against CCE under Label Noise", arXiv 1903.12141, first version. Later version: the same
number, "IMAE for Noise-Robust Learning". Accuracies, mAP and CMC are in per cent.
"""

from __future__ import annotations

from typing import NamedTuple

from imae.paper.experiments import Run, later_table_6, table_1, table_2

# Table 1: test accuracy with clean labels. The paper does not say whether it is the best or the final one.
_TABLE_1 = {
    "resnet20": {"CCE": 91.0, "MAE": 89.9, "IMAE": 91.4},
    "resnet32": {"CCE": 92.5, "MAE": 82.4, "IMAE": 92.1},
    "resnet56": {"CCE": 92.5, "MAE": 89.0, "IMAE": 92.7},
}

# Table 2: best and final test accuracy, accuracy on the corrupted and on the intact training labels.
_TABLE_2 = {
    ("resnet20", 0.2, "CCE"): (87.1, 83.2, 85.1, 90.6),
    ("resnet20", 0.2, "MAE"): (87.8, 87.8, 78.2, 93.0),
    ("resnet20", 0.2, "IMAE"): (88.0, 84.6, 76.6, 90.2),
    ("resnet20", 0.5, "CCE"): (79.7, 69.5, 62.4, 74.0),
    ("resnet20", 0.5, "MAE"): (75.6, 75.3, 48.8, 79.0),
    ("resnet20", 0.5, "IMAE"): (83.0, 80.9, 56.8, 85.6),
    ("resnet20", 0.8, "CCE"): (56.1, 38.5, 42.0, 40.9),
    ("resnet20", 0.8, "MAE"): (45.3, 45.1, 20.3, 46.1),
    ("resnet20", 0.8, "IMAE"): (71.5, 62.8, 34.9, 65.3),
    ("resnet32", 0.2, "CCE"): (87.6, 81.2, 85.5, 88.3),
    ("resnet32", 0.2, "MAE"): (80.6, 80.4, 71.7, 85.0),
    ("resnet32", 0.2, "IMAE"): (87.8, 85.3, 77.7, 91.2),
    ("resnet32", 0.5, "CCE"): (79.9, 62.8, 71.2, 66.7),
    ("resnet32", 0.5, "MAE"): (61.6, 61.6, 40.3, 64.0),
    ("resnet32", 0.5, "IMAE"): (84.1, 80.4, 57.9, 84.7),
    ("resnet32", 0.8, "CCE"): (57.6, 32.7, 50.9, 35.1),
    ("resnet32", 0.8, "MAE"): (43.8, 43.7, 19.1, 44.3),
    ("resnet32", 0.8, "IMAE"): (71.0, 68.7, 31.9, 71.2),
}
_TABLE_2_MEASURES = ("best", "final", "corrupted", "intact")

# Table 3: MARS, GoogLeNet with batch normalisation; GCE is the paper's reference [31].
TABLE_3 = {
    "mAP": {"CCE": 58.1, "MAE": 12.0, "GCE": 31.6, "IMAE": 70.9},
    "CMC-1": {"CCE": 73.8, "MAE": 26.0, "GCE": 51.5, "IMAE": 83.5},
}

# Section 5.2: persons, videos (tracklets) and images of MARS, in all and in the two parts.
MARS_COUNTS = {
    "all": {"persons": 1261, "videos": 20715, "images": 1067516},
    "training": {"persons": 625, "videos": 8298, "images": 509914},
    "testing": {"persons": 636, "videos": 12180, "images": 681089},
}

# Table 4 (supplement): T and the variance of the weights for p uniform on [0, 1], as printed.
TABLE_4 = {
    16.0: "354.113",
    8.0: "4.546",
    4.0: "0.299",
    2.0: "0.040",
    1.0: "0.007",
    0.5: "0.002",
    0.0: "0",
}

# Figure 1's caption and section 4.
VARIANCES = {"MAE": "0.09", "IMAE-8": "4.55"}


class Formula(NamedTuple):
    """A loss of the later version's table 2: formulas in p, the probability of the annotated label, and p_j.

    prototxt   our layer for this loss, as prototxt text
    """

    loss: str
    value: str
    own: str  # dL/dz_y
    other: str  # dL/dz_j, j != y
    norm: str  # L1 norm of dL/dz
    prototxt: str


LATER_TABLE_2 = (
    Formula("CCE", "-log p", "p - 1", "p_j", "2 (1-p)", 'type: "SoftmaxWithLoss"'),
    Formula("MAE", "2 (1-p)", "2 p (p-1)", "2 p p_j", "4 p (1-p)", 'type: "MAELoss"'),
    Formula(
        "IMAE-8",
        "∫ exp(8 u (1-u)) / (2 u (1-u)) du, p to 1",
        "-exp(8 p (1-p)) / 2",
        "exp(8 p (1-p)) p_j / (2 (1-p))",
        "exp(8 p (1-p))",
        'type: "IMAELoss" imae_loss_param { t: 8 epsilon: 0 normalizer: BATCH_SIZE }',
    ),
    Formula(
        "GCE-0.7",
        "(1 - p^0.7) / 0.7",
        "p^0.7 (p-1)",
        "p^0.7 p_j",
        "2 p^0.7 (1-p)",
        'type: "GCELoss" gce_loss_param { q: 0.7 }',
    ),
    Formula("MSE", "(1-p)^2", "-2 p (p-1)^2", "2 p (1-p) p_j", "4 p (1-p)^2", 'type: "MSELoss"'),
    Formula(
        "DM(0.5, 8)",
        "not elementary",
        "-exp(8 p^0.5 (1-p)) / 2",
        "exp(8 p^0.5 (1-p)) p_j / (2 (1-p))",
        "exp(8 p^0.5 (1-p))",
        'type: "DMLoss" dm_loss_param { lambda: 0.5 beta: 8 epsilon: 0 normalizer: BATCH_SIZE }',
    ),
)

# Later version, tables 3 and 4, and DM (arXiv 1905.11233), table 1: CIFAR-100, ResNet-44, test accuracy.
CIFAR100_NOISE = ("clean", "sym 0.2", "sym 0.4", "sym 0.6", "asym 0.2", "asym 0.3", "asym 0.4")
LATER_TABLES_3_4 = {
    "CCE": (70.0, 60.4, 53.2, 42.1, 66.4, 64.7, 60.3),
    "MAE": (8.2, 6.4, 7.3, 5.2, 7.3, 6.3, 7.3),
    "IMAE": (69.2, 63.4, 54.7, 43.9, 67.5, 65.8, 63.3),
    "GCE": (63.6, 62.4, 58.6, 50.6, 62.8, 62.2, 58.7),
    "DM, λ = 0.5": (69.3, 65.7, 61.0, 52.9, 67.4, 65.0, 60.8),
}

# Later version, table 5: Clothing1M, ResNet-50, test accuracy.
LATER_TABLE_5 = {"CCE": 68.8, "GCE": 69.8, "SL": 71.0, "Joint Optim.": 72.2, "MAE": 45.3, "IMAE": 73.2}

# Later version, table 6: CIFAR-10, noise to the other classes.
_LATER_TABLE_6 = {
    ("resnet20", 0.0, "CCE"): (91.5, 91.3, None, 100.0, 98.5),
    ("resnet20", 0.0, "MAE"): (89.3, 89.2, None, 95.8, 94.7),
    ("resnet20", 0.0, "IMAE"): (91.7, 91.4, None, 99.8, 98.4),
    ("resnet20", 0.4, "CCE"): (81.2, 67.0, 34.3, 93.3, 72.6),
    ("resnet20", 0.4, "MAE"): (76.2, 75.9, 6.8, 84.6, 79.7),
    ("resnet20", 0.4, "IMAE"): (84.3, 84.0, 5.5, 94.0, 88.2),
    ("resnet20", 0.8, "CCE"): (43.0, 20.3, 38.3, 57.0, 22.0),
    ("resnet20", 0.8, "MAE"): (27.7, 27.5, 9.7, 29.4, 27.8),
    ("resnet20", 0.8, "IMAE"): (52.0, 41.0, 16.8, 64.8, 41.5),
    ("resnet56", 0.0, "CCE"): (92.4, 92.2, None, 100.0, 98.7),
    ("resnet56", 0.0, "MAE"): (89.0, 89.0, None, 96.1, 94.9),
    ("resnet56", 0.0, "IMAE"): (92.2, 92.2, None, 99.8, 98.5),
    ("resnet56", 0.4, "CCE"): (81.6, 63.3, 75.0, 96.2, 63.6),
    ("resnet56", 0.4, "MAE"): (67.0, 66.9, 8.1, 74.3, 70.2),
    ("resnet56", 0.4, "IMAE"): (82.2, 81.5, 6.5, 93.1, 86.5),
    ("resnet56", 0.8, "CCE"): (38.2, 16.4, 52.5, 62.3, 18.7),
    ("resnet56", 0.8, "MAE"): (15.2, 15.1, 9.6, 15.6, 15.1),
    ("resnet56", 0.8, "IMAE"): (37.1, 34.0, 13.0, 44.7, 34.8),
}
_LATER_TABLE_6_MEASURES = ("best", "final", "noisy_subset", "clean_subset", "hybrid")


def paper_tables_1_2() -> dict[Run, dict[str, float]]:
    """Tables 1 and 2 by run and measure (names as in results.MEASURES); table 1's number counts as final."""
    numbers = {run: {"final": _TABLE_1[run.net][run.loss]} for run in table_1()}
    for run in table_2():
        values = _TABLE_2[run.net, run.rate, run.loss]
        numbers[run] = dict(zip(_TABLE_2_MEASURES, values, strict=True))
    return numbers


def paper_later_table_6() -> dict[Run, dict[str, float]]:
    """The later version's table 6 by run and measure."""
    numbers = {}
    for run in later_table_6():
        values = _LATER_TABLE_6[run.net, run.rate, run.loss]
        named = zip(_LATER_TABLE_6_MEASURES, values, strict=True)
        numbers[run] = {name: value for name, value in named if value is not None}
    return numbers
