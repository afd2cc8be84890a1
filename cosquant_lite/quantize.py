"""Scalar quantizers: a tensor in, small integer codes and two floats out, and back.

This file is the definition and is written to be read. The arithmetic is float64 whatever the input, so that a code is the formula's code and not float32's opinion of it.
The two transmitted floats are rounded to float32 *before* the codes are computed, so that encoder and decoder use
the same numbers.

Names used all over the project: x, codes, x_hat, bits, levels, norm, bound, theta.
"""

import math
import numbers
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = ("nearest", "stochastic")
RANGES = ("symmetric", "minmax")
FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Quantized:
    """What travels for one tensor.

    codes: uint8, the shape of x, values 0 .. 2**bits - 1.
    floats: the transmitted side information, each exactly a float32.
        scheme "cosine": (norm, bound), the l2 norm and the smallest angle in radians. "uniform": (low, high).
    """

    codes: Tensor
    bits: int
    floats: tuple[float, float]
    scheme: str

    @property
    def norm(self) -> float:
        """The l2 norm of x; AttributeError if the scheme transmits none."""
        if self.scheme != "cosine":
            raise AttributeError(f"{self.scheme} transmits (low, high) in .floats, no norm")
        return self.floats[0]

    @property
    def bound(self) -> float:
        """Cosine: the smallest angle in radians. Uniform: the largest value that has a level."""
        return self.floats[1]


