"""Every notebook through papermill in the quick profile, twice: the numbers are as expected and the same both times."""

import json
import re

import pytest

from cosquant_lite.reproduce import all_notebooks, reproduce


@pytest.fixture(scope="module", params=all_notebooks(), ids=lambda path: path.stem)
def two_runs(request, tmp_path_factory):
    name, outs = request.param.stem, [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")]
    statuses = [reproduce("quick", "embedded", name, [], out, force=False) for out in outs]
    return name, statuses, outs


def test_numbers_are_as_expected_and_equal(two_runs):
    name, statuses, outs = two_runs
    assert statuses == [0, 0]
    reports = [json.loads((out / "report.json").read_text()) for out in outs]
    verdicts = {row["verdict"] for row in reports[0]["rows"]}
    assert verdicts == {"ok"}, "every recorded number has an expected value in results/expected.json"
    records = [json.loads((out / "records" / f"{name}.json").read_text()) for out in outs]
    assert records[0]["values"] == records[1]["values"]
    assert records[0]["figures"] == records[1]["figures"]


def test_figures_are_written_with_alt_text_and_identical_svg(two_runs):
    name, _, outs = two_runs
    figures = json.loads((outs[0] / "records" / f"{name}.json").read_text())["figures"]
    page = (outs[0] / "report.html").read_text()
    for figure in figures:
        assert (outs[0] / "figures" / f"{figure['name']}.png").stat().st_size > 5000
        svgs = [(out / "figures" / f"{figure['name']}.svg").read_bytes() for out in outs]
        assert svgs[0] == svgs[1]
        assert f"figures/{figure['name']}.svg" in page
    assert len(re.findall(r"<img [^>]*alt='[^']{40,}'", page)) == len(figures)
