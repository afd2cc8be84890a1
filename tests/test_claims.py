"""The claims table: every claim has evidence, a verdict, and runs that are there."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from cosquant_lite import reference, runs

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "results" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
PROGFED = {"84.67 ± 0.14", "86.77 ± 0.45"}  # as our source has them
SPREAD = re.compile(r"\d+\.\d+ ± \d+\.\d+")
CLAIMS = json.loads((runs.RESULTS / "claims.json").read_text("utf-8"))["claims"]
VERDICTS = {"reproduced", "partly", "not at this scale", "not testable here"}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_a_claim_has_evidence_a_verdict_and_runs_that_exist(claim):
    assert set(claim) == {"claim", "source", "verdict", "short", "evidence", "runs"}
    assert claim["verdict"] in VERDICTS
    assert claim["source"] in {"A", "S", "A, S"}
    assert len(claim["evidence"]) > len(claim["short"]) > 40
    assert all(list(runs.RESULTS.glob(f"{name}-seed*.json")) for name in claim["runs"])
    assert claim["runs"]


def spread(run: str) -> str:
    """Of all seeds of a run, given by its path in results/ without "-seed*.json"."""
    found = [json.loads(file.read_text("utf-8")) for file in sorted(runs.RESULTS.glob(f"{run}-seed*.json"))]
    falling = run.startswith(("ablation", "cifar10-"))  # the step size: the last measurement counts alone
    return reference.spread(reference.late(found, 1 if falling else 5))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_its_numbers_are_those_of_its_runs(claim):
    said = set(SPREAD.findall(claim["evidence"]))
    assert said <= {spread(run) for run in claim["runs"]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_spread_on_a_page_is_one_of_committed_runs(page):
    files = runs.RESULTS.glob("*/**/*-seed*.json")
    known = {spread(str(file.relative_to(runs.RESULTS)).rpartition("-seed")[0]) for file in files}
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in nbformat.reads(text, 4).cells if cell.cell_type == "markdown")
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))  # tables have tests of their own
    assert set(SPREAD.findall(prose)) <= known | PROGFED
