"""BraTS cases as the engine takes them: prepared cubes of four modalities, the sites they come from, a hold-out.

A prepared case is NAME.npz: image uint8 (4, S, S, S), label uint8 (S, S, S), scale (the value of 255 in each modality)
and spacing_mm; axes run left, posterior, superior (LPS), as BraTS is distributed. `nifti.py` makes them.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from cosquant_lite import runs
from cosquant_lite.datasets import Volumes

MODALITIES = ("FLAIR", "T1w", "T1gd", "T2w")
LABELS = ("background", "oedema", "non-enhancing tumour", "enhancing tumour")  # their codes are 0 to 3, as in the MSD
REGIONS = {"whole tumour": (1, 2, 3), "tumour core": (2, 3), "enhancing tumour": (3,)}  # what BraTS scores
SITE = re.compile(r"_(2013|CBICA|TCIA\d+|scanner[A-Z])_")  # in the names of BraTS 2017, 2018, and phantoms
RELEASES = {"Brats17": "BraTS 2017", "Brats18": "BraTS 2018", "BraTS19": "BraTS 2019", "BraTS20_": "BraTS 2020",
            "BraTS2021": "BraTS 2021", "BraTS-GLI": "BraTS 2023", "BRATS_": "MSD Task01"}  # fmt: skip


def load(root: Path) -> Volumes:
    """The prepared cases under root/brats, with the hold-out of `held_out`. ValueError names a case that does not fit."""
    names = runs.read_key(root / "brats" / "source.json", "cases")
    images, labels = zip(*(read_prepared(root / "brats" / f"{name}.npz") for name in names))
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{root / 'brats'} mixes cases of different size; prepare them again, together")
    return volumes(torch.stack(images), torch.stack(labels), names, describe(names, images[0].shape[-1]))


def volumes(images: torch.Tensor, labels: torch.Tensor, names: list[str], source: str) -> Volumes:
    """All cases, divided into training and hold-out."""
    train, test = divide(names)
    cases = [tuple(names[i] for i in part) for part in (train, test)]
    return Volumes(images[train], labels[train], images[test], labels[test], *cases, source)


def divide(names: list[str]) -> tuple[list[int], list[int]]:
    """Which cases train and which test the model, see `held_out`. ValueError if none is left for one of the two."""
    test = held_out(names)
    train = [i for i in range(len(names)) if i not in test]
    if not (train and test):
        lack = "train on" if test else "test with, as each site has one"
        raise ValueError(f"of {len(names)} BraTS cases none is left to {lack}; import more")
    return train, test


def site(name: str) -> str | None:
    """The institution or collection that a case came from, if its name says so."""
    found = SITE.search(name)
    return found[1] if found else None


def held_out(names: list[str]) -> list[int]:
    """Which cases test the model: the first by name of each site that has two or more, and all cases without a site.

    A case without a site belongs to no client. If no name carries one, the first by name of every five is held out.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    sites = [site(name) for name in names]
    if not any(sites):
        return order[::5]
    first = {}
    for i in order:
        first.setdefault(sites[i], i)
    several = {i for where, i in first.items() if sites.count(where) > 1}
    return [i for i in order if i in several or sites[i] is None]


def describe(names: list[str], size: int) -> str:
    """What these cases are, for figures and results."""

    def release(name: str) -> str:
        return next((known for start, known in RELEASES.items() if name.startswith(start)), "cases of unknown release")

    counts = Counter(map(release, names))
    parts = ", ".join(f"{count} of {known}" for known, count in counts.items())
    return f"BraTS, {len(names)} cases ({parts}) at {size}x{size}x{size}"


def read_prepared(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and label of a prepared case. ValueError names a file that is damaged or holds something else."""
    try:
        with np.load(path) as stored:
            image, label = stored["image"], stored["label"]
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise ValueError(f"{path} is not a prepared BraTS case: {error or type(error).__name__}") from None
    size = image.shape[-1] if image.ndim == 4 else 0
    if image.shape != (4, size, size, size) or label.shape != (size,) * 3 or image.dtype != np.uint8:
        raise ValueError(
            f"{path}: image {image.dtype} {image.shape} and label {label.shape}, needed: uint8 (4, S, S, S)"
        )
    unknown = sorted(set(np.unique(label).tolist()) - set(range(len(LABELS))))
    if unknown:
        raise ValueError(f"{path}: the label has the unknown codes {unknown}; known: 0 to 3 ({', '.join(LABELS)})")
    return torch.from_numpy(image), torch.from_numpy(label.astype(np.uint8))
