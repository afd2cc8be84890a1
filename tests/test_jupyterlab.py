"""JupyterLab as a student uses it: notebook 02 is opened, all its cells run, and a slider changes the figure."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest

from cosquant_lite.loopback import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no Chromium here; Debian: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install ".[test]"')
NOTEBOOK = "02_cosine_quantization.ipynb"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on copies of the notebooks (it saves what it runs)."""
    shutil.copytree(Path(__file__).parents[1] / "notebooks", tmp_path / "notebooks")
    fresh = nbformat.read(tmp_path / "notebooks" / NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(fresh, tmp_path / "notebooks" / NOTEBOOK)
    port = free_port()
    words = ["--no-browser", "--allow-root", f"--port={port}", f"--ServerApp.root_dir={tmp_path}"]
    words += ["--IdentityProvider.token=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}  # not the workspace and settings of the user
    server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *words], env=own, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urlopen(f"{address}/api", timeout=5).close()
            break
        except (URLError, OSError):
            assert server.poll() is None
            assert time.monotonic() < deadline, "JupyterLab did not start"
            time.sleep(0.3)
    yield address
    server.terminate()
    server.wait()


def test_all_cells_run_and_the_slider_changes_the_figure(lab, tmp_path):
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{lab}/lab/tree/notebooks/{NOTEBOOK}")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        slider = page.locator(".noUi-handle").first
        slider.wait_for(state="attached")
        slider.scroll_into_view_if_needed()
        figure = page.locator(".widget-output img").last
        figure.wait_for()
        before = figure.get_attribute("src")
        slider.focus()
        page.keyboard.press("ArrowRight")
        playwright.expect(figure).not_to_have_attribute("src", before, timeout=60_000)
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        deadline = time.monotonic() + 60
        while not all(cell.execution_count for cell in saved(page, tmp_path)):
            assert time.monotonic() < deadline, "a cell has not run"
            page.wait_for_timeout(500)
        assert not [out for cell in saved(page, tmp_path) for out in cell.outputs if out.output_type == "error"]
        browser.close()


def saved(page, folder):
    """The code cells as JupyterLab writes them to the file."""
    page.keyboard.press("Control+s")
    page.wait_for_timeout(500)
    cells = nbformat.read(folder / "notebooks" / NOTEBOOK, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]
