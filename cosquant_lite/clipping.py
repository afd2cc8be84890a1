"""clip="auto": the clip that makes the squared error smallest, from one histogram of the magnitudes.

A bin is what shares the upper 15 bits of a float32 without its sign: 128 bins an octave, so that the middle of a bin
stands for its entries to 0.4 %. For each of CANDIDATES the error that the quantizer would make is summed over the bins;
the tensor itself is looked at once, to count.
"""

import math

import torch
from torch import Tensor

CANDIDATES = (0.0, *(0.5 * 2 ** (-i / 2) for i in range(36, 0, -1)), 0.43, 0.49)  # in steps of root two up to 35 %
BINS = 2**15


def counts(x: Tensor) -> Tensor:
    """How many entries of x lie in each bin, int64."""
    bits = x.float().flatten().contiguous().view(torch.int32)
    return torch.bincount((bits & 0x7FFFFFFF) >> 16, minlength=BINS)


def best(found: Tensor, quantizer) -> float:
    """The one of CANDIDATES with the smallest error for entries that are counted so. quantizer: one whose levels are
    symmetric about zero."""
    filled = found.cpu().nonzero().flatten()
    n = found.cpu()[filled].double()
    edges = (torch.stack([filled, filled + 1]) << 16).to(torch.int32).view(torch.float32).double()
    middle = edges.mean(0)
    if not len(filled) or not middle.isfinite().all():  # nothing to clip; NaN and infinity are refused elsewhere
        return 0.0
    above = n.flip(0).cumsum(0).flip(0)  # entries in this bin and the larger ones
    cut = {math.floor(clip * n.sum()): clip for clip in reversed(CANDIDATES)}  # of those that cut as many, the smallest
    errors = {clip: error(n, middle, float(middle[above > k][-1]), quantizer) for k, clip in cut.items()}
    return min(sorted(errors), key=errors.get)


def error(n: Tensor, x: Tensor, largest: float, quantizer) -> float:
    """Expected squared error, summed, of n[i] entries with magnitude x[i] if the clip leaves `largest`."""
    squared = float(n @ x.square())
    floats = quantizer.side_info(math.sqrt(squared), largest, -largest, largest)
    u = quantizer.position(x, floats)
    low, high = (quantizer.value(code, floats) for code in (u.floor(), u.ceil()))
    up = (
        u - u.floor() if quantizer.rounding == "stochastic" else (u.round() - u.floor())
    )  # probability of the upper code
    along = float(n @ (x * (low + up * (high - low))))
    length = float(n @ (low.square() + up * (high.square() - low.square())))
    gain = {"norm": 1.0, "mse": along / length if length else 1.0, "unbiased": squared / along if along else 1.0}
    return squared - 2 * gain[quantizer.scale] * along + gain[quantizer.scale] ** 2 * length
