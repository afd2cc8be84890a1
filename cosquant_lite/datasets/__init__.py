"""Data sets: tensors, and where they came from.

`auto` takes real data found under `$COSQUANT_DATA` (else `data/`) and the embedded input otherwise. Nothing is
downloaded unasked, and the `source` of what was loaded goes into every result and onto every figure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosquant_lite import runs

if TYPE_CHECKING:  # this module answers "which data?" without the seconds that importing torch takes
    from torch import Tensor

EMBEDDED = Path(__file__).resolve().parents[2] / "data"
DATA_CHOICES = ("auto", "real", "embedded")
IMAGE_SETS = ("cifar10",)
_REAL = {  # any of these paths in the data folder means that the real thing is there; and how to get it
    "update": (["captured/client_update.json"], "`python -m cosquant_lite data capture`, which needs real CIFAR-10"),
    "cifar10": (
        ["cifar10/source.json", "cifar-10-batches-py"],
        "`python -m cosquant_lite data import cifar10 PATH` or `python -m cosquant_lite data download cifar10`",
    ),
}


@dataclass(frozen=True, eq=False)
class Images:
    """A classification set. x: uint8 (N, 3, 32, 32); y: int64 (N,); source: what a figure must say it is."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    source: str


def data_root() -> Path:
    """Where imported and downloaded data lives: `$COSQUANT_DATA`, else the project's `data/`."""
    return Path(os.environ.get("COSQUANT_DATA") or EMBEDDED).expanduser().resolve()


def available(uses: str) -> bool:
    """Whether real data of this kind is in the data folder."""
    paths, _ = _REAL[uses]
    return any((data_root() / path).exists() for path in paths)


def resolve(uses: str, data: str) -> str:
    """Which of "real" and "embedded" the choice `data` means for what a notebook uses ("update" or "cifar10").

    ValueError for an unknown choice; FileNotFoundError, saying how to get it, for real data that is not there.
    """
    runs.check_choice("data", data, DATA_CHOICES)
    if data == "real" and not available(uses):
        raise FileNotFoundError(f"data='real', but there is none under {data_root()}; get it with {_REAL[uses][1]}")
    return "real" if data != "embedded" and available(uses) else "embedded"


def load_images(dataset: str, data: str = "auto") -> Images:
    """The named image set, real or embedded. FileNotFoundError says how to get the real one if it is not there."""
    from cosquant_lite.datasets import cifar10, embedded

    runs.check_choice("dataset", dataset, IMAGE_SETS)
    return cifar10.load(data_root()) if resolve(dataset, data) == "real" else embedded.digits()
