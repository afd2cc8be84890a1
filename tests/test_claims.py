"""The claims table: every claim has evidence, a verdict, and runs that are there."""

import json

import pytest

from cosquant_lite import runs

CLAIMS = json.loads((runs.RESULTS / "claims.json").read_text("utf-8"))["claims"]
VERDICTS = {"reproduced", "partly", "not at this scale", "not testable here"}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_a_claim_has_evidence_a_verdict_and_runs_that_exist(claim):
    assert set(claim) == {"claim", "source", "verdict", "evidence", "runs"}
    assert claim["verdict"] in VERDICTS
    assert claim["source"] in {"A", "S", "A, S"}
    assert len(claim["evidence"]) > 40
    assert all(list(runs.RESULTS.glob(f"{name}-seed*.json")) for name in claim["runs"])
    assert claim["runs"]
