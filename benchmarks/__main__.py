"""`python -m benchmarks [NAME]`, in the top folder of the repository: run one benchmark, or all that time.

All together take less than a quarter of an hour on two idle cores. What answers another question than that of
speed, or needs a folder, runs by its name alone (BY_NAME).

Each prints Markdown: what is compared, the versions and the device, and the figures. All ways to do the same
thing are timed in turns in one run. BENCHMARKS.md holds the last figures.
"""

from __future__ import annotations

import argparse
import importlib
import time

NAMES = (
    "training",
    "scaling",
    "data",
    "inference",
    "startup",
    "gpu",
    "zoo",
    "runtimes",
    "losses",
    "nets",
    "pycaffe",
    "kernels",
    "bfloat16",
)
# For processors with AMX; trainings of an hour and more; whether runtimes agree; public nets in a folder.
BY_NAME = ("bfloat16", "losses", "runtimes", "zoo")


def main() -> None:
    """Run benchmarks one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="name")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    for name, module in modules.items():
        module.add_arguments(
            commands.add_parser(
                name, description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter
            )
        )
    arguments = parser.parse_args()
    for name, module in modules.items():
        if arguments.name == name or (arguments.name is None and name not in BY_NAME):
            print(f"\n## {name}: {str(module.__doc__).splitlines()[0]}\n", flush=True)
            begun = time.monotonic()
            module.main(arguments if arguments.name else commands.choices[name].parse_args([]))
            if arguments.name is None:
                print(f"\n({name}: {time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
