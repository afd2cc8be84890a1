"""Every notebook through papermill in the quick profile, twice: the numbers are as expected and the same both times."""

import json
import re
import subprocess
import sys

import pytest

from cosquant_lite.reproduce import all_notebooks

NAMES = [path.stem for path in all_notebooks()]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Output folders of two `reproduce` commands, run at the same time."""
    outs = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    command = [sys.executable, "-m", "cosquant_lite", "reproduce", "--data", "embedded", "--out"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, str(out)], **options) for out in outs]
    for process in processes:
        printed, _ = process.communicate(timeout=900)
        assert process.returncode == 0, printed
    return outs


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_as_expected_and_equal(two_runs, name):
    rows = [row for row in json.loads((two_runs[0] / "report.json").read_text())["rows"] if row["notebook"] == name]
    assert {row["verdict"] for row in rows} == {"ok"}, "every recorded number has an expected value"
    first, second = (json.loads((out / "records" / f"{name}.json").read_text()) for out in two_runs)
    assert first["values"] == second["values"]
    assert first["figures"] == second["figures"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_written_with_alt_text_and_identical_svg(two_runs, name):
    page = (two_runs[0] / "report.html").read_text()
    for figure in json.loads((two_runs[0] / "records" / f"{name}.json").read_text())["figures"]:
        assert (two_runs[0] / "figures" / f"{figure['name']}.png").stat().st_size > 5000
        first, second = ((out / "figures" / f"{figure['name']}.svg").read_bytes() for out in two_runs)
        assert first == second
        assert re.search(rf"<img src='figures/{figure['name']}.svg' alt='[^']{{40,}}'>", page)
