"""How much memory a piece of Python takes at most, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

# Not getrusage: what it says of a child is never less than what the process that started it had in use.
ASK = "\nprint(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')])"


def peak_memory(script: str) -> int:
    """Bytes at the peak, the interpreter and all that is imported included."""
    status = Path("/proc/self/status")
    if not status.exists() or "VmHWM:" not in status.read_text():
        pytest.skip("this system does not tell the peak of a process (/proc/self/status, Linux)")
    done = subprocess.run([sys.executable, "-c", script + ASK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return 1024 * int(done.stdout.splitlines()[-1])
