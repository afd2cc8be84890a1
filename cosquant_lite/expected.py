"""Refresh results/expected.json after a deliberate change: `make expected`, then read the diff before committing it.

Values that follow from theory ("theory": true) are never overwritten; tolerances and reasons are kept.
"""

import json
import sys
from pathlib import Path

from cosquant_lite import report, runs


def refreshed(expected: dict, rows: list[dict]) -> dict:
    """The expectations with recorded values put in; numbers that are new get 1 % and a reason to be looked at."""
    notebooks = {}
    for row in rows:
        new = {
            "tolerance": float(f"{0.01 * abs(row['recorded'] or 0):.2g}"),
            "why": "new: choose a tolerance and say why",
        }
        old = expected["notebooks"].get(row["notebook"], {}).get(row["number"], new)
        if row["recorded"] is not None:
            recorded = float(row["recorded"])
            rounded = recorded if recorded.is_integer() else float(f"{recorded:.6g}")  # a count is kept exactly
            value = old["value"] if old.get("theory") else rounded
            notebooks.setdefault(row["notebook"], {})[row["number"]] = {**old, "value": value}
    return {**expected, "notebooks": {**expected["notebooks"], **notebooks}}


if __name__ == "__main__":
    made = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    content = refreshed(json.loads(report.EXPECTED.read_text("utf-8")), made["rows"])
    runs.write_atomic(report.EXPECTED, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
