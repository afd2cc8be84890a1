"""CIFAR-10: the official archive through torchvision, or an image folder (tree or tar), imported once."""

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import default_loader
from tqdm import tqdm

from cosquant_lite import runs
from cosquant_lite.datasets import Images
from cosquant_lite.datasets.checksums import write_sums
from cosquant_lite.datasets.download import download as fetch

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARRAYS = ("train_x", "train_y", "test_x", "test_y")


def load(root: Path) -> Images:
    """Real CIFAR-10 under root: the official archive if it is there, otherwise the imported image folder."""
    if (root / CIFAR10.base_folder).is_dir():
        return _official(root)
    arrays = [_array(root / "cifar10" / f"{name}.npy") for name in ARRAYS]
    return Images(*arrays, CLASSES, runs.read_key(root / "cifar10" / "source.json", "source"))


def _array(file: Path) -> torch.Tensor:
    try:
        return torch.from_numpy(np.load(file))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); import CIFAR-10 again") from None


def download(root: Path) -> str:
    """Fetch the official archive (170 MB, resumable, md5 checked) and import it. Returns its source line."""
    archive = root / CIFAR10.filename
    if not archive.exists():
        fetch(CIFAR10.url, archive, CIFAR10.tgz_md5)
    return import_from(archive, root)


def import_from(path: Path, root: Path) -> str:
    """Import CIFAR-10 from path and return what it is.

    path: the official `cifar-10-python.tar.gz` or its unpacked folder, or an image folder (or a tar of one) with
    `train/<class>/*` and `test/<class>/*`. ValueError or FileNotFoundError names what is missing; a failed or killed
    import leaves nothing under the final name.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root) as scratch:
        folder = _unpack(path, Path(scratch)) if path.is_file() else path
        official = next(
            iter([folder] if folder.name == CIFAR10.base_folder else folder.glob(f"**/{CIFAR10.base_folder}")), None
        )
        if official:
            shutil.copytree(official, Path(scratch) / "new" / CIFAR10.base_folder)
            _official(Path(scratch) / "new")  # torchvision checks every file's md5
            runs.replace_folder(Path(scratch) / "new" / CIFAR10.base_folder, root / CIFAR10.base_folder)
            return _official(root).source
        if (root / CIFAR10.base_folder).is_dir():
            raise ValueError(f"{root / CIFAR10.base_folder} is there and would still be used; remove it first")
        source = _image_folder_to_arrays(_image_root(folder, path), Path(scratch) / "arrays")
        runs.replace_folder(Path(scratch) / "arrays", root / "cifar10")
        return source


def _official(root: Path) -> Images:
    try:
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError:  # torchvision's word for a missing file or a wrong md5
        raise ValueError(f"{root / CIFAR10.base_folder} is damaged: a file is missing or has another md5") from None
    x = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    y = [torch.tensor(part.targets) for part in (train, test)]
    return Images(x[0], y[0], x[1], y[1], CLASSES, "CIFAR-10, official archive")


def _unpack(archive: Path, scratch: Path) -> Path:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / "unpacked", filter="data")
            tar.fileobj.seek(tar.offset)  # tarfile takes a damaged header for the end, which is a block of zeros
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"after {len(tar.getmembers())} members there is no end")
    except Exception as error:  # tarfile, gzip, zlib and lzma each have their own
        raise ValueError(f"{archive} is not a complete tar archive: {error}") from None
    return scratch / "unpacked"


def _image_root(folder: Path, named: Path) -> Path:
    """The folder that holds train/ and test/, with all ten classes in each."""
    found = [train.parent for train in [folder / "train", *sorted(folder.glob("*/train"))] if train.is_dir()]
    if not found:
        raise ValueError(f"{named}: neither {CIFAR10.base_folder}/ nor train/<class>/ found in it")
    for part in ("train", "test"):
        there = {entry.name for entry in (found[0] / part).glob("*") if entry.is_dir()}
        if there != set(CLASSES):
            missing, unknown = sorted(set(CLASSES) - there), sorted(there - set(CLASSES))
            raise ValueError(
                f"{named}: {part}/ lacks the classes {missing} and has the unknown ones {unknown}; needed: {CLASSES}"
            )
    return found[0]


def _image_folder_to_arrays(folder: Path, out: Path) -> str:
    """Decode every image once into .npy arrays, which load in a second."""
    out.mkdir()
    counts, endings = [], set()
    for part in ("train", "test"):
        images = ImageFolder(folder / part, loader=_image)
        x = np.empty((len(images), 3, 32, 32), np.uint8)
        for i, (image, _) in enumerate(tqdm(images, desc=f"CIFAR-10 {part}", unit="image")):
            x[i] = image.transpose(2, 0, 1)
        np.save(out / f"{part}_x.npy", x)
        np.save(out / f"{part}_y.npy", np.array(images.targets, np.int64))
        counts.append(len(images))
        endings |= {os.path.splitext(name)[1].lower() for name, _ in images.samples}
    kind = "JPEG re-encoding (lossy)" if endings & {".jpg", ".jpeg"} else f"image folder of {'/'.join(sorted(endings))}"
    size = "" if counts == [50_000, 10_000] else f", only {counts[0]} + {counts[1]} images"
    source = f"CIFAR-10, {kind}{size}"
    (out / "source.json").write_text(json.dumps({"source": source}), "utf-8")
    write_sums(out, [f"{name}.npy" for name in ARRAYS])
    return source


def _image(file: str) -> np.ndarray:
    """The pixels of an image, (32, 32, 3). ValueError names one that is damaged or of another size."""
    name = "/".join(Path(file).parts[-3:])  # from train or test on: the folder may be where a tar was unpacked
    try:
        pixels = np.asarray(default_loader(file))
    except Exception as error:  # Pillow's decoders each have their own
        raise ValueError(f"{name} cannot be read: {error}") from None
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, needed: 32x32")
    return pixels
