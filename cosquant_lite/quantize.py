"""Scalar quantizers: a tensor in, small integer codes and two floats out, and back.

This file is the definition and is written to be read. The arithmetic is float64 whatever the input, so that a code is
the formula's code and not float32's opinion of it. The two floats are rounded to float32 *before* the codes are
computed, so that encoder and decoder use the same numbers; with scale="mse" or "unbiased" what is transmitted is then
the same levels times a factor that depends on the codes.

Names used all over the project: x, codes, x_hat, bits, levels, norm, bound, theta.
"""

import math
import numbers
import operator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cosquant_lite import clipping

ROUNDINGS = ("nearest", "stochastic")
RANGES = ("symmetric", "minmax")
SCALES = ("norm", "mse", "unbiased")
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Quantized:
    """What travels for one tensor.

    codes: uint8, the shape of x, values 0 .. 2**bits - 1.
    floats: the transmitted side information, each exactly a float32.
        scheme "cosine": (norm, bound), the l2 norm (or what `scale` makes of it) and the smallest angle in radians.
        "uniform": (low, high).
    """

    codes: Tensor
    bits: int
    floats: tuple[float, float]
    scheme: str

    @property
    def norm(self) -> float:
        """The l2 norm of x, or what `scale` makes of it; AttributeError if the scheme transmits none."""
        if self.scheme != "cosine":
            raise AttributeError(f"{self.scheme} transmits (low, high) in .floats, no norm")
        return self.floats[0]

    @property
    def bound(self) -> float:
        """Cosine: the smallest angle in radians. Uniform: the largest value that has a level."""
        return self.floats[1]


