"""A random Hadamard rotation, after which no entry is large beside the others (Suresh et al., ICML 2017).

A flat tensor is cut into blocks of a power of two, without padding: as many of 2**16 entries as there are, then the
largest that fit, so 864 = 512 + 256 + 64 + 32. Each block x becomes H D x / sqrt(n): D flips signs, H is the Hadamard
matrix of +1 and -1 in natural order, n the block's length.

D leaves the sign of the entries that `Mask(0.5, seed)` keeps, and flips the others. H is log2(n) rounds: for h = 1, 2,
4 ... n / 2 the entries i and i + h with i & h = 0 become their sum and their difference. All of it is in float64.
"""

import math

import torch
from torch import Tensor

from cosquant_lite.mask import Mask

CHOICES = ("none", "hadamard")
LARGEST = 2**16  # entries of a block: what is large is spread over enough of them, and the work stays in the cache


def rotate(x: Tensor, seed: int, tensor: int) -> Tensor:
    """x rotated, float64, of its shape. seed, tensor: as in `mask.Mask.kept`."""
    flat, keep = x.double().flatten(), Mask(0.5, seed).kept(x.numel(), tensor).to(x.device)
    turned = [_hadamard(block) for block in torch.where(keep, flat, -flat).split(blocks(x.numel()))]
    return torch.cat(turned or [flat]).view(x.shape)


def unrotate(values: Tensor, seed: int, tensor: int) -> Tensor:
    """The inverse of `rotate` on flat float32 values, rounded to float32; in place, so that it takes little memory."""
    keep, sizes = Mask(0.5, seed).kept(len(values), tensor).to(values.device), blocks(len(values))
    for block, kept in zip(values.split(sizes), keep.split(sizes)):
        x = _hadamard(block.double())
        block.copy_(torch.where(kept, x, -x))
    return values


def blocks(n: int) -> list[int]:
    """Lengths of the blocks of a tensor with n entries."""
    rest = n % LARGEST
    return [LARGEST] * (n // LARGEST) + [1 << i for i in reversed(range(rest.bit_length())) if rest >> i & 1]


def _hadamard(x: Tensor) -> Tensor:
    n, h = len(x), 1
    while h < n:
        first, second = x.view(-1, 2, h).unbind(1)
        x = torch.stack([first + second, first - second], 1).flatten()
        h *= 2
    return x / math.sqrt(n)
