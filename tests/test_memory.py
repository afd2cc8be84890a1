"""The measure itself: a child's peak is its own, however large the process that asks."""

import numpy as np
from memory import peak_memory


def test_the_memory_of_the_process_that_asks_is_not_counted():
    here = np.ones(2**26)  # 512 MiB in this process
    assert 2**20 < peak_memory("pass") < 2**27 < here.nbytes


def test_memory_freed_before_the_end_is_counted():
    assert peak_memory("x = bytearray(2**28); del x") > 2**28
