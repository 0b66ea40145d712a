"""`imae device-query`: list the GPUs in the form of `caffe device_query`.

    imae device-query --gpu all

Sizes are in bytes, the clock rate is in kHz. Without --gpu no GPU is queried, as in Caffe.

Caffe: tools/caffe.cpp, device_query(); common.cpp, DeviceQuery. The numbers come from CUDA's driver.
"""

from __future__ import annotations

import argparse

from imae.net.cuda_driver import log_gpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--gpu", default="", metavar="ID[,ID]", help="the GPUs to show, or all")


def run(args: argparse.Namespace) -> None:
    """Log what Caffe logs about each GPU."""
    log_gpus(args.gpu)
