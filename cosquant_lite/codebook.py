"""Quantizers whose levels are any ascending numbers, all of which travel: QSGD, NUQSGD, TernGrad, Lloyd-Max, EDEN.

    link                     levels                                            rounding
    qsgd:B                   0, +-1/s ... +-1 times the l2 norm                stochastic (Alistarh et al. 2017)
    qsgd:B,norm=max          the same times the largest magnitude              stochastic
    terngrad                 0, +-1 times the largest magnitude                stochastic (Wen et al. 2017)
    nuqsgd:B                 0, +-2^-(s-1) ... +-1/2, +-1 times the l2 norm    stochastic (Ramezani-Kebrya et al. 2021)
    lloyd:B                  those of the smallest squared error for x         nearest (Lloyd 1982, Max 1960)
    eden:B,rotate=hadamard   those of the smallest error for a Gaussian, as    nearest (Vargaftik et al. 2022; with one bit
                             long as the scale says                            it is DRIVE, Vargaftik et al. 2021)

s = 2**(B-1) - 1 is the number of levels on each side of zero; of the 2**B codes one is left over. The papers send fewer
floats, since one norm tells all levels: here they cost 4 * 2**B bytes a tensor, and the first five need no code of their
own to be decoded. Stochastic rounding between two levels is unbiased in the value.
Each tensor has one norm: QSGD's buckets of some hundred or thousand entries are not here, nor is the clipping at 2.5
standard deviations that TernGrad's authors add.

Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD, NeurIPS 2017. Wen et al.: TernGrad, NeurIPS 2017. Ramezani-Kebrya et al.:
NUQSGD, JMLR 2021. Vargaftik et al.: DRIVE, NeurIPS 2021; EDEN, ICML 2022.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from cosquant_lite.quantize import ScalarQuantizer, as_float32, check_choice, is_whole, total


class Codebook(ScalarQuantizer):
    """What these quantizers share, and all that a decoder needs. Each one adds levels_for."""

    scheme = "table"
    rounding = "stochastic"
    scale = "norm"

    def __init__(self, bits: int):
        self.bits = bits

    def levels_for(self, x: Tensor) -> Tensor:
        """The ascending levels for a float64 tensor, 2**bits of them at most."""
        raise NotImplementedError

    def floats(self, x: Tensor) -> tuple[float, ...]:
        """The levels, each a float32; those that are left over repeat the last one."""
        levels = [as_float32(level, "a level") for level in self.levels_for(x).tolist()]
        return tuple(levels + [levels[-1]] * (self.levels - len(levels)))

    def position(self, x: Tensor, floats: tuple[float, ...]) -> Tensor:
        """u: the index of the level below, plus the share of the way to the one above."""
        table = torch.tensor(floats, dtype=torch.float64, device=x.device)
        above = torch.searchsorted(table, x.contiguous()).clamp(1, self.levels - 1)
        low, high = table[above - 1], table[above]
        part = torch.where(high > low, (x - low) / (high - low), 0.0)
        return above - 1 + part.clamp(0, 1)

    def value(self, u: Tensor, floats: tuple[float, ...]) -> Tensor:
        """The value at u, float64; between two levels on the straight line."""
        table = torch.tensor(floats, dtype=torch.float64, device=u.device)
        low, high = table[u.floor().long()], table[u.ceil().long()]
        return low + (u - u.floor()) * (high - low)

    def times(self, floats: tuple[float, ...], factor: float) -> tuple[float, ...]:
        """Levels that are `factor` times as large."""
        return tuple(as_float32(level * factor, "a level") for level in floats)


def _check_bits(bits: int, least: int) -> None:
    if not is_whole(bits) or not least <= bits <= 8:
        raise ValueError(f"bits must be a whole number from {least} to 8, got {bits!r}")


def _both_sides(positive: Tensor) -> Tensor:
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])


@dataclass(frozen=True)
class QSGD(Codebook):
    """Even levels with a zero, as far as a norm of x reaches. norm: "l2" or "max"."""

    bits: int = 2
    norm: str = "l2"

    def __post_init__(self):
        _check_bits(self.bits, 2)
        check_choice("norm", self.norm, ("l2", "max"))

    def levels_for(self, x: Tensor) -> Tensor:
        """0, +-1/s ... +-1 times the norm."""
        return _both_sides(torch.arange(1, 2 ** (self.bits - 1), dtype=torch.float64, device="cpu")) * (
            _norm(x, self.norm) / (2 ** (self.bits - 1) - 1)
        )


@dataclass(frozen=True)
class TernGrad(QSGD):
    """Three levels: 0 and +- the largest magnitude."""

    bits: ClassVar[int] = 2
    norm: ClassVar[str] = "max"


@dataclass(frozen=True)
class NUQSGD(Codebook):
    """Levels at powers of two, finer towards zero."""

    bits: int = 2

    def __post_init__(self):
        _check_bits(self.bits, 2)

    def levels_for(self, x: Tensor) -> Tensor:
        """0, +-2^-(s-1) ... +-1/2, +-1 times the l2 norm."""
        s = 2 ** (self.bits - 1) - 1
        return _both_sides(2.0 ** torch.arange(1 - s, 1, dtype=torch.float64, device="cpu")) * _norm(x, "l2")


@dataclass(frozen=True)
class LloydMax(Codebook):
    """The levels of the smallest squared error for this very tensor, as far as Lloyd's iteration finds them."""

    bits: int = 2
    rounding: ClassVar[str] = "nearest"

    def __post_init__(self):
        _check_bits(self.bits, 1)

    def levels_for(self, x: Tensor) -> Tensor:
        """Each level moves to the mean of the entries nearest to it, 200 times or until none moves.

        They begin where many fine levels would be best, as dense as the cube root of the density of the entries (Panter
        and Dite 1951); the gap between two neighbours is about 1 / density. Evenly spaced quantiles leave too few levels
        in the tails, and from five bits on the iteration does not repair that. A level without entries splits what has
        the largest error: without that, most of them stay at an outlier.
        """
        x = x.cpu()  # a GPU sums in another order each time
        ordered = x.flatten().sort().values
        if not len(ordered):
            return torch.zeros(1, dtype=torch.float64, device="cpu")
        sums, squares = (torch.cat([ordered.new_zeros(1), power.cumsum(0)]) for power in (ordered, ordered.square()))
        place = torch.cat([ordered.new_zeros(1), ordered.diff().pow(2 / 3).cumsum(0)])
        middles = (torch.arange(self.levels, dtype=x.dtype, device=x.device) + 0.5) / self.levels
        levels = ordered[torch.searchsorted(place, middles * place[-1])]
        for _ in range(200):
            cuts = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
            cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(ordered))])
            count = cuts.diff()
            means, empty = sums[cuts].diff() / count.clamp(min=1), count == 0
            worst = (squares[cuts].diff() - count * means.square()).topk(int(empty.sum())).indices
            means[empty] = ordered[cuts[worst + 1] - 1]  # the largest entry there
            means = means.sort().values
            if torch.equal(means, levels):
                break
            levels = means
        return levels


