"""Data sets: tensors, and where they came from.

`auto` takes real data found under `$COSQUANT_DATA` (else `data/`) and the embedded input otherwise. Nothing is
downloaded unasked, and the `source` of what was loaded goes into every result and onto every figure.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

EMBEDDED = Path(__file__).resolve().parents[2] / "data"
DATA_CHOICES = ("auto", "real", "embedded")
IMAGE_SETS = ("cifar10",)


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
    return Path(os.environ.get("COSQUANT_DATA") or EMBEDDED)


def check_data_choice(data: str) -> None:
    """ValueError that lists the choices, unless data is one of them."""
    if data not in DATA_CHOICES:
        raise ValueError(f"data must be one of {', '.join(map(repr, DATA_CHOICES))}, got {data!r}")


def load_images(dataset: str, data: str = "auto") -> Images:
    """The named image set, real or embedded. FileNotFoundError says how to get the real one if it is not there."""
    from cosquant_lite.datasets import cifar10, embedded

    check_data_choice(data)
    if dataset not in IMAGE_SETS:
        raise ValueError(f"unknown dataset {dataset!r}; allowed: {', '.join(IMAGE_SETS)}")
    if data == "embedded" or (data == "auto" and not cifar10.available(data_root())):
        return embedded.digits()
    return cifar10.load(data_root())
