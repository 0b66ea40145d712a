"""Train a solver, as `imae train` does.

python train/solve.py SOLVER [--snapshot S | --weights W[,W]] [--gpu ID]
"""

import sys
from pathlib import Path

# Python puts this folder first in sys.path; its files must not be importable as top-level modules.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from imae.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
