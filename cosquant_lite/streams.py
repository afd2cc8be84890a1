"""Random numbers that belong to a purpose: what one of them draws says nothing about what another one draws."""

import numpy as np
import torch


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """An independent random stream for each purpose, round and client, whatever the order they are used in."""
    key = [seed, int.from_bytes(purpose.encode()), *numbers]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
