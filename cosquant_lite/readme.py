"""The tables of README.md, from results/: `make readme` rewrites them, a test fails when they are stale."""

import json
from pathlib import Path

from cosquant_lite import gain, reference, report, runs

README = Path(__file__).resolve().parents[1] / "README.md"
RESULTS = "<!-- results: written by `make readme` -->", "<!-- end of results -->"
SPEED = "<!-- speed: written by `make readme` -->", "<!-- end of speed -->"
FEDERATED = "<!-- federated: written by `make readme` -->", "<!-- end of federated -->"
SHORT = "<!-- short: written by `make readme` -->", "<!-- end of short -->"
SKEWED = "<!-- skewed: written by `make readme` -->", "<!-- end of skewed -->"
FULL = "<!-- full: written by `make readme` -->", "<!-- end of full -->"
BRATS = "<!-- brats: written by `make readme` -->", "<!-- end of brats -->"
BRATS_FULL = "<!-- brats-full: written by `make readme` -->", "<!-- end of brats-full -->"
CLAIMS = "<!-- claims: written by `make readme` -->", "<!-- end of claims -->"
GAIN = "<!-- gain: written by `make readme` -->", "<!-- end of gain -->"
ROUND = "<!-- round: written by `make readme` -->", "<!-- end of round -->"
SHOWN = ("cosine 1, clip 1 %", "cosine 2, clip 1 %", "cosine 4, clip 1 %", "cosine 4, no clip", "cosine 8, no clip",
                 "cosine 2, clip 1 %, deflate", "cosine 2, clip 1 %, ans", "torch definition 4, clip 1 %", "hivemind uniform 8",
                 "bitsandbytes blockwise 8", "bitsandbytes nf4", "openfl EDEN 4", "fedlab QSGD 2")  # fmt: skip


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


def speed() -> str:
    """The rows of the committed benchmark that matter to a reader."""
    result = json.loads((runs.RESULTS / "bench.json").read_text("utf-8"))
    found = {row["name"]: row for row in result["rows"]}
    rows = [
        "| codec | encode, GB/s | decode, GB/s | bits stored per weight | normalised error |",
        "|---|---|---|---|---|",
    ]
    copy = max(row["copy"] for row in result["rows"] if not row["error"])
    rows.append(f"| `numpy.copyto` | {copy:.1f} | {copy:.1f} | 32 | 0 |")
    for name in SHOWN:
        row = found[name]
        rows.append(f"| {name} | {row['encode']:.2g} | {row['decode']:.2g} | {row['bits']:.2f} | {row['nmse']:.2g} |")
    return "\n".join(rows)


def one_round() -> str:
    """How long a federated round takes, from the committed benchmark."""
    rows = ["| a round of ten clients, E = 1 | median, s | over bare training (quartiles) |", "|---|---|---|"]
    for row in json.loads((runs.RESULTS / "round.json").read_text("utf-8"))["rows"]:
        quartiles = f" ({row['low']:.2f} to {row['high']:.2f})" if row["low"] < row["high"] else ""
        rows.append(f"| {row['name']} | {row['median']:.1f} | {row['over_bare']:.2f}{quartiles} |")
    return "\n".join(rows)


def claims() -> str:
    """What the committed runs say about each claim of the paper: in short, and folded the evidence."""
    short, whole = ["| claim | source | here | in short |", "|---|---|---|---|"], []
    for claim in json.loads((runs.RESULTS / "claims.json").read_text("utf-8"))["claims"]:
        names = ", ".join(f"`{name}`" for name in claim["runs"])
        short.append(f"| {claim['claim']} | {claim['source']} | **{claim['verdict']}** | {claim['short']} |")
        whole.append(f"**{claim['claim']}** *{claim['verdict']}.* {claim['evidence']} ({names})")
    evidence = [
        "<details>",
        "<summary>The evidence, and the runs in results/ behind it</summary>",
        *whole,
        "</details>",
    ]
    return "\n".join(short) + "\n\n" + "\n\n".join(evidence)


def with_tables(text: str) -> str:
    """README text with each table between its two markers replaced."""
    tables = {
        RESULTS: table(),
        FEDERATED: reference.table(),
        SHORT: reference.short_table(),
        SKEWED: reference.skewed_table(),
        FULL: reference.full_table(),
        BRATS: reference.brats_table(),
        BRATS_FULL: reference.brats_table(reference.BRATS_FULL, "iid"),
    }
    tables |= {GAIN: gain.table(), SPEED: speed(), ROUND: one_round(), CLAIMS: claims()}
    for (begin, end), content in tables.items():
        before, rest = text.split(begin)
        text = before + begin + "\n" + content + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    runs.write_atomic(README, with_tables(README.read_text("utf-8")))
