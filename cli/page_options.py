"""The options of `imae export` that write a page which runs the model: --html, --ort-web."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from imae.files.errors import ExportError

if TYPE_CHECKING:
    from imae.converters.export_onnx import Export


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("a page that runs the model in a browser")
    group.add_argument(
        "--html",
        metavar="PAGE.html",
        help="write a page with the model inside, and beside it ort/, the runtime that pages share",
    )
    group.add_argument(
        "--ort-web",
        metavar="FOLDER",
        help="the folder of npm's package onnxruntime-web, which has the runtime "
        "(node_modules/onnxruntime-web)",
    )


def check_page_options(args: argparse.Namespace) -> None:
    """An error where these options cannot be right, before anything is written."""
    from imae.converters.html_page import find_ort_web

    if args.html is None:
        if args.ort_web is not None:
            raise ExportError("--ort-web is for the page of --html; give both, or leave it out")
        return
    find_ort_web(args.ort_web)


def write_chosen_page(args: argparse.Namespace, result: Export) -> None:
    """Write the page, if it is asked for; print what was written, and what is missing."""
    from imae.converters.html_page import measured, write_page

    if args.html is None:
        return
    runtime = write_page(
        result.model.SerializeToString(), args.html, ort_web=args.ort_web, measured=measured(result)
    )
    if runtime is not None:
        print(f"wrote {args.html}, which runs the model in a browser with {runtime}")
    else:
        print(
            f"wrote {args.html}, which cannot run the model yet: ONNX Runtime is missing; run npm install "
            "onnxruntime-web and export again, or put the folder ort of another page beside it"
        )
