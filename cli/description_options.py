"""The options of `imae export` that say what the model is: --labels, --license, --card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imae.converters.labels import read_labels

if TYPE_CHECKING:
    from imae.converters.describe_model import About
    from imae.converters.export_onnx import Export


def add_description_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("what the model says of itself")
    group.add_argument(
        "--labels",
        metavar="FILE",
        help="the names of the classes: synset_words.txt, a name in each line, or SSD's label map",
    )
    group.add_argument("--license", metavar="TEXT", default="", help="the licence of the model, one line")
    group.add_argument(
        "--card",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a model card in Markdown, by default beside the model: its inputs, how images are "
        "prepared, and the lines of Python that run it",
    )


def chosen_description(args: argparse.Namespace) -> About:
    """What these options say; the labels are read."""
    from imae.converters.describe_model import About

    labels = [] if args.labels is None else read_labels(args.labels)
    return About(args.model, args.weights, labels, args.license)


def write_chosen_card(args: argparse.Namespace, result: Export) -> None:
    """Write the model card, if it is asked for, and print its name."""
    from imae.converters.model_card import write_card

    if (card := card_path(args)) is not None:
        write_card(result.model, card, args.output)
        print(f"wrote {card}, the model card")


def card_path(args: argparse.Namespace) -> Path | None:
    """Where the model card goes; None: nowhere."""
    if args.card is None:
        return None
    return Path(args.card) if args.card else Path(args.output).with_suffix(".md")
