"""How much memory `wire.decode` takes at most, for many kinds of frames. Run by test_wire.py, in a process of its own.

glibc keeps some of what was freed, and how much depends on all that a process did before. With MALLOC_MMAP_THRESHOLD_ in its
environment from the start this one gives every larger array back at once, so that what is counted was alive at once.
"""

import itertools
import json
import sys

import torch

from cosquant_lite import wire
from cosquant_lite.bench import _peak_memory
from cosquant_lite.quantize import Cosine

NBYTES = 2**24  # of the tensor in a frame
DTYPES = {"float16": torch.float16, "float32": torch.float32}
QUANTIZERS = {"raw": None, "cosine 1": Cosine(1), "cosine 7": Cosine(7), "cosine 8": Cosine(8)}
EXTRAS = {"": {}, "mask": {"mask": 0.9}, "hadamard": {"rotate": "hadamard"}, "channels": {"rotate": "channels"}}
CASES = [
    case
    for case in itertools.product(DTYPES, QUANTIZERS, ("none", "deflate", "ans"), EXTRAS)
    if case[1] != "raw" or case[3] in ("", "mask")  # only quantized tensors are rotated
]


def measured(dtype: str, quantizer: str, entropy: str, extra: str) -> int | None:
    """Bytes by which the process grows at most; None where the system does not tell."""

    def frame(nbytes: int) -> bytes:
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(nbytes // DTYPES[dtype].itemsize, generator=draws).to(DTYPES[dtype])
        return wire.encode({"x": x}, QUANTIZERS[quantizer], entropy=entropy, generator=draws, **EXTRAS[extra])

    small, large = frame(2**12), frame(NBYTES)
    wire.decode(small)  # what the first call of its kind loads is not the decoder's
    return _peak_memory(lambda: wire.decode(large))


if __name__ == "__main__":
    json.dump([measured(*case) for case in CASES], sys.stdout)