class ScalarQuantizer:
    """What the quantizers share. Each one adds its three formulas: side_info (or floats), position and value."""

    scale = "norm"

    def quantize(self, x: Tensor, generator: torch.Generator | None = None, *, keep: Tensor | None = None) -> Quantized:
        """Codes of x and the transmitted floats.

        x: a floating-point tensor of any shape, memory layout and device. generator: needed by stochastic rounding,
        on x's device. keep: flat, boolean, on x's device; then only those entries get codes, in row-major order, and
        the floats still describe the whole of x.
        ValueError: NaN or infinity in x (how many, where first), a norm beyond float32, no generator.
        TypeError: x is no dense floating-point tensor.
        """
        check_tensor(x)
        check_generator(self.rounding, generator, x.device)
        x = x.detach().double().contiguous()
        floats, sent = self.floats(x), x if keep is None else x.flatten()[keep]
        codes = self.codes(sent, floats, generator)
        if self.scale in ("mse", "unbiased"):
            index, sent = codes.flatten().int().cpu(), sent.flatten().cpu()  # a GPU adds in another order each time
            sums = torch.bincount(index, sent, self.levels), torch.bincount(index, minlength=self.levels)
            floats = self.rescaled(floats, *sums, total(sent.square()).item())
        return Quantized(codes, self.bits, floats, self.scheme)

    def floats(self, x: Tensor) -> tuple[float, float]:
        """The transmitted floats of a float64 tensor, each exactly a float32."""
        clip = clipping.best(clipping.counts(x), self) if self.clip == "auto" else self.clip
        return self.side_info(*statistics(x, clip))

    def rescaled(
        self, floats: tuple[float, float], sums: Tensor, counts: Tensor, squared: float
    ) -> tuple[float, float]:
        """The floats with all levels c of this message times a factor that fits them to x.

        scale "mse": <x, c> / |c|^2, the factor of the smallest error. "unbiased": |x|^2 / <x, c>, so that what arrives
        is as long as x in the direction of x. Both depend on the codes only through, for each code, the sum of the x
        and the count. squared: |x|^2.
        """
        levels = self.value(torch.arange(self.levels, dtype=torch.float64, device="cpu"), floats)
        along, length = float(levels @ sums.cpu().double()), float(levels.square() @ counts.cpu().double())
        if along <= 0 or length <= 0:  # nothing but zeros
            return floats
        return self.times(floats, along / length if self.scale == "mse" else squared / along)

    def codes(self, x: Tensor, floats: tuple[float, float], generator: torch.Generator | None = None) -> Tensor:
        """uint8 codes of x, its shape, for transmitted floats that are already known."""
        u = self.position(x.double(), floats)
        if self.rounding == "nearest":
            codes = u.round()
        else:
            coins = torch.rand(u.shape, generator=generator, dtype=torch.float32, device=u.device)
            codes = u.floor() + (coins < u - u.floor())
        return codes.clamp(0, self.levels - 1).to(torch.uint8)  # the clamp guards against float rounding at the end

    def table(self, floats: tuple[float, float]) -> Tensor:
        """The float32 value that each of the 2**bits codes stands for."""
        return self.value(torch.arange(self.levels, dtype=torch.float64, device="cpu"), floats).float()

    def dequantize(self, quantized: Quantized) -> Tensor:
        """The float32 tensor that the codes stand for; the shape and device of the codes."""
        if not isinstance(quantized, Quantized):
            raise TypeError(f"expected what quantize(x) returns, a Quantized, got {type(quantized).__name__}")
        if (quantized.scheme, quantized.bits) != (self.scheme, self.bits):
            raise ValueError(
                f"these codes were made by {quantized.scheme!r} with {quantized.bits} bits "
                f"and cannot be decoded by {self.scheme!r} with {self.bits}"
            )
        return self.table(quantized.floats).to(quantized.codes.device)[quantized.codes.int()]

    def roundtrip(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`dequantize(quantize(x))`: what the receiver gets, float32."""
        return self.dequantize(self.quantize(x, generator))

    @property
    def levels(self) -> int:
        """How many values there are: 2**bits."""
        return 2**self.bits


@dataclass(frozen=True)
class Cosine(ScalarQuantizer):
    """Quantize the angle of each entry against the norm, uniformly (CosSGD, arXiv 2012.08241).

        theta = arccos(x / norm)                     in [0, pi]
        bound = arccos(largest / norm)               largest: the largest |x| that the clip leaves
        u     = (theta - bound) / (pi - 2 bound) * (levels - 1)
        codes = round(u)                             "nearest", or floor(u) + Bernoulli(u - floor(u)): "stochastic"
        x_hat = norm * cos(bound + codes * (pi - 2 bound) / (levels - 1))

    bits: 1 to 8; levels = 2**bits. There is no zero level, and code 0 is the largest positive value.
    clip: fraction in [0, 0.5) of the entries whose magnitude is cut. The floor(clip * n) largest |x| are set to the
        next largest one, so a tensor with clip * n < 1 is not clipped, and one with no more non-zero entries than that
        decodes to zeros. 0 turns it off; 0.01 is the authors' default. The bound is a float32 near pi/2 when what
        the clip leaves is tiny beside the norm: at 1e-7 of it values are a quarter off, below 1.6e-8 they decode to
        zeros. "auto": the clip of the smallest error, for each tensor (`clipping.best`).
    rounding: "nearest" (the authors' default), or "stochastic", which is unbiased in the angle, not in the value.
    scale: "norm" is the paper. "mse" and "unbiased" transmit another float in place of the norm, see
        `ScalarQuantizer.rescaled`; the receiver does not know the difference. "unbiased" is EDEN's scale (Vargaftik et
        al., ICML 2022); its mean over uniformly random rotations is x. Over those of `rotation.py` it nearly is in a
        long tensor that no few entries dominate; two entries among zeros keep a bias.
    An exact zero lies half-way between two levels; with nearest rounding all zeros go to the same one of the two.
    Transmitted: (norm, bound). Source of the formulas: the authors' published routine in ProgFed (ICML 2022).
    """

    bits: int = 2
    clip: float = 0.01
    rounding: str = "nearest"
    scale: str = "norm"
    scheme: ClassVar[str] = "cosine"

    def __post_init__(self):
        _check_options(self)

    def side_info(self, norm: float, largest: float, low: float, high: float) -> tuple[float, float]:
        """(norm, bound) from the `statistics` of a tensor."""
        norm = as_float32(norm, "norm")
        cosine = min(largest / norm, 1.0) if norm > 0 else 0.0  # a zero tensor: every angle is pi / 2
        return norm, as_float32(math.acos(cosine), "bound")

    def position(self, x: Tensor, floats: tuple[float, float]) -> Tensor:
        """u: where the entries of x lie on the axis of codes, float64 in [0, levels - 1]."""
        norm, bound = floats
        width = math.pi - 2 * bound
        if norm == 0 or width <= 0:  # nothing but zeros, or clipped to zeros: one code for all
            return torch.zeros_like(x)
        theta = torch.arccos((x / norm).clamp(-1, 1))
        return (theta.clamp(bound, math.pi - bound) - bound) / width * (self.levels - 1)

    def value(self, u: Tensor, floats: tuple[float, float]) -> Tensor:
        """The value at u, float64; the receiver evaluates it at the whole codes."""
        norm, bound = floats
        width = math.pi - 2 * bound
        if norm == 0 or width <= 0:
            return torch.zeros_like(u)
        return norm * torch.cos(bound + u * (width / (self.levels - 1)))

    def times(self, floats: tuple[float, float], factor: float) -> tuple[float, float]:
        """The floats of levels that are `factor` times as large."""
        return as_float32(floats[0] * factor, "norm"), floats[1]


@dataclass(frozen=True)
class Uniform(ScalarQuantizer):
    """Quantize the value on an even grid from low to high: the textbook quantizer and the usual "linear" baseline.

        u     = (x - low) / (high - low) * (levels - 1)
        codes = round(u), or floor(u) + Bernoulli(u - floor(u))
        x_hat = low + codes * (high - low) / (levels - 1)

    bits, clip, rounding, scale: as in `Cosine`; the clip cuts the same entries, those of largest magnitude.
        Without clip, stochastic rounding is unbiased.
    range: "symmetric" is [-m, m] with m the largest magnitude after the clip: what `Cosine` turns into where its
        curve vanishes. "minmax" is [min, max] after the clip; it has neither clip "auto" nor another scale.
    Transmitted: (low, high).
    """

    bits: int = 2
    clip: float = 0.01
    rounding: str = "nearest"
    range: str = "symmetric"
    scale: str = "norm"
    scheme: ClassVar[str] = "uniform"

    def __post_init__(self):
        _check_options(self)
        check_choice("range", self.range, RANGES)
        if self.range == "minmax" and (self.clip == "auto" or self.scale != "norm"):
            raise ValueError(
                "range='minmax' goes neither with clip='auto' nor with another scale: its levels have no centre"
            )

    def side_info(self, norm: float, largest: float, low: float, high: float) -> tuple[float, float]:
        """(low, high) from the `statistics` of a tensor."""
        if self.range == "symmetric":
            low, high = -largest, largest
        low, high = as_float32(max(low, -largest), "low"), as_float32(min(high, largest), "high")
        return low, max(low, high)

    def position(self, x: Tensor, floats: tuple[float, float]) -> Tensor:
        """u: where the entries of x lie on the axis of codes, float64 in [0, levels - 1]."""
        low, high = floats
        if high <= low:  # a constant: one code for all
            return torch.zeros_like(x)
        return (x.clamp(low, high) - low) / (high - low) * (self.levels - 1)

    def value(self, u: Tensor, floats: tuple[float, float]) -> Tensor:
        """The value at u, float64; the receiver evaluates it at the whole codes."""
        low, high = floats
        return low + u * ((high - low) / (self.levels - 1))

    def times(self, floats: tuple[float, float], factor: float) -> tuple[float, float]:
        """The floats of levels that are `factor` times as large."""
        return as_float32(floats[0] * factor, "low"), as_float32(floats[1] * factor, "high")


def statistics(x: Tensor, clip: float) -> tuple[float, float, float, float]:
    """What the side information is made of: the l2 norm, the largest |x| that the clip leaves, min and max.

    The floor(clip * n) entries of largest magnitude are cut, so the second one is an order statistic.
    """
    n = x.numel()
    if n == 0:
        return 0.0, 0.0, 0.0, 0.0
    largest = x.abs().flatten().kthvalue(n - math.floor(clip * n)).values
    return total(x.square()).sqrt().item(), largest.item(), x.min().item(), x.max().item()


def total(x: Tensor) -> Tensor:
    """The sum, in pieces that torch adds up on one thread: so it is the same whatever the number of threads."""
    return torch.stack([piece.sum() for piece in x.flatten().split(2**15)]).sum()


def check_tensor(x: Tensor) -> None:
    """TypeError or ValueError that names what makes x no input for a quantizer."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(x).__name__}; torch.as_tensor(x) makes one")
    if x.dtype not in FLOATS:
        raise TypeError(f"expected a floating-point tensor of 16 to 64 bits, got {x.dtype}; x.float() makes one")
    if x.layout != torch.strided or x.is_meta or x.is_nested:
        kind = "a nested one" if x.is_nested else f"layout {x.layout} on {x.device}"
        raise TypeError(f"expected a dense tensor with data, got {kind}; x.to_dense() makes one of a sparse one")
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{int(bad.sum())} of {x.numel()} entries are NaN or infinite, the first is {x[first].item()} at index {first}"
        )


