"""Badges of Binder and Colab: written by a command, the same on every notebook, and nothing else is touched."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from cosquant_lite import badges
from cosquant_lite.__main__ import main

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def copies(tmp_path):
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    return tmp_path


def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_each_notebook_gets_its_own_links_and_keeps_all_its_cells(copies):
    assert len(badges.write("someone/a-fork", copies)) == len(NOTEBOOKS) >= 11
    for path in NOTEBOOKS:
        title, links, install, *others = cells(copies / path.name)
        assert f"mybinder.org/v2/gh/someone/a-fork/HEAD?urlpath=lab/tree/notebooks/{path.name}" in links.source
        assert f"colab.research.google.com/github/someone/a-fork/blob/main/notebooks/{path.name}" in links.source
        assert len(re.findall(r"!\[[^]]+\]", links.source)) == 2, "every badge has a text"
        assert '"https://github.com/someone/a-fork"' in install.source
        before = [cell for cell in cells(path) if cell.id not in (badges.BADGES, badges.INSTALL)]
        assert [title, *others] == before


def test_again_changes_nothing_and_another_address_replaces_the_first(copies):
    badges.write("someone/a-fork", copies)
    once = {path.name: path.read_bytes() for path in copies.iterdir()}
    assert badges.write("someone/a-fork", copies) == []
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == once
    assert len(badges.write("other/name", copies)) == len(NOTEBOOKS)
    assert not any(b"someone/a-fork" in path.read_bytes() for path in copies.iterdir())


def test_the_installing_cell_does_nothing_elsewhere_and_on_colab_installs_and_says_what_is_missing(
    copies, monkeypatch, capsys
):
    monkeypatch.chdir(copies)
    badges.write("someone/a-fork", copies)
    install = compile(cells(copies / NOTEBOOKS[0].name)[2].source, "install", "exec")
    called = []
    monkeypatch.setattr("subprocess.run", lambda words, check: called.append(words))
    exec(install, {})
    assert called == []
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "google.colab", badges)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(badges.shutil, "which", lambda program: None)
    exec(install, {})
    assert [words[0] for words in called] == ["git", sys.executable]
    assert "lacks:\n- " in (said := capsys.readouterr().out)
    assert "GPU" in said
    (copies / "cosquant-lite").mkdir()  # as the clone leaves it
    exec(install, {})
    assert [words[0] for words in called[2:]] == [sys.executable], "run again it clones no second time"


def test_a_wrong_address_is_named_and_nothing_is_written(copies, capsys):
    before = {path.name: path.read_bytes() for path in copies.iterdir()}
    with pytest.raises(ValueError, match="repository must be OWNER/NAME, got 'just-a-name'"):
        badges.write("just-a-name", copies)
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == before
    assert main(["course", "badges", "--repository", "https://github.com/a/b"]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("https://github.com/some-one/a.name", "some-one/a.name"),
        ("https://github.com/some-one/name.git", "some-one/name"),
        ("git@github.com:some-one/name.git", "some-one/name"),
    ],
)
def test_the_address_is_that_of_the_remote(address, found, monkeypatch):
    class Done:
        stdout = address + "\n"

    monkeypatch.setattr(badges.subprocess, "run", lambda *words, **options: Done)
    assert badges.published() == found
    Done.stdout = "/a/folder\n"
    with pytest.raises(ValueError, match="--repository OWNER/NAME"):
        badges.published()


def test_committed_notebooks_have_the_badges_of_one_address_or_none():
    links = [re.search(rf"v2/gh/({badges.ADDRESS})/", path.read_text("utf-8")) for path in NOTEBOOKS]
    addresses = {link[1] if link else None for link in links}
    assert len(addresses) == 1, "run: python -m cosquant_lite course badges"
    [address] = addresses
    if address:
        for path in NOTEBOOKS:
            notebook = nbformat.read(path, as_version=4)
            assert badges.with_cells(notebook.copy(), address, path.name) == notebook
