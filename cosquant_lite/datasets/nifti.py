"""Read BraTS cases in the forms they are handed around in, and prepare them as cubes that a laptop can train on.

A case is a folder of NIfTI files (BraTS 2017 to 2023), an MSD image beside its label, or a prepared .npz.
"""

import json
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.apps import DecathlonDataset
from monai.data import load_decathlon_datalist
from monai.transforms import (
    AsDiscreted,
    Compose,
    CropForegroundd,
    LoadImage,
    Orientation,
    Resized,
    Spacing,
    SpatialPadd,
)
from torch import Tensor
from tqdm import tqdm

from cosquant_lite import runs
from cosquant_lite.datasets.brats import LABELS, MODALITIES, describe, divide, read_prepared
from cosquant_lite.datasets.checksums import write_sums
from cosquant_lite.datasets.download import download as fetch

ENDINGS = {"FLAIR": "flair|t2f", "T1w": "t1|t1n", "T1gd": "t1ce|t1c", "T2w": "t2|t2w", "label": "seg"}
PARTS = {part: re.compile(rf"[_-]({endings})\.nii(\.gz)?$") for part, endings in ENDINGS.items()}
BRATS_CODES = {0: 0, 1: 2, 2: 1, 3: 3, 4: 3}  # 1 necrotic or non-enhancing, 2 oedema, 4 (3 since 2023) enhancing
MSD = "Task01_BrainTumour"
FEW = 0.01  # for each voxel of the brain; so many may be below zero, as interpolation leaves them
BRIGHTEST = 0.995  # this quantile of the brain becomes 255; a few voxels above it are cut


@dataclass(frozen=True, eq=False)
class Case:
    """One patient. image: float32 (4, X, Y, Z) in the order of MODALITIES; label: uint8 (X, Y, Z) with the codes of
    LABELS; both LPS; spacing_mm: edge of a voxel, which is a cube."""

    name: str
    image: Tensor
    label: Tensor
    spacing_mm: float


def find_cases(path: Path) -> list[Path]:
    """Every case under a folder, by name; for `load_case`. FileNotFoundError if there is none, ValueError if there are
    lists of cases and others."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    lists = sorted(path.rglob("dataset.json"))
    listed = [case for file in lists for case in _listed(file)]
    images = {file for file in path.rglob("*.nii*") if file.parent.name == "imagesTr" or "_image.nii" in file.name}
    folders = {file.parent for file in path.rglob("*.nii*") if any(part.search(file.name) for part in PARTS.values())}
    found = sorted(images | folders | set(path.rglob("*.npz")), key=lambda case: case.name)
    others = [case for case in found if not any(case.is_relative_to(file.parent / "imagesTr") for file in lists)]
    if lists and others:
        raise ValueError(f"{path} has cases that {lists[0]} does not list, such as {others[0]}; import one of the two")
    if lists:
        return sorted(listed)
    if not found:
        raise FileNotFoundError(
            f"{path}: no case found: neither folders with *_flair.nii.gz ..., nor imagesTr/, nor *.npz"
        )
    return found


def _listed(file: Path) -> list[Path]:
    """The images of an MSD data set's dataset.json."""
    try:
        return [Path(case["image"]) for case in load_decathlon_datalist(file, True, "training")]
    except Exception as error:  # json, MONAI and what is not a case each have their own
        raise ValueError(f"{file} is no list of MSD cases: {type(error).__name__}: {error}") from None


def load_case(path: Path) -> Case:
    """One case, whatever form it has. ValueError names the file and what is wrong with it."""
    if path.suffix == ".npz":
        return _load_prepared(path)
    image, label, name = _load_folder(path) if path.is_dir() else _load_msd(path)
    if label.shape != image.shape[1:]:
        raise ValueError(f"{path}: the label is {tuple(label.shape)}, but the image is {tuple(image.shape[1:])}")
    for modality, x in zip(MODALITIES, image):
        if not x.isfinite().all() or not (x > 0).any():
            raise ValueError(f"{path}: {modality} is empty or has NaN in it")
        if (x < 0).sum() > FEW * (x > 0).sum():
            raise ValueError(f"{path}: {modality} has many negative voxels: it was normalised; brightnesses are needed")
    return Case(name, image, label, 1.0)


def prepare(path: Path, root: Path, size: int = 64) -> str:
    """Make root/brats from every case under path, each cropped to the brain and resampled to size^3; what it is.

    ValueError or FileNotFoundError names what does not fit; whatever was in root/brats stays until all is done.
    """
    if size % 16 or not 16 <= size <= 240:
        raise ValueError(f"size must be a multiple of 16 from 16 to 240, got {size}")
    cases = find_cases(path.expanduser().resolve())
    names = [_name(case) for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path} has two cases of the name {min(twice)}")
    divide(names)  # what could not be used must not take the place of what can
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=root) as scratch:
        new = Path(scratch) / "brats"
        new.mkdir()
        for case in tqdm(cases, f"BraTS at {size}^3", unit="case"):
            np.savez_compressed(new / f"{_name(case)}.npz", **_prepared(case, size))
        source = describe(names, size)
        (new / "source.json").write_text(json.dumps({"source": source, "cases": names}), "utf-8")
        write_sums(new, [f"{name}.npz" for name in names])
        runs.replace_folder(new, root / "brats")
    return source


def _prepared(path: Path, size: int) -> dict[str, np.ndarray]:
    """The arrays of a case at this size; those that are of this size stay as they are."""
    if path.suffix == ".npz" and read_prepared(path)[1].shape[0] == size:
        with np.load(path) as stored:
            return dict(stored)
    return cube(load_case(path), size)


