"""Drawn inputs for the error analysis, float32, the same for the same seed."""

import torch
from torch import Tensor


def gaussian(n: int, seed: int) -> Tensor:
    """n standard normal entries: what the entries of a large layer's update look like in textbooks."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def student_t3(n: int, seed: int) -> Tensor:
    """n entries of Student's t with 3 degrees of freedom: heavy tails with a finite variance."""
    z = torch.randn(4, n, generator=torch.Generator().manual_seed(seed))
    return z[0] / (z[1:].square().sum(0) / 3).sqrt()


def spike(n: int, seed: int, size: float = 10.0) -> Tensor:
    """A Gaussian of norm about 1 with one entry of `size` in front: the case where the cosine's curve is felt."""
    x = gaussian(n, seed) / n**0.5
    x[0] = size
    return x
