"""Settings for all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests run in one process per core
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so do the processes that they start: threads that wait take cores
LONG = ("test_notebooks.py", "test_flower_deployment.py", "test_course.py")  # minutes each, the longest first


def pytest_collection_modifyitems(items):
    """Long files first: one that began last would run alone on one core while the other is idle."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(Path(item.fspath).name, len(LONG)))


@pytest.fixture
def one_thread():
    """As the engine's workers have it: sums in another order would differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