def cube(case: Case, size: int) -> dict[str, np.ndarray]:
    """The smallest cube around the brain, resampled to size^3: the arrays of a prepared case.

    Labels are averaged as four maps before the largest is taken: taking every third voxel would lose thin structures.
    """
    side = int(max((hull[:, 1] - hull[:, 0]).max() for hull in [_hull(case.image)]))
    resample = Compose([
        CropForegroundd(("image", "label"), source_key="image", allow_smaller=True),
        SpatialPadd(("image", "label"), (side, side, side)),
        AsDiscreted("label", to_onehot=len(LABELS)),
        Resized(("image", "label"), (size, size, size), mode="area"),
    ])  # fmt: skip
    small = resample({"image": case.image, "label": case.label[None]})
    image = small["image"].numpy()
    scale = [np.quantile(x[x > 0], BRIGHTEST) for x in case.image.numpy()]
    bytes_ = np.stack([(x * (255 / top)).round().clip(0, 255) for x, top in zip(image, scale)]).astype(np.uint8)
    label = small["label"].argmax(0).numpy().astype(np.uint8)
    spacing = np.float32(case.spacing_mm * side / size)
    return {"image": bytes_, "label": label, "scale": np.float32(scale), "spacing_mm": spacing}


def download(root: Path) -> Path:
    """Fetch the Medical Segmentation Decathlon's Task01 (7 GB, resumable, MONAI's address and md5), unpack it; its folder.

    OSError if the host cannot be reached, ValueError if what arrived is not the archive.
    """
    archive = root / f"{MSD}.tar"
    if not archive.exists() and not (root / MSD).is_dir():
        fetch(DecathlonDataset.resource[MSD], archive, DecathlonDataset.md5[MSD])
    if not (root / MSD).is_dir():
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as scratch, tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
            runs.replace_folder(Path(scratch) / MSD, root / MSD)
    return root / MSD


def _hull(image: Tensor) -> np.ndarray:
    """First and last index + 1 of what is not zero, for each axis: (3, 2)."""
    inside = (image > 0).any(0)
    lines = [inside.any(axes[0]).any(axes[1]).nonzero() for axes in ((2, 1), (2, 0), (1, 0))]
    return np.array([[line.min(), line.max() + 1] for line in lines])


def _load_prepared(path: Path) -> Case:
    image, label = read_prepared(path)
    with np.load(path) as stored:
        if missing := {"scale", "spacing_mm"} - set(stored):
            raise ValueError(f"{path} is not a prepared BraTS case: {', '.join(sorted(missing))} missing")
        scale, spacing = torch.from_numpy(stored["scale"]), float(stored["spacing_mm"])
    return Case(path.stem, image * scale.view(4, 1, 1, 1) / 255, label, spacing)


def _load_folder(folder: Path):
    files = {}
    for part, pattern in PARTS.items():
        found = [file for file in sorted(folder.iterdir()) if pattern.search(file.name)]
        if len(found) != 1:
            names = " or ".join(f"*{ending}.nii.gz" for ending in ENDINGS[part].split("|"))
            raise ValueError(f"{folder}: {part} is {'there twice' if found else 'missing'} ({names})")
        files[part] = found[0]
    read = {part: _read(file, "nearest" if part == "label" else "bilinear") for part, file in files.items()}
    for part, x in read.items():
        if x.shape != read["FLAIR"].shape or x.shape[0] != 1:
            raise ValueError(f"{files[part]} is {tuple(x.shape[1:])}, but FLAIR is {tuple(read['FLAIR'].shape[1:])}")
    codes = read["label"][0]
    present = sorted(codes.unique().tolist())
    if not set(present) <= set(BRATS_CODES) or {3, 4} <= set(present):
        raise ValueError(f"{files['label']} has the codes {present}; allowed: 0, 1, 2, and one of 3 and 4")
    label = sum(meaning * (codes == code) for code, meaning in BRATS_CODES.items())
    image = torch.cat([read[modality].as_tensor() for modality in MODALITIES])
    return image, label.as_tensor().to(torch.uint8), folder.name


def _load_msd(path: Path):
    label_path = Path(str(path).replace("imagesTr", "labelsTr").replace("_image.nii", "_label.nii"))
    if label_path == path or not label_path.exists():
        raise ValueError(f"{path}: there is no label for it: {label_path} is missing")
    image, codes = _read(path, "bilinear"), _read(label_path, "nearest")[0]
    if image.shape[0] != len(MODALITIES):
        raise ValueError(f"{path} has {image.shape[0]} channels, needed: 4 ({', '.join(MODALITIES)})")
    unknown = sorted(set(codes.unique().tolist()) - set(range(len(LABELS))))
    if unknown:
        raise ValueError(f"{label_path} has the unknown codes {unknown}; allowed: 0 to 3")
    return image.as_tensor(), codes.as_tensor().to(torch.uint8), _name(path)


def _name(path: Path) -> str:
    return path.name if path.is_dir() else re.sub(r"(_image)?(\.nii(\.gz)?|\.npz)$", "", path.name)


def _read(file: Path, interpolation: str):
    """One NIfTI file as (channels, X, Y, Z), axes LPS, 1 mm a voxel."""
    turn = Compose([Orientation("LPS", labels=None), Spacing((1, 1, 1), mode=interpolation)])
    try:
        return turn(LoadImage(ensure_channel_first=True)(file))
    except Exception as error:  # nibabel, gzip, zlib and MONAI each have their own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read: {why}") from None
