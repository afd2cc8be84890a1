"""Which client holds which training images."""

import torch
from torch import Tensor


def iid(n: int, clients: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle n indices and deal them out evenly. ValueError if some client would get none."""
    if clients > n:
        raise ValueError(f"{clients} clients cannot share {n} training images: some would have none; at most {n}")
    return list(torch.randperm(n, generator=generator).tensor_split(clients))
