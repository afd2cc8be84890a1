"""Where a number came from, and writing it down so that a killed process never leaves half a file."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROFILES = ("quick", "full")  # how much a notebook computes: for a laptop at once, or as long as it takes
PACKAGES = ("torch", "torchvision", "numpy", "numba", "constriction", "monai", "matplotlib", "cosquant-lite")
RESULTS = Path(__file__).resolve().parents[1] / "results"  # committed reference results


def provenance() -> dict:
    """Versions, platform, and the commit of this checkout ("+" if it has changes); no paths, names or times."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}",
            "packages": versions(), "commit": _commit()}  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number, without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def command_line() -> str:
    """The command that is running, as a reader would type it, without paths of this machine."""
    places = ("--out", "--runs", "--flower")
    words = [
        word
        for before, word in zip(["", *sys.argv[1:]], sys.argv[1:])
        if before not in places and not word.startswith(places)
    ]
    return " ".join(["python -m cosquant_lite", *words])


def check_writable(path: Path) -> None:
    """OSError if a file of this name could not be written. What it holds may be wanted still and is not touched; a
    folder for it is made."""
    path = _target(path)
    probe = path.with_name(f".{path.name}.{os.getpid()}.writable")
    try:
        write_atomic(probe, "")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # and not the name of the probe
    probe.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write content under a temporary name in the same folder, then rename: the file is whole or not there.

    A link stays one, and what it points to is replaced. OSError for a folder or a device.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file that is meant, links followed. OSError if something else has its name: renaming would put an end to it."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device, not a file")
    return path


def replace_folder(new: Path, final: Path) -> None:
    """Put the finished folder under its final name. new: in a scratch folder beside it, where the older one ends."""
    if final.exists():
        os.replace(final, new.with_name("replaced"))
    os.replace(new, final)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError that lists what is allowed, unless value is."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")


def write_json(path: Path, content) -> None:
    """`write_atomic` of indented JSON, lists of numbers on one line; NaN is refused rather than written."""
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[^\[\]{}\"]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    write_atomic(path, text + "\n")


def read_json(path: Path):
    """What a JSON file holds. ValueError names one that is damaged; OSError if it cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def read_key(path: Path, key: str):
    """One entry of a JSON file. ValueError names a file that is damaged or lacks it; OSError if it cannot be read."""
    content = read_json(path)
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{path} is damaged: it has no {key!r}")
    return content[key]


def exit_status(command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """What a command line returns: expected failures are one line on stderr and 2, not a traceback; Ctrl-C is 130.

    If whoever reads the output has gone (`head` has enough), it ends without a word, with 141 as other programs do.
    """
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def _commit() -> str:
    folder = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:  # somebody else's repository around a copy
            return "not a git checkout"
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):  # a copy on another machine may be told what it is a copy of
        return os.environ.get("COSQUANT_COMMIT", "not a git checkout")
