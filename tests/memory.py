"""How much memory a piece of Python takes at most, in a process of its own."""

import subprocess
import sys

import pytest

ASK = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def peak_memory(script: str) -> int:
    """Bytes at the peak, the interpreter and all that is imported included."""
    if sys.platform != "linux":
        pytest.skip("other systems count this in other units")
    done = subprocess.run([sys.executable, "-c", script + ASK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return 1024 * int(done.stdout.splitlines()[-1])
