"""Badges: every notebook starts on Binder or Colab from the address where the project is published.

`python -m cosquant_lite course badges` writes two cells below each notebook's title: the badges, and one that installs
the package on Colab and does nothing elsewhere. Cells that an earlier call wrote are replaced.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from cosquant_lite import runs

ROOT = Path(__file__).resolve().parents[1]
BADGES, INSTALL = "badges", "install-on-colab"  # the ids of the two cells
ADDRESS = r"[\w.-]+/[\w.-]+"


def write(repository: str, folder: Path = ROOT / "notebooks") -> list[Path]:
    """Write both cells into the notebooks of a folder; the changed files. repository: OWNER/NAME, on GitHub."""
    if not re.fullmatch(ADDRESS, repository):
        raise ValueError(f"repository must be OWNER/NAME, got {repository!r}")
    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        before = path.read_text("utf-8")
        after = nbformat.writes(with_cells(nbformat.reads(before, as_version=4), repository, path.name)) + "\n"
        if after != before:
            runs.write_atomic(path, after.encode())
            changed.append(path)
    return changed


def with_cells(notebook: NotebookNode, repository: str, name: str) -> NotebookNode:
    """The notebook with the badges and the installing cell of this repository below its title."""
    title, *others = (cell for cell in notebook.cells if cell.id not in (BADGES, INSTALL))
    new = nbformat.v4
    badges = new.new_markdown_cell(_badges(repository, name), id=BADGES)
    notebook.cells = [title, badges, new.new_code_cell(_install(repository), id=INSTALL), *others]
    return notebook


def published() -> str:
    """OWNER/NAME on GitHub of git's remote "origin". ValueError if there is none."""
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    found = re.search(rf"github\.com[:/]({ADDRESS}?)(\.git)?$", done.stdout.strip())
    if not found:
        raise ValueError("git's remote origin is no GitHub address: name one with --repository OWNER/NAME")
    return found[1]


def lacks() -> list[str]:
    """What this runtime lacks of a machine set up by the README, one line each."""
    missing = [] if (os.cpu_count() or 1) >= 2 else ["a second core: everything takes longer than stated"]
    if not shutil.which("nvidia-smi"):
        missing.append("a GPU: the quick profile needs none, the full one is meant for one")
    missing += ["CIFAR-10 and BraTS: embedded data stand in, and say so", "lasting storage: download what you made"]
    return missing


def _badges(repository: str, name: str) -> str:
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/notebooks/{name}"
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"
    return (
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    )


def _install(repository: str) -> str:
    return f"""\
import sys

if "google.colab" in sys.modules:  # anywhere else this cell does nothing
    from pathlib import Path
    from subprocess import run as call

    if not Path("cosquant-lite").exists():  # the cell may run twice
        call(["git", "clone", "--depth", "1", "https://github.com/{repository}", "cosquant-lite"], check=True)
    call([sys.executable, "-m", "pip", "install", "--quiet", "-e", "cosquant-lite[flower]"], check=True)
    sys.path.insert(0, "cosquant-lite")
    from cosquant_lite import badges

    print("This runtime lacks:", *badges.lacks(), sep="\\n- ")"""