def check_generator(rounding: str, generator: torch.Generator | None, device: torch.device) -> None:
    """ValueError if stochastic rounding lacks a generator, or has one on another device."""
    if rounding == "stochastic" and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"rounding='stochastic' needs generator=torch.Generator(...), so that a seed fixes the result; got {generator!r}"
        )
    if rounding == "stochastic" and generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device}, the tensor on {device}; they must be on the same device"
        )


def as_float32(value: float, name: str) -> float:
    """value rounded to what a transmitted float32 holds."""
    if abs(value) > FLOAT32_MAX:
        raise ValueError(f"{name} {value:.3g} is beyond the float32 that is transmitted (at most {FLOAT32_MAX:.3g})")
    return float(np.float32(value))


def _check_options(quantizer: Cosine | Uniform) -> None:
    """Errors for options out of range; numpy numbers become plain ones."""
    bits, clip = quantizer.bits, quantizer.clip
    if not is_whole(bits) or not 1 <= operator.index(bits) <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
    auto = isinstance(clip, str) and clip == "auto"
    if not auto and (isinstance(clip, bool) or not isinstance(clip, numbers.Real) or not 0 <= clip < 0.5):
        raise ValueError(f"clip must be a number in [0, 0.5), or 'auto', got {clip!r}")
    object.__setattr__(quantizer, "bits", operator.index(bits))
    object.__setattr__(quantizer, "clip", clip if auto else float(clip))
    check_choice("scale", quantizer.scale, SCALES)
    check_choice("rounding", quantizer.rounding, ROUNDINGS)


def is_whole(value: object) -> bool:
    """Whether this is one whole number, numpy's and torch's included; True and False are none."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