@dataclass(frozen=True)
class Eden(Codebook):
    """Levels for a Gaussian, scaled to x. Meant for rotated tensors, whose entries are nearly that.

    scale: "unbiased", |x|^2 / <x, c>, or "mse", <x, c> / |c|^2, with c what the codes say; the names are the authors'
    biased and unbiased variants. Unbiased over uniformly random rotations, and nearly over those of `rotation.py`: see
    `Cosine`.
    """

    bits: int = 1
    scale: str = "unbiased"
    rounding: ClassVar[str] = "nearest"

    def __post_init__(self):
        _check_bits(self.bits, 1)
        check_choice("scale", self.scale, ("unbiased", "mse"))

    def levels_for(self, x: Tensor) -> Tensor:
        """The levels of the smallest error for entries of mean 0 and the spread that x has."""
        spread = _norm(x, "l2") / math.sqrt(max(x.numel(), 1))
        return torch.tensor(gaussian_levels(self.bits), dtype=torch.float64, device="cpu") * spread


@cache
def gaussian_levels(bits: int) -> tuple[float, ...]:
    """Lloyd's and Max's levels for the standard Gaussian: each is the mean of what is nearest to it.

    They begin as dense as the cube root of the Gaussian's density, which is a Gaussian of variance 3: from its own
    quantiles 256 levels are far from the best ones after these 5,000 steps, too.
    """
    quantiles = (torch.arange(2**bits, dtype=torch.float64, device="cpu") + 0.5) / 2**bits
    levels = math.sqrt(3) * torch.special.ndtri(quantiles)
    end = levels.new_tensor([torch.inf])
    for _ in range(5000):
        cuts = torch.cat([-end, (levels[1:] + levels[:-1]) / 2, end])
        density, below = torch.exp(-cuts.square() / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(cuts)
        levels = -density.diff() / below.diff()
    return tuple(levels.tolist())


def _norm(x: Tensor, kind: str) -> float:
    if not x.numel():
        return 0.0
    return total(x.square()).sqrt().item() if kind == "l2" else x.abs().max().item()
