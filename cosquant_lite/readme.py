"""The results table of README.md, from results/expected.json: `make readme` rewrites it, a test fails when it is stale."""

import json
from pathlib import Path

from cosquant_lite import report, runs

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: written by `make readme` -->", "<!-- end of results -->"


def table() -> str:
    """One Markdown row for each expected number that has a headline."""
    rows = ["| figure | what | value | tolerance | command |", "|---|---|---|---|---|"]
    for notebook, numbers in json.loads(report.EXPECTED.read_text("utf-8"))["notebooks"].items():
        for number in numbers.values():
            if "headline" in number:
                rows.append(
                    f"| {number['figure'] or 'text of ' + notebook[:2]} | {number['headline']} | {report.number(number['value'])} "
                    f"| ± {number['tolerance']:.2g} | `python -m cosquant_lite reproduce --only {notebook[:2]}` |"
                )
    return "\n".join(rows)


def with_table(text: str) -> str:
    """README text with the table between its two markers replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    runs.write_atomic(README, with_table(README.read_text("utf-8")))
