"""Build the course as a static site: `make site` writes build/site, which reads without network and without a kernel.

Puts this folder and the committed notebooks into build/site-source, with a figure to explore in 02 and 03, and calls
Sphinx, which turns every warning (a dead link, a picture without text) into an error.
"""

import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).parent))
import explore

from cosquant_lite import badges

ROOT = Path(__file__).resolve().parents[1]
ACCESSIBLE = {  # what Sphinx leaves out: the level of a caption's heading, and that wide code scrolls by keyboard
    'role="heading"': 'role="heading" aria-level="2"',
    "<pre>": '<pre tabindex="0">',
}
SOURCE, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"


def main() -> int:
    """Collect, build; the exit status of Sphinx."""
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    shutil.copy(ROOT / "docs" / "conf.py", SOURCE)
    (SOURCE / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if cell.id not in (badges.BADGES, badges.INSTALL)]
        made = explore.FIGURES.get(path.stem[:2])
        if made:
            summary = next(i for i, cell in enumerate(notebook.cells) if "## Summary" in cell.source)
            notebook.cells.insert(summary, nbformat.v4.new_markdown_cell(made()))
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt")
                if alt:  # where myst-nb looks for it
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
        nbformat.write(notebook, SOURCE / "notebooks" / path.name)
    status = sphinx(["-W", "--keep-going", "-q", "-b", "html", str(SOURCE), str(SITE)])
    for page in SITE.rglob("*.html"):
        text = page.read_text("utf-8")
        for plain, accessible in ACCESSIBLE.items():
            text = text.replace(plain, accessible)
        page.write_text(text, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
