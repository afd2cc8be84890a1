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
SUMS = "SHA256SUMS"  # beside embedded and imported files, in the format of `sha256sum`
DATA_CHOICES = ("auto", "real", "embedded")
DATASETS = ("cifar10", "brats")
OFFICIAL = "cifar-10-batches-py"  # what CIFAR-10's own archive unpacks to
_REAL = {  # any of these paths in the data folder means that the real thing is there; and how to get it
    "update": (["captured/client_update.json"], "`python -m cosquant_lite data capture`, which needs real CIFAR-10"),
    "cifar10": (
        ["cifar10/source.json", OFFICIAL],
        "`python -m cosquant_lite data import cifar10 PATH` or `python -m cosquant_lite data download cifar10`",
    ),
    "brats": (
        ["brats/source.json"],
        "`python -m cosquant_lite data import brats PATH` or `python -m cosquant_lite data download brats`",
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


@dataclass(frozen=True, eq=False)
class Volumes:
    """A segmentation set. x: uint8 (N, 4, S, S, S) in the order of brats.MODALITIES; y: uint8 (N, S, S, S) with the
    codes of brats.LABELS; cases: their names; source: what a figure must say it is."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    train_cases: tuple[str, ...]
    test_cases: tuple[str, ...]
    source: str


def data_root() -> Path:
    """Where imported and downloaded data lives: `$COSQUANT_DATA`, else the project's `data/`."""
    return Path(os.environ.get("COSQUANT_DATA") or EMBEDDED).expanduser().resolve()


def available(uses: str) -> bool:
    """Whether real data of this kind is in the data folder."""
    paths, _ = _REAL[uses]
    return any((data_root() / path).exists() for path in paths)


def resolve(uses: str, data: str) -> str:
    """Which of "real" and "embedded" the choice `data` means for what a notebook uses ("update", "cifar10", "brats").

    ValueError for an unknown choice; FileNotFoundError, saying how to get it, for real data that is not there.
    """
    runs.check_choice("data", data, DATA_CHOICES)
    if data == "real" and not available(uses):
        raise FileNotFoundError(f"data='real', but there is none under {data_root()}; get it with {_REAL[uses][1]}")
    return "real" if data != "embedded" and available(uses) else "embedded"


def load_data(dataset: str, data: str = "auto") -> Images | Volumes:
    """The named data set, real or embedded. FileNotFoundError says how to get the real one if it is not there."""
    from cosquant_lite.datasets import brats, cifar10, embedded, phantom

    runs.check_choice("dataset", dataset, DATASETS)
    real, small = {"cifar10": (cifar10.load, embedded.digits), "brats": (brats.load, phantom.phantoms)}[dataset]
    return real(data_root()) if resolve(dataset, data) == "real" else small()


def about(data: Images | Volumes) -> dict:
    """What a result says about its data: the source, and the names of the cases if they have any."""
    cases = {part: list(getattr(data, part)) for part in ("train_cases", "test_cases") if hasattr(data, part)}
    return {"source": data.source, **cases}
