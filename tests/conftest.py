"""Test settings: one thread each (the suite runs in parallel), and the tests' own modules importable."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
