"""Test settings: one thread each (the suite runs in parallel), and the tests' own modules importable.

IMAE_TEST_THREADS asks for more threads, as libraries then add in another order. What is slow is listed in
support/slow_tests.py.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before torch reads it: threads that wait for others leave the core to other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Not the user's own folder, nor times that were measured there. Processes that the tests start have it, too.
if "IMAE_CACHE" not in os.environ:
    os.environ["IMAE_CACHE"] = tempfile.mkdtemp(prefix="imae-tests-")
    atexit.register(shutil.rmtree, os.environ["IMAE_CACHE"], ignore_errors=True)
# Nor what torch.compile made for another Python.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(os.environ["IMAE_CACHE"], "torch-compile"))

import pytest
import torch

sys.path.insert(0, str(Path(__file__).with_name("support")))
from slow_tests import is_slow

collect_ignore = ["plugin_xyz"]  # a package with tests of its own, which run where it is installed

torch.set_num_threads(int(os.environ.get("IMAE_TEST_THREADS", "1")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: paths in prototxts are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item.nodeid if item.nodeid.startswith("tests/") else f"tests/{item.nodeid}"):
            item.add_marker("slow")
