"""The report of a run: what is compared with what, what counts as success, and what a page may hold."""

import json

import pytest

from cosquant_lite import report

SETTINGS = {"profile": "quick", "seed": 0, "data": "embedded"}


def outcome(**changed):
    values = [{"key": key, "value": value, "figure": ""} for key, value in changed.pop("values", {}).items()]
    return {
        "notebook": "00_first",
        "status": "finished",
        "seconds": 1.0,
        "error": "",
        **SETTINGS,
        "values": values,
        "figures": [],
        **changed,
    }


@pytest.fixture
def expected(tmp_path, monkeypatch):
    target = {"settings": SETTINGS, "notebooks": {"00_first": {"one": {"value": 1.0, "tolerance": 0.25}}}}
    (tmp_path / "expected.json").write_text(json.dumps(target))
    monkeypatch.setattr(report, "EXPECTED", tmp_path / "expected.json")


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.25, "ok"), (0.75, "ok"), (1.26, "OFF"), (0.7, "OFF")]
)  # as far as the tolerance, on both sides
def test_a_number_may_be_off_by_its_tolerance_either_way(expected, value, verdict):
    (row,) = report.compare(outcome(values={"one": value}), SETTINGS)
    assert row["verdict"] == verdict


@pytest.mark.parametrize("changed", [{"seed": 1}, {"profile": "full"}, {"data": "real"}])
def test_other_settings_than_the_expected_ones_are_not_compared(expected, changed):
    """What the notebook used counts, not what was asked for: "auto" may mean either."""
    (row,) = report.compare(outcome(values={"one": 9.0}, **changed), {**SETTINGS, "data": "embedded"})
    assert row["verdict"] == "no expectation"
    (row,) = report.compare(outcome(values={"one": 9.0}), {**SETTINGS, "data": "auto"})
    assert row["verdict"] == "OFF"
    (row,) = report.compare(outcome(values={"one": 9.0}), {**SETTINGS, "rounds": 3})
    assert row["verdict"] == "no expectation", "a parameter of the notebook's own was changed"


def test_whatever_did_not_finish_is_no_success():
    rows = [{"verdict": "ok"}, {"verdict": "no expectation"}]
    for status, whole in (("finished", True), ("not run", True), ("not finished", False), ("failed", False)):
        assert report.passed([outcome(), outcome(status=status)], rows) == whole
    for verdict in ("OFF", "MISSING"):
        assert not report.passed([outcome()], [*rows, {"verdict": verdict}])


def test_what_a_notebook_says_cannot_break_the_page(tmp_path):
    bad = "<b>'\"&"
    figure = {"name": "00-line", "alt": bad, "source": bad}
    report.write(tmp_path, SETTINGS, [outcome(figures=[figure]), outcome(status="failed", error=bad)])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert bad not in page
    assert page.count("&lt;b&gt;&#x27;&quot;&amp;") == 4
