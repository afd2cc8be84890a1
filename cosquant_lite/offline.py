"""The classroom without network: the course and all wheels it needs in one archive.

The wheels are for this kind of system and this version of Python, because PyTorch's are.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from cosquant_lite import course

ROOT = Path(__file__).resolve().parents[1]
NAME = "cosquant-lite"
LEFT_OUT = (
    "exercises",
    "tests",
    ".ci",
    ".github",
)  # the masters have the solutions in them; the tests need the masters
EXTRAS = "course,flower,site,test"  # what `make lab` installs


def pack(out: Path) -> Path:
    """Write out/cosquant-lite-offline.tar and return its path.

    In it: what is committed, less the exercises' masters; the students' copies of the exercises; and, in wheels/, the
    package's requirements, from which `make lab` and pip install there. OSError if this is no git checkout, or if pip
    cannot get a wheel.
    """
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{NAME}-offline.tar"
    with tempfile.TemporaryDirectory(dir=out) as name:
        scratch = Path(name)
        committed(scratch / archive.name)
        course.start(scratch / "course")
        wheels(scratch / "wheels")
        with tarfile.open(scratch / archive.name, "a") as tar:
            tar.add(scratch / "course", f"{NAME}/my-exercises")
            tar.add(scratch / "wheels", f"{NAME}/wheels")
        return (scratch / archive.name).replace(archive)


def committed(archive: Path) -> None:
    """The files of the last commit as a tar archive, without LEFT_OUT."""
    paths = [".", *(f":(exclude){folder}" for folder in LEFT_OUT)]
    words = ["git", "archive", f"--prefix={NAME}/", "--format=tar", f"--output={archive.resolve()}", "HEAD", "--"]
    done = subprocess.run([*words, *paths], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"packing takes what is committed, and git says of {ROOT}: {done.stderr.strip()}")


def wheels(folder: Path) -> None:
    """Wheels of everything the package and its extras require, and of what pip needs to install a folder."""
    words = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(folder), f"{ROOT}[{EXTRAS}]"]
    if subprocess.run([*words, "pip", "setuptools", "wheel"]).returncode:
        raise OSError("pip could not get all wheels; what it says is above")
    for own in folder.glob("cosquant_lite-*.whl"):  # it is installed from its folder, where data and results are
        own.unlink()
