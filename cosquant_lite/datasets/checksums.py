"""SHA-256 of the embedded files (data/SHA256SUMS) and of imported data, checked by `data verify`."""

import hashlib
from pathlib import Path

from torchvision.datasets import CIFAR10

from cosquant_lite.datasets import EMBEDDED, SUMS, data_root


def verify() -> int:
    """Check every listed file, print a line each; 0 if all are intact, 1 if not. FileNotFoundError without a checkout."""
    if not (EMBEDDED / SUMS).exists():
        raise FileNotFoundError(
            f"no {EMBEDDED / SUMS}: the embedded data needs a checkout, installed with pip install -e ."
        )
    folders = [EMBEDDED, *(data_root() / name for name in ("captured", "cifar10", "brats"))]
    folders = [folder for folder in folders if (folder / SUMS).exists()]
    intact = [_check(folder) for folder in folders]
    if (data_root() / CIFAR10.base_folder).is_dir():
        intact.append(_check_official())
    return 0 if all(intact) else 1


def write_sums(folder: Path, names: list[str]) -> None:
    """List the files' SHA-256 in the folder, in the format of `sha256sum`."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / SUMS).write_text("".join(lines))


def _check_official() -> bool:
    try:
        CIFAR10(data_root())  # torchvision checks every file's md5
    except RuntimeError:
        print(f"DAMAGED  {data_root() / CIFAR10.base_folder}")
        return False
    print(f"ok       {data_root() / CIFAR10.base_folder}")
    return True


def _check(folder: Path) -> bool:
    intact = True
    for number, line in enumerate((folder / SUMS).read_text().splitlines(), 1):
        expected, _, name = line.partition("  ")
        if not name:
            raise ValueError(f"line {number} of {folder / SUMS} is damaged: it has no file name")
        path = folder / name
        verdict = "missing" if not path.exists() else "ok" if _sha256(path) == expected else "DAMAGED"
        print(f"{verdict:8} {path}")
        intact &= verdict == "ok"
    return intact


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
