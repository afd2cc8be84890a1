"""The static site in a real browser: no errors, nothing from the network, readable on a phone, accessible."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no Chromium here; Debian: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install ".[test]"')
pytest.importorskip("myst_nb", reason='Sphinx with myst-nb is not installed: pip install ".[site]"')
PAGES = [
    "index.html", "teaching.html", "search.html",
    *sorted(f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")),
]  # fmt: skip


@pytest.fixture(scope="module")
def site():
    """The address of the site, served on a port of this machine."""
    made = subprocess.run([sys.executable, ROOT / "docs" / "make_site.py"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-1500:]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=PAGES)
def opened(site, browser, request):
    """A page on a phone, and what went wrong while it was opened."""
    page, wrong = browser.new_page(viewport={"width": 390, "height": 844}), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((site, "data:")) else None)
    page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{site}/{request.param}", wait_until="networkidle")
    yield page, wrong
    page.close()


def test_nothing_fails_and_nothing_is_asked_of_the_network(opened):
    assert opened[1] == []


def test_does_not_scroll_sideways_on_a_phone(opened):
    assert opened[0].evaluate("document.documentElement.scrollWidth") <= 390


def test_every_picture_is_there_and_has_alt_text(opened):
    for image in opened[0].query_selector_all("img"):
        alt = image.get_attribute("alt") or ""
        assert len(alt) >= 20, image.get_attribute("src")
        assert not re.search(r"\.(png|svg)$", alt), "a file name is no alt text"
        image.scroll_into_view_if_needed()
        assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0, alt


def test_no_link_is_dead(opened, site):
    page, _ = opened
    for target in page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
        if target.startswith(site):
            path, _, place = target.removeprefix(site + "/").partition("#")
            file = SITE / path.partition("?")[0]
            assert file.exists(), target
            assert not place or f'id="{unquote(place)}"' in file.read_text("utf-8"), target


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page, _ = opened
    page.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"][:200] for one in found if one["impact"] in ("serious", "critical")}
    assert not serious


def test_sliders_change_the_figure_without_a_kernel(site, browser):
    for name in ("02_cosine_quantization", "03_error_analysis"):
        page, wrong = browser.new_page(), []
        page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.goto(f"{site}/notebooks/{name}.html")
        image = page.locator(".explore img")
        for label, spoken in (("bits", "3"), ("clip", "5.0%")):
            before, slider = image.get_attribute("alt"), page.get_by_label(label)
            slider.focus()
            page.keyboard.press("ArrowRight")
            assert image.get_attribute("alt") != before
            assert slider.get_attribute("aria-valuetext") == spoken
        assert wrong == []
        page.close()
