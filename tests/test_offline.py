"""The archive for a room without network: what is in it, and that it installs from its own wheels."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("nbgrader", reason='nbgrader is not installed: pip install "cosquant-lite[course]"')
from cosquant_lite import course, offline


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The archive's folder, with the wheel of setuptools standing in for the several GB of them all."""
    here = tmp_path_factory.mktemp("room")
    if subprocess.run(["git", "rev-parse"], cwd=offline.ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    with pytest.MonkeyPatch.context() as patch:
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
        patch.setattr(
            offline, "wheels", lambda folder: subprocess.run([*words, str(folder), "setuptools>=77"], check=True)
        )
        archive = offline.pack(here / "out")
    assert [path.name for path in (here / "out").iterdir()] == [archive.name], "nothing is left beside it"
    with tarfile.open(archive) as tar:
        tar.extractall(here, filter="data")
    return here / "cosquant-lite"


def test_it_has_what_students_need_and_no_solution(unpacked):
    assert {path.name for path in (unpacked / "my-exercises").iterdir()} == set(course.assignments())
    course_has = {path.name for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (unpacked / "notebooks").glob("*.ipynb")} == course_has > set()
    assert (unpacked / "data").is_dir()
    assert (unpacked / "results" / "expected.json").exists()
    for path in unpacked.rglob("*.ipynb"):
        assert "### BEGIN" not in path.read_text("utf-8"), path
    assert not (unpacked / "tests").exists()


def test_it_installs_without_network(unpacked, tmp_path):
    words = ["--no-index", "--find-links", str(unpacked / "wheels"), "--no-deps", "--target", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *words, str(unpacked)], check=True)
    assert (tmp_path / "cosquant_lite" / "quantize.py").exists()
    planned = subprocess.run(["make", "-n", "lab"], cwd=unpacked, capture_output=True, text=True, check=True).stdout
    installs = [line for line in planned.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-index --find-links wheels" in line for line in installs)
    assert "--ServerApp.root_dir=. " in planned, "my-exercises lies beside notebooks, so Lab has to begin above both"


def test_the_wheels_are_those_that_make_installs():
    assert f'--editable ".[{offline.EXTRAS}]"' in (offline.ROOT / "Makefile").read_text("utf-8")


def test_without_git_it_says_what_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "ROOT", tmp_path)
    with pytest.raises(OSError, match="packing takes what is committed"):
        offline.pack(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
