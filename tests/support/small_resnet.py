"""A small ResNet on random images, and a solver that trains it within moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format

from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.datum import datum_from_array
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.models.resnet import resnet, with_cifar10_data
from imae.train.solver import Solver

IMAGES = 50
IMAGES_BYTES = IMAGES * 3 * 40 * 40


def write_images(folder: Path) -> str:
    """LMDBs of 50 images: `images` of 40x40, whose path is returned, and `images_test` of 32x32."""
    generator = np.random.default_rng(1)
    for name, side in (("images", 40), ("images_test", 32)):
        images = generator.integers(0, 256, (IMAGES, 3, side, side), np.uint8)
        records = ((b"%04d" % i, datum_from_array(image, i % 10)) for i, image in enumerate(images))
        write_lmdb(folder / name, records)
    return str(folder / "images")


def net_on(database: str, loss: str = "IMAELoss", depth: int = 8, batch: int = 8) -> NetParameter:
    """A ResNet with Data layers; its TEST batches have 100 images."""
    return with_cifar10_data(resnet(depth, loss=loss), database, f"{database}_test", batch)


def solver_param(net: NetParameter, iterations: int, fields: str) -> SolverParameter:
    """A solver that displays its loss and tests; its learning rate drops during the training."""
    param = text_format.Parse(
        f'base_lr: 0.05 lr_policy: "step" stepsize: 3 gamma: 0.5 max_iter: {iterations} random_seed: 3 '
        f"display: 2 average_loss: 3 test_iter: 2 test_interval: 4 snapshot_after_train: false {fields}",
        SolverParameter(),
    )
    param.net_param.CopyFrom(net)
    return param


def numbers_of(solver: Solver) -> list[torch.Tensor]:
    """Weights and statistics, then histories, on the CPU."""
    learnable = [p.detach() for p in solver.net.learnable]
    return [blob.cpu().clone() for blob in (*learnable, *solver.history)]
