"""What `reproduce` says at the end: a table on the terminal, report.json and report.html."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from cosquant_lite import runs

EXPECTED = runs.RESULTS / "expected.json"
HEAD = ("figure", "notebook", "number", "recorded", "expected", "tolerance", "seconds", "verdict")


def write(out: Path, parameters: Mapping, outcomes: list[dict]) -> list[dict]:
    """Compare, print the table, write both reports; returns the rows."""
    rows = [row for outcome in outcomes for row in compare(outcome, parameters)]
    about = {"parameters": dict(parameters), **runs.provenance()}
    runs.write_json(out / "report.json", {**about, "notebooks": outcomes, "rows": rows})
    runs.write_atomic(out / "report.html", _html(about, outcomes, rows))
    print_table(rows, outcomes)
    print(f"report: {out / 'report.html'}")
    return rows


def compare(outcome: dict, parameters: Mapping) -> list[dict]:
    """One row for each number of a notebook, recorded or expected, with a verdict."""
    if outcome["status"] != "finished":
        return []
    expected = expectations(outcome["notebook"], outcome, parameters)
    recorded = {value["key"]: value for value in outcome["values"]}
    rows = []
    for key in [*recorded, *(key for key in expected if key not in recorded)]:
        value, target = recorded.get(key, {}).get("value"), expected.get(key, {})
        rows.append({
            "figure": recorded.get(key, {}).get("figure", ""), "notebook": outcome["notebook"], "number": key,
            "recorded": value, "expected": target.get("value"), "tolerance": target.get("tolerance"),
            "seconds": outcome["seconds"], "verdict": _verdict(value, target),
        })  # fmt: skip
    return rows


def expectations(notebook: str, outcome: Mapping, parameters: Mapping) -> dict:
    """What results/expected.json expects of a notebook; empty for settings that it does not cover."""
    expected = json.loads(EXPECTED.read_text("utf-8"))
    settings = {"profile": outcome["profile"], "seed": outcome["seed"], "data": outcome["data"]}
    extra = set(parameters) - {"profile", "seed", "data"}
    return expected["notebooks"].get(notebook, {}) if settings == expected["settings"] and not extra else {}


def passed(outcomes: list[dict], rows: list[dict]) -> bool:
    """False if a number is off or missing, or a notebook failed or did not finish."""
    whole = all(outcome["status"] in ("finished", "not run") for outcome in outcomes)
    return whole and all(row["verdict"] not in ("OFF", "MISSING") for row in rows)


def print_table(rows: list[dict], outcomes: list[dict]) -> None:
    """The rows in columns, then a line for each notebook that has none."""
    table = [HEAD, *([_cell(row[column]) for column in HEAD] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for outcome in outcomes:
        if outcome["status"] != "finished":
            print(f"{outcome['notebook']}: {outcome['status']}")
    counts = {
        verdict: sum(row["verdict"] == verdict for row in rows)
        for verdict in ("ok", "OFF", "MISSING", "no expectation")
    }
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    if counts["no expectation"]:
        print("expected values exist for profile quick, seed 0 and embedded data only: the others were NOT compared")


def _verdict(value: float | None, target: Mapping) -> str:
    if value is None:
        return "MISSING"
    if not target:
        return "no expectation"
    return "ok" if abs(value - target["value"]) <= target["tolerance"] else "OFF"


def number(value: float) -> str:
    """A recorded value for reading: four digits, whole numbers in full."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"


def _cell(value) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>cosquant-lite: report</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}
 h1, h2 {{ line-height: 1.2 }} h2 {{ margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem }}
 figure {{ margin: 1.5rem 0 }} figure img {{ max-width: 100%; height: auto }}
 figcaption {{ color: #444; font-size: .9rem; max-width: 46rem }}
 .scroll {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: .9rem }}
 th, td {{ padding: .25rem .75rem .25rem 0; text-align: left; border-bottom: 1px solid #eee; vertical-align: top }}
 td.n {{ text-align: right; font-variant-numeric: tabular-nums }} .bad {{ color: #a00; font-weight: bold }}
 dl {{ display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; font-size: .9rem }} dd {{ margin: 0 }}
</style></head><body>
<h1>cosquant-lite: every figure and its numbers</h1>
<p>{summary}</p>
<dl>{about}</dl>
{sections}
</body></html>
"""


def _html(about: Mapping, outcomes: list[dict], rows: list[dict]) -> str:
    counts = [sum(row["verdict"] == verdict for row in rows) for verdict in ("ok", "OFF", "MISSING", "no expectation")]
    summary = (
        "{} numbers within tolerance, {} off, {} missing, {} without an expected value for these settings.".format(
            *counts
        )
    )
    facts = {"parameters": about["parameters"], "commit": about["commit"], "python": about["python"],
             "platform": about["platform"], "packages": about["packages"]}  # fmt: skip
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_words(value))}</dd>" for name, value in facts.items())
    sections = "\n".join(
        _section(outcome, [row for row in rows if row["notebook"] == outcome["notebook"]]) for outcome in outcomes
    )
    return PAGE.format(summary=summary, about=listed, sections=sections)


def _section(outcome: dict, rows: list[dict]) -> str:
    name = escape(outcome["notebook"])
    if outcome["status"] != "finished":
        return f"<h2>{name}</h2><p class='bad'>{outcome['status']}</p><pre>{escape(outcome['error'])}</pre>"
    figures = "".join(
        f"<figure><img src='figures/{figure['name']}.svg' alt='{escape(figure['alt'], quote=True)}'>"
        f"<figcaption><b>{figure['name']}</b>: {escape(figure['alt'])} <i>Data: {escape(figure['source'])}.</i></figcaption></figure>"
        for figure in outcome["figures"]
    )
    link = f"<p><a href='notebooks/{name}.ipynb'>executed notebook</a>, {outcome['seconds']} s, data: {outcome['data']}</p>"
    return f"<h2>{name}</h2>{link}{_table(rows)}{figures}"


def _table(rows: list[dict]) -> str:
    columns = ("number", "figure", "recorded", "expected", "tolerance", "verdict")
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_td(column, row[column]) for column in columns) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _td(column: str, value) -> str:
    kind = "n" if isinstance(value, float) else "bad" if value in ("OFF", "MISSING") else ""
    return f"<td class='{kind}'>{escape(_cell(value))}</td>"


def _words(value) -> str:
    return ", ".join(f"{name} {word}" for name, word in value.items()) if isinstance(value, Mapping) else str(value)