@dataclass(frozen=True)
class Cosine:
    """Quantize the angle of each entry against the norm, uniformly (CosSGD, arXiv 2012.08241).

        theta = arccos(x / norm)                     in [0, pi]
        u     = (theta - bound) / (pi - 2 bound) * (levels - 1)
        codes = round(u)                             "nearest", or floor(u) + Bernoulli(u - floor(u)): "stochastic"
        x_hat = norm * cos(bound + codes * (pi - 2 bound) / (levels - 1))

    bits: 1 to 8; levels = 2**bits. There is no zero level, and code 0 is the largest positive value.
    clip: fraction in [0, 0.5) of the entries whose magnitude is cut. The floor(clip * n) largest |x| are set to the
        next largest one, so a tensor with clip * n < 1 is not clipped, and one with fewer non-zero entries than that
        decodes to zeros. 0 turns it off; 0.01 is the authors' default.
    rounding: "nearest" (the authors' default), or "stochastic", which is unbiased in the angle, not in the value.
    An exact zero lies half-way between two levels; with nearest rounding all zeros go to the same one of the two.
    Source of the formulas: the authors' published routine in ProgFed (ICML 2022).
    """

    bits: int = 2
    clip: float = 0.01
    rounding: str = "nearest"

    def __post_init__(self):
        _check_options(self)

    def quantize(self, x: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Codes of x and the floats (norm, bound).

        x: a floating-point tensor of any shape, memory layout and device. generator: needed by stochastic rounding,
        on x's device. ValueError: NaN or infinity in x (how many, where first), a norm beyond float32, no generator.
        TypeError: x is no dense floating-point tensor.
        """
        x = _checked_float64(x)
        _check_generator(self.rounding, generator, x.device)
        norm = _float32(x.norm().item(), "norm")
        if norm == 0:  # an empty or zero tensor has no angles; norm 0 makes any code decode to 0
            return _one_code(x, self.bits, (0.0, _float32(math.pi / 2, "bound")), "cosine")
        theta = torch.arccos((x / norm).clamp(-1, 1))
        bound = _float32(math.pi / 2 - _clipped_max((theta - math.pi / 2).abs(), self.clip), "bound")
        width = math.pi - 2 * bound
        if width <= 0:  # clipped to nothing but zeros: every angle is pi/2
            return _one_code(x, self.bits, (norm, bound), "cosine")
        u = (theta.clamp(bound, math.pi - bound) - bound) / width * (2**self.bits - 1)
        return Quantized(_round(u, self.bits, self.rounding, generator), self.bits, (norm, bound), "cosine")

    def dequantize(self, quantized: Quantized) -> Tensor:
        """The float32 tensor that the codes stand for; the shape and device of the codes."""
        _check_scheme(quantized, "cosine")
        norm, bound = quantized.floats
        width = math.pi - 2 * bound
        if norm == 0 or width <= 0:
            return torch.zeros_like(quantized.codes, dtype=torch.float32)
        return (
            (norm * torch.cos(_levels(bound, width, quantized.bits)))
            .float()
            .to(quantized.codes.device)[quantized.codes.int()]
        )

    def roundtrip(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`dequantize(quantize(x))`: what the receiver gets, float32."""
        return self.dequantize(self.quantize(x, generator))


@dataclass(frozen=True)
class Uniform:
    """Quantize the value on an even grid from low to high: the textbook quantizer and the usual "linear" baseline.

        u     = (x - low) / (high - low) * (levels - 1)
        codes = round(u), or floor(u) + Bernoulli(u - floor(u))
        x_hat = low + codes * (high - low) / (levels - 1)

    bits, clip, rounding: as in `Cosine`; the clip cuts the same entries, those of largest magnitude. Without clip,
        stochastic rounding is unbiased.
    range: "symmetric" is [-m, m] with m the largest magnitude after the clip: what `Cosine` turns into where its
        curve vanishes. "minmax" is [min, max] after the clip.
    """

    bits: int = 2
    clip: float = 0.01
    rounding: str = "nearest"
    range: str = "symmetric"

    def __post_init__(self):
        _check_options(self)
        _check_choice("range", self.range, RANGES)

    def quantize(self, x: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Codes of x and the floats (low, high); arguments and errors as in `Cosine.quantize`."""
        x = _checked_float64(x)
        _check_generator(self.rounding, generator, x.device)
        if x.numel() == 0:
            return _one_code(x, self.bits, (0.0, 0.0), "uniform")
        largest = _clipped_max(x.abs(), self.clip)
        x = x.clamp(-largest, largest)
        low, high = (-largest, largest) if self.range == "symmetric" else (x.min().item(), x.max().item())
        low, high = _float32(low, "low"), _float32(high, "high")
        if high <= low:  # a constant: one level is enough
            return _one_code(x, self.bits, (low, low), "uniform")
        u = (x.clamp(low, high) - low) / (high - low) * (2**self.bits - 1)
        return Quantized(_round(u, self.bits, self.rounding, generator), self.bits, (low, high), "uniform")

    def dequantize(self, quantized: Quantized) -> Tensor:
        """The float32 tensor that the codes stand for; the shape and device of the codes."""
        _check_scheme(quantized, "uniform")
        low, high = quantized.floats
        return _levels(low, high - low, quantized.bits).float().to(quantized.codes.device)[quantized.codes.int()]

    def roundtrip(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`dequantize(quantize(x))`: what the receiver gets, float32."""
        return self.dequantize(self.quantize(x, generator))


def _levels(start: float, width: float, bits: int) -> Tensor:
    """The 2**bits evenly spaced float64 points from start to start + width."""
    return start + torch.arange(2**bits, dtype=torch.float64) * (width / (2**bits - 1))


def _one_code(x: Tensor, bits: int, floats: tuple[float, float], scheme: str) -> Quantized:
    """A tensor that one level describes: all codes 0."""
    return Quantized(torch.zeros_like(x, dtype=torch.uint8), bits, floats, scheme)


def _round(u: Tensor, bits: int, rounding: str, generator: torch.Generator | None) -> Tensor:
    """Whole codes, uint8, from real-valued u in [0, 2**bits - 1]."""
    if rounding == "nearest":
        codes = u.round()
    else:
        coins = torch.rand(u.shape, generator=generator, device=u.device)
        codes = u.floor() + (coins < u - u.floor())
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)  # the clamp guards against float rounding at the last level


def _clipped_max(magnitude: Tensor, clip: float) -> float:
    """The (floor(clip * n) + 1)-th largest magnitude: the largest one once the clip has cut its share."""
    n = magnitude.numel()
    return magnitude.flatten().kthvalue(n - math.floor(clip * n)).values.item()


def _checked_float64(x: Tensor) -> Tensor:
    """x as contiguous float64, without gradient; errors name what is wrong with it."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(x).__name__}; torch.as_tensor(x) makes one")
    if not x.is_floating_point():
        raise TypeError(f"expected a floating-point tensor, got {x.dtype}; x.float() makes one")
    if x.layout != torch.strided or x.is_meta:
        raise TypeError(
            f"expected a dense tensor with data, got layout {x.layout} on {x.device}; x.to_dense() makes one"
        )
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{int(bad.sum())} of {x.numel()} entries are NaN or infinite, the first is {x[first].item()} at index {first}"
        )
    return x.detach().double().contiguous()


def _float32(value: float, name: str) -> float:
    """value rounded to what a transmitted float32 holds."""
    if abs(value) > FLOAT32_MAX:
        raise ValueError(f"{name} {value:.3g} is beyond the float32 that is transmitted (at most {FLOAT32_MAX:.3g})")
    return torch.tensor(value, dtype=torch.float32).item()


def _check_options(quantizer: "Cosine | Uniform") -> None:
    """Errors for options out of range; numpy numbers become plain ones."""
    bits, clip = quantizer.bits, quantizer.clip
    if isinstance(bits, bool) or not hasattr(bits, "__index__") or not 1 <= operator.index(bits) <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
    if isinstance(clip, bool) or not isinstance(clip, numbers.Real) or not 0 <= clip < 0.5:
        raise ValueError(f"clip must be a number in [0, 0.5), got {clip!r}")
    object.__setattr__(quantizer, "bits", operator.index(bits))
    object.__setattr__(quantizer, "clip", float(clip))
    _check_choice("rounding", quantizer.rounding, ROUNDINGS)


def _check_generator(rounding: str, generator: torch.Generator | None, device: torch.device) -> None:
    if rounding == "stochastic" and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"rounding='stochastic' needs generator=torch.Generator(...), so that a seed fixes the result; got {generator!r}"
        )
    if rounding == "stochastic" and generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device}, the tensor on {device}; they must be on the same device"
        )


def _check_scheme(quantized: Quantized, scheme: str) -> None:
    if quantized.scheme != scheme:
        raise ValueError(f"these codes were made by {quantized.scheme!r} and cannot be decoded by {scheme!r}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
