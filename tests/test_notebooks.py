"""Every notebook through papermill in the quick profile: the numbers are as expected, and those of two the same a second time.

Their committed outputs are compared with the same run. `make test` has nbval do so once more for 00 and 01;
`pytest --nbval-lax notebooks` does it for all, in five minutes. That training repeats itself is tested in test_federated.
"""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from cosquant_lite.reproduce import all_notebooks

PATHS = {path.stem: path for path in all_notebooks()}
NAMES = list(PATHS)
TWICE = ["03_error_analysis", "08_beyond_the_paper"]  # they draw numbers, masks and rotations, and simulate clients


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Output folders of two `reproduce` commands, run at the same time: of all notebooks, and of TWICE."""
    outs = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    command = [sys.executable, "-m", "cosquant_lite", "reproduce", "--data", "embedded", "--out"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    only = [[], ["--only", ",".join(TWICE)]]
    processes = [subprocess.Popen([*command, str(out), *words], **options) for out, words in zip(outs, only)]
    for process in processes:
        printed, _ = process.communicate(timeout=3600)
        assert process.returncode == 0, printed
    return outs


def record(out, name):
    return json.loads((out / "records" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_as_expected(two_runs, name):
    rows = [row for row in json.loads((two_runs[0] / "report.json").read_text())["rows"] if row["notebook"] == name]
    assert {row["verdict"] for row in rows} == {"ok"}, "every recorded number has an expected value"


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_written_with_alt_text(two_runs, name):
    page = (two_runs[0] / "report.html").read_text()
    for figure in record(two_runs[0], name)["figures"]:
        assert (two_runs[0] / "figures" / f"{figure['name']}.png").stat().st_size > 5000
        assert re.search(rf"<img src='figures/{figure['name']}.svg' alt='[^']{{40,}}'>", page)


@pytest.mark.parametrize("name", TWICE)
def test_a_second_run_is_the_same(two_runs, name):
    first, second = (record(out, name) for out in two_runs)
    assert first["values"] == second["values"]
    assert first["figures"] == second["figures"]
    for figure in first["figures"]:
        left, right = ((out / "figures" / f"{figure['name']}.svg").read_bytes() for out in two_runs)
        assert left == right


@pytest.mark.parametrize("name", NAMES)
def test_checked_cells_print_what_is_committed(two_runs, name):
    committed, fresh = (
        [
            "".join(output["text"] for output in cell.outputs)
            for cell in nbformat.read(path, as_version=4).cells
            if "nbval-check-output" in cell.metadata.get("tags", [])
        ]
        for path in (PATHS[name], two_runs[0] / "notebooks" / f"{name}.ipynb")
    )
    assert fresh == committed
