"""top=K: of each tensor only the share K of largest magnitude travels, beside a truth value for each entry that says which.

The receiver has zeros elsewhere (Stich, Cordonnier, Jaggi: Sparsified SGD with memory, NeurIPS 2018; it needs error
feedback). With a lossless stage the truth values cost their entropy, 0.081 bits an entry at K = 1 %.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

POSITIONS = "/positions"  # behind a tensor's name: where its entries are; only in frames that say so (wire.py)


def keep_largest(state: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """For each floating-point tensor its largest entries, flat, and where they are; other tensors unchanged.

    ceil(share * n) entries travel; of equal magnitudes the first ones in row-major order. ValueError if the name of the
    positions is another tensor's.
    """
    sparse = {}
    for name, x in state.items():
        if not _has_positions(x.dtype, x.numel()):
            sparse[name] = x
            continue
        if name + POSITIONS in state:
            raise ValueError(f"the positions of tensor {name!r} would have the name of tensor {name + POSITIONS!r}")
        flat = x.flatten()
        largest = flat.abs().sort(descending=True, stable=True).indices[: math.ceil(share * len(flat))]
        kept = torch.zeros(len(flat), dtype=torch.bool, device=x.device).index_fill_(0, largest, True)
        sparse[name], sparse[name + POSITIONS] = flat[kept], kept.view(x.shape)
    return sparse


def spread_out(sparse: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `keep_largest` was given, with zeros for what did not travel. ValueError if parts do not fit."""
    state, parts = {}, iter(sparse.items())
    for name, x in parts:
        if not _has_positions(x.dtype, x.numel()):
            state[name] = x
            continue
        where, kept = next(parts, (None, None))
        if where != name + POSITIONS or kept.dtype != torch.bool:
            raise ValueError(f"tensor {name[:80]!r} is not followed by the positions of its entries")
        if x.ndim != 1 or int(kept.sum()) != len(x):
            raise ValueError(f"tensor {name[:80]!r}: shape {tuple(x.shape)} for {int(kept.sum())} positions")
        state[name] = torch.zeros(kept.shape, dtype=x.dtype, device=x.device)
        state[name][kept] = x
    return state


def _has_positions(dtype: torch.dtype, n: int) -> bool:
    return dtype.is_floating_point and n > 0
