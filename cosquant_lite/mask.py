"""Random sparsification: which entries travel follows from a seed, so that no indices are sent.

Entry j (row-major) of tensor number t (from 0, in the order of the message) is kept if the j-th 64-bit output of
Philox 4x64 with 10 rounds (Salmon et al. 2011), key (seed, t), is below floor(p 2**64). The counter is 1, 2, 3 ...
in its lowest word; each gives four outputs.
The receiver divides what it gets by p and puts 0 elsewhere: on average over masks that is the tensor.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PIECE = 2**14  # outputs drawn at a time: they stay in the cache


@dataclass(frozen=True)
class Mask:
    """p in (0, 1): the share of entries that travel. seed: below 2**64."""

    p: float
    seed: int

    def kept(self, n: int, tensor: int) -> Tensor:
        """Flat boolean tensor: which of the n entries of tensor number `tensor` travel."""
        philox = np.random.Philox(key=np.array([self.seed, tensor], np.uint64))
        limit = np.uint64(math.floor(self.p * 2.0**64))
        keep = np.empty(n, bool)
        for start in range(0, n, PIECE):
            stop = min(start + PIECE, n)
            np.less(philox.random_raw(stop - start), limit, out=keep[start:stop])
        return torch.from_numpy(keep)


def take(x: Tensor, keep: Tensor) -> Tensor:
    """The entries of x that travel, flat, in row-major order. keep: flat; both on one device."""
    if x.device.type != "cpu" or not keep.numpy().any():
        return x.flatten()[keep]
    return torch.from_numpy(_words(x.flatten())[keep.numpy()]).view(x.dtype)  # numpy needs no list of indices


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """What `take` was given, with 0 for the entries that did not travel; flat."""
    out = torch.zeros(len(keep), dtype=values.dtype, device=values.device)
    if out.device.type != "cpu":
        out[keep] = values
    else:
        _words(out)[keep.numpy()] = _words(values)
    return out


def _words(x: Tensor) -> np.ndarray:
    """The entries as whole numbers, as numpy has no bfloat16; shares the memory."""
    return x.view(getattr(torch, f"int{8 * x.itemsize}")).numpy()
