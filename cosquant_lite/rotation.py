"""Random rotations, which spread large entries over many (Suresh et al., ICML 2017).

"hadamard": x becomes H D x / sqrt(n): D flips signs, H is the Hadamard matrix of +1 and -1 in natural order, n a power
of two. The paper pads a vector with zeros to such a length. Here nothing is padded: the length n of a *window* is
2**16, or the largest power of two that the tensor has; windows follow each other from the first entry on, and if
entries are left, one more window covers the last n and overlaps. Each window in turn is multiplied by H D / sqrt(n).

The D of all windows, one after the other, are the entries that `Mask(0.5, seed)` keeps: there the sign stays, elsewhere
it flips. H is log2(n) rounds: for h = 1, 2, 4 ... n / 2 the entries i and i + h with i & h = 0 become their sum and
their difference. All of it is in float64. The receiver takes the windows in reverse order and rounds each result to
float32.

"channels": what the paper's group does before linear quantization in its published code (ProgFed, quantization.py). The
tensor is a matrix with a row for each index of its first dimension, the output channels; windows are of rows, and each
is multiplied by H / sqrt(n) alone. Signs flip after it, one for each entry: `Mask(0.5, seed)` keeps those that stay. So
large entries are spread over one column, 10 to 64 entries of the paper's network, and not at random. (That code has no
windows: it cuts H to the rows that there are, in a network where they are powers of two.)
"""

import math

import torch
from torch import Tensor

from cosquant_lite.mask import Mask

CHOICES = ("none", "hadamard", "channels")
LARGEST = 2**16  # entries of a window: what is large is spread over enough of them, and the work stays in the cache


def rotate(x: Tensor, kind: str, seed: int, tensor: int) -> Tensor:
    """x rotated, float64, of its shape. kind: of CHOICES but "none"; seed, tensor: as in `mask.Mask.kept`."""
    turned = x.double().flatten().clone()
    if kind == "channels":
        for block in _blocks(turned, x.shape):
            block.copy_(_hadamard(block))
        return _flip(turned, seed, tensor).view(x.shape)
    for window, stays in _signs(len(turned), seed, tensor):
        part, stays = turned[window], stays.to(x.device)
        turned[window] = _hadamard(torch.where(stays, part, -part))
    return turned.view(x.shape)


def unrotate(values: Tensor, shape: tuple[int, ...], kind: str, seed: int, tensor: int) -> Tensor:
    """The inverse of `rotate` on flat float32 values of a tensor of this shape; in place, so that it takes little memory."""
    # H / sqrt(n) is its own inverse
    if kind == "channels":
        for block in reversed(_blocks(_flip(values, seed, tensor), shape)):
            block.copy_(_hadamard(block.double()))
        return values
    for window, stays in reversed(_signs(len(values), seed, tensor)):
        part, stays = _hadamard(values[window].double()), stays.to(values.device)
        values[window] = torch.where(stays, part, -part).float()
    return values


def windows(n: int) -> list[slice]:
    """The windows of a tensor with n entries."""
    size = min(LARGEST, 1 << max(n.bit_length() - 1, 0))
    starts = [*range(0, n - size + 1, size), *([n - size] if n % size else [])]
    return [slice(start, start + size) for start in starts]


def _signs(n: int, seed: int, tensor: int) -> list[tuple[slice, Tensor]]:
    """Each window, and where in it the signs stay."""
    found = windows(n)
    size = found[0].stop if found else 1
    return list(zip(found, Mask(0.5, seed).kept(size * len(found), tensor).split(size)))


def _flip(x: Tensor, seed: int, tensor: int) -> Tensor:
    """Flip signs of a flat tensor, in place."""
    for part, stays in zip(x.split(LARGEST), Mask(0.5, seed).kept(len(x), tensor).to(x.device).split(LARGEST)):
        part.copy_(torch.where(stays, part, -part))
    return x


def _blocks(values: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Views of a flat tensor as rows and columns: each window of rows, some columns at a time, which bounds the memory."""
    if not len(values):
        return []
    matrix = values.view(shape[0] if shape else 1, -1)
    found = windows(len(matrix))
    return [part for rows in found for part in matrix[rows].split(LARGEST // found[0].stop, 1)]


def _hadamard(x: Tensor) -> Tensor:
    """Along the first dimension, whose length is a power of two."""
    n, h = len(x), 1
    while h < n:
        first, second = x.view(-1, 2, h, *x.shape[1:]).unbind(1)
        x = torch.stack([first + second, first - second], 1).view(x.shape)
        h *= 2
    return x / math.sqrt(n)
