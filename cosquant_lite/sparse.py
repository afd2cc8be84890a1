"""top=K: of each tensor only the share K of largest magnitude travels, beside a truth value for each entry that says which.

The receiver has zeros elsewhere (Stich, Cordonnier, Jaggi: Sparsified SGD with memory, NeurIPS 2018; it needs error
feedback). With a lossless stage the truth values cost their entropy, 0.081 bits an entry at K = 1 %.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

POSITIONS = "/positions"  # behind a tensor's name: where its entries are


def keep_largest(state: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """For each floating-point tensor its largest entries, flat, and where they are; other tensors unchanged.

    ceil(share * n) entries travel; of equal magnitudes the first ones in row-major order.
    """
    sparse = {}
    for name, x in state.items():
        if not x.is_floating_point() or not x.numel():
            sparse[name] = x
            continue
        flat = x.flatten()
        largest = flat.abs().sort(descending=True, stable=True).indices[: math.ceil(share * len(flat))]
        kept = torch.zeros(len(flat), dtype=torch.bool, device=x.device).index_fill_(0, largest, True)
        sparse[name], sparse[name + POSITIONS] = flat[kept], kept.view(x.shape)
    return sparse


def spread_out(sparse: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `keep_largest` was given, with zeros for what did not travel. ValueError if parts do not fit."""
    state = {}
    for name, x in sparse.items():
        kept = sparse.get(name + POSITIONS)
        if kept is not None:
            if kept.dtype != torch.bool or int(kept.sum()) != x.numel():
                raise ValueError(f"tensor {name!r}: {x.numel()} entries for {int(kept.sum())} positions")
            full = torch.zeros(kept.shape, dtype=x.dtype)
            full[kept] = x.flatten()
            state[name] = full
        elif not name.endswith(POSITIONS):
            state[name] = x
    return state
