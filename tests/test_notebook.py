"""What the first and last lines of every notebook do: parameters are checked, cells can be run again."""

import json
import math

import matplotlib.pyplot as plt
import pytest

from cosquant_lite import notebook


@pytest.fixture
def run(tmp_path):
    return notebook.start("03_error_analysis", "quick", 0, "embedded", str(tmp_path))


def shown(run, source: str) -> None:
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    run.show(fig, "line", "a line", source)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"profile": "fast"}, "unknown profile 'fast'; allowed: quick, full"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
    ],
)
def test_parameters_that_cannot_be_met_are_refused(tmp_path, given, named):
    settings = {"profile": "quick", "seed": 0, "data": "embedded", "out": str(tmp_path)} | given
    with pytest.raises(ValueError, match=named):
        notebook.start("03_error_analysis", **settings)


def test_a_cell_that_runs_again_replaces_what_it_showed_and_recorded(run, tmp_path):
    for source, value in (("first", 1.0), ("second", 2.0)):
        shown(run, source)
        assert run.record("slope", value, figure="line") == value
    record = json.loads((tmp_path / "records" / "03_error_analysis.json").read_text())
    assert record["figures"] == [{"name": "03-line", "alt": "a line", "source": "second"}]
    assert record["values"] == [{"key": "slope", "value": 2.0, "figure": "03-line"}]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"03-line.png", "03-line.svg"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_recorded(run, value):
    with pytest.raises(ValueError, match=f"slope is {value}: not a number to record"):
        run.record("slope", value)
    assert run.values == []


def test_a_number_belongs_to_a_figure_that_was_shown(run):
    shown(run, "here")
    with pytest.raises(ValueError, match=r"no figure 'circle' was shown; there are \['line'\]"):
        run.record("slope", 1.0, figure="circle")
