"""Train a solver, as `imae train` does.

python train/solve.py SOLVER [--snapshot S | --weights W[,W]] [--gpu ID]
"""

import sys
from pathlib import Path

# Python has put this folder in front of the path; nothing in it may be found under a bare name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from imae.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
