"""The committed reference runs: read from results/, for the grey curves of notebooks and for README's table.

`python -m cosquant_lite.experiments --profile reference --seeds 0,1,2 --out results/cifar10` makes those of CIFAR-10,
once for each --split; `--profile short --out results/cifar10-short` those in the set-up of the paper's group, cut to
100 rounds, `--profile skewed --out results/cifar10-skewed` the same on unevenly dealt images, `--profile full --out
results/cifar10-full` whole ones, and `--dataset brats --out results/brats` the others (`--profile full --out
results/brats-full` with the large network). TWO_NETWORKS: four two-way runs once more, which also tell what clients
receive. A run that diverged is one of them. What is measured is accuracy on CIFAR-10 and mean Dice on BraTS, here in %.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosquant_lite import experiments, runs
from cosquant_lite.datasets.brats import REGIONS

CIFAR10, SHORT, SKEWED, FULL, BRATS, BRATS_FULL, TWO_NETWORKS = (
    runs.RESULTS / name
    for name in ("cifar10", "cifar10-short", "cifar10-skewed", "cifar10-full", "brats", "brats-full", "two-networks")
)
UNEVEN = "dirichlet:0.5"  # how the images of SKEWED are dealt
WANTED = (  # of the paper group's set-up, whole: the paper's comparisons up, and both ways
    "float32", "cosine-2", "cosine-1", "uniform-2", "minmax-2",
    "cosine-2-down-8", "cosine-2-down-8-noclip", "cosine-2-down-4", "cosine-4-down-4",
)  # fmt: skip
LEVEL = 55  # % accuracy up to which traffic is compared: nearly all runs get there


def load(name: str, split: str = "iid", folder: Path = CIFAR10) -> list[dict]:
    """The results of an experiment, one for each seed, in order. FileNotFoundError if there is none."""
    found = [json.loads(file.read_text("utf-8")) for file in folder.glob(experiments.file_name(name, split, "*"))]
    if not found:
        raise FileNotFoundError(f"no reference run {name!r} with split {split!r} in {folder}")
    return sorted(found, key=lambda result: result["config"]["seed"])


def megabytes(result: dict) -> np.ndarray:
    """Traffic of both directions summed over the rounds so far, in MB, after each round."""
    return np.cumsum(np.add(result["rounds"]["bytes_down"], result["rounds"]["bytes_up"])) / 1e6


def curve(results: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds that were measured, the MB until then, and accuracy or Dice in % of each seed: (seeds, rounds).

    Ends where the first of the seeds diverged.
    """
    metric = _metric(results[0])
    at = min(([i for i, x in enumerate(result["rounds"][metric]) if x is not None] for result in results), key=len)
    values = np.array([[100 * result["rounds"][metric][i] for i in at] for result in results])
    return np.array(at) + 1, np.mean([megabytes(result)[at] for result in results], axis=0), values


def late(results: list[dict], last: int = 5) -> np.ndarray:
    """Accuracy or Dice in % of each seed, mean of the last measurements (one alone jumps); NaN where the run diverged."""

    def one(result: dict) -> float:
        measured = [value for value in result["rounds"][_metric(result)] if value is not None]
        return np.nan if result["diverged"] else 100 * np.mean(measured[-last:])

    return np.array([one(result) for result in results])


def received(results: list[dict], last: int = 1) -> np.ndarray:
    """`late` of the weights that the clients receive after a round, in place of the server's own; NaN also where a run
    with a compressed down link is older than this measurement."""

    def as_received(result: dict) -> dict:
        rounds = result["rounds"]
        own = rounds[_metric(result)]
        unknown = own if result["config"]["down"] == "none" else [math.nan]
        kept = [value for value in rounds.get("received", []) if value is not None] or unknown
        return {**result, "rounds": {_metric(result): kept}}

    return late([as_received(result) for result in results], last)


def _metric(result: dict) -> str:
    return "dice" if "dice" in result["rounds"] else "accuracy"


def spread(values: np.ndarray) -> str:
    """Mean and half the range of the seeds; of one seed no range; or how many of them diverged."""
    lost = int(np.isnan(values).sum())
    if lost:
        return f"{lost} of {len(values)} diverged"
    return f"{values.mean():.1f}" + (f" ± {(values.max() - values.min()) / 2:.1f}" if len(values) > 1 else "")


def megabytes_to(level: float, results: list[dict]) -> float:
    """Traffic in MB until the accuracy is first measured at `level` % or more, mean of the seeds; NaN: not all do."""
    _, mb, accuracy = curve(results)
    if not len(mb):
        return np.nan
    reached = accuracy >= level
    return float(mb[reached.argmax(1)].mean()) if reached.any(1).all() else np.nan


def late_cases(results: list[dict]) -> np.ndarray:
    """Dice in % of each seed, hold-out case and region, mean of the last five measurements: (seeds, cases, regions).

    NaN where the run diverged.
    """

    def one(result: dict) -> np.ndarray:
        measured = [cases for cases in result["rounds"]["dice_cases"] if cases is not None]
        if result["diverged"]:
            return np.full((len(result["test_cases"]), len(REGIONS)), np.nan)
        return 100 * np.mean(measured[-5:], axis=0)

    return np.array([one(result) for result in results])


def rows(names: list[str]) -> list[dict]:
    """A row for each experiment: MB a round down and up (all clients), how many times fewer bytes than float32 both
    ways, MB to LEVEL % accuracy with the data dealt out evenly ("" without such a run), the accuracies with each split,
    and how many seeds each has."""
    whole, table = _traffic("float32"), []
    for name in names:
        found = {split: load(name, split) if has(name, split) else [] for split in ("iid", "classes:2")}
        down, up = _traffic(name, next(split for split, results in found.items() if results))
        row = {"name": name, "down": down, "up": up, "fewer": sum(whole) / (down + up)}
        row["to level"] = megabytes_to(LEVEL, found["iid"]) if found["iid"] else ""
        row["seeds"] = " and ".join(dict.fromkeys(str(len(results)) for results in found.values() if results))
        table.append(row | {split: spread(late(results)) if results else "" for split, results in found.items()})
    return table


def _traffic(name: str, split: str = "iid", folder: Path = CIFAR10) -> tuple[float, float]:
    """MB of a round, down and up."""
    rounds = load(name, split, folder)[0]["rounds"]
    return tuple(sum(rounds[key]) / max(len(rounds[key]), 1) / 1e6 for key in ("bytes_down", "bytes_up"))


def has(name: str, split: str, folder: Path = CIFAR10) -> bool:
    """Whether there is a reference run of this experiment and split."""
    return any(folder.glob(experiments.file_name(name, split, "*")))


def table() -> str:
    """README's table of the reference runs on real CIFAR-10."""
    lines = [
        f"| run | down, MB a round | up, MB a round | times fewer bytes | MB to {LEVEL} % | accuracy, % | with 2 classes a client, % | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows([name for name in experiments.EXPERIMENTS if has(name, "iid") or has(name, "classes:2")]):
        traffic = f"{row['down']:.2f} | {row['up']:.2f} | {row['fewer']:.1f} | {reached(row['to level'])}"
        lines.append(f"| {row['name']} | {traffic} | {row['iid']} | {row['classes:2']} | {row['seeds']} |")
    return "\n".join(lines)


def short_table() -> str:
    """README's table of the runs in the set-up of the paper's group, cut to 100 rounds."""
    return _group_table(SHORT, 100, [name for name in experiments.EXPERIMENTS if has(name, "iid", SHORT)])


def skewed_table() -> str:
    """README's table of the same on unevenly dealt images."""
    return _group_table(SKEWED, 100, [name for name in experiments.EXPERIMENTS if has(name, UNEVEN, SKEWED)], UNEVEN)


def full_table() -> str:
    """README's table of that set-up, whole; with the runs that are still missing."""
    return _group_table(FULL, 2000, WANTED)


def _group_table(folder: Path, rounds: int, names: Sequence[str], split: str = "iid") -> str:
    lines = [
        f"| run | down, MB a round | up, MB a round | accuracy after round {rounds:,}, % | of what clients receive, % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        if not has(name, split, folder):
            lines.append(f"| {name} |  |  | **not run** |  | 0 |")
            continue
        (down, up), results = _traffic(name, split, folder), load(name, split, folder)
        # one measurement is enough: the step size has fallen to nothing
        ends = f"{spread(late(results, 1))} | {_received_text(results)}"
        lines.append(f"| {name} | {down:.2f} | {up:.2f} | {ends} | {len(results)} |")
    return "\n".join(lines)


def _received_text(results: list[dict], last: int = 1) -> str:
    """`spread` of `received`, or why there is no number of its own."""
    if results[0]["config"]["down"] == "none":
        return "the same"
    arrives, ended = received(results, last), [result for result in results if not result["diverged"]]
    if np.isnan(arrives).sum() > len(results) - len(ended):
        return "not measured"
    seldom = any(sum(x is not None for x in result["rounds"]["received"]) < last for result in ended)
    return spread(arrives) + (" (last round)" if seldom else "")


def brats_rows(folder: Path = BRATS, split: str = "site") -> list[dict]:
    """A row for each experiment on BraTS: MB a round down and up, times fewer bytes than float32 both ways, seeds, and
    the Dice of the hold-out: mean, in each region, and the mean of what clients receive."""
    whole, rows = _traffic("float32", split, folder), []
    for name in [name for name in experiments.EXPERIMENTS if has(name, split, folder)]:
        (down, up), results = _traffic(name, split, folder), load(name, split, folder)
        row = {"name": name, "down": down, "up": up, "fewer": sum(whole) / (down + up), "seeds": len(results)}
        regions = dict(zip(REGIONS, map(spread, late_cases(results).mean(1).T)))
        rows.append(row | {"dice": spread(late(results)), **regions, "received": _received_text(results, 5)})
    return rows


def brats_table(folder: Path = BRATS, split: str = "site") -> str:
    """README's table of the reference runs on real BraTS cases."""
    heads = " | ".join(f"{region}, %" for region in REGIONS)
    lines = [
        f"| run | down, MB a round | up, MB a round | times fewer bytes | mean Dice, % | {heads} | mean Dice of what clients receive, % | seeds |"
    ]
    lines.append("|---" * (7 + len(REGIONS)) + "|")
    for row in brats_rows(folder, split):
        traffic = f"{row['down']:.1f} | {row['up']:.1f} | {row['fewer']:.1f}"
        dice = " | ".join(row[key] for key in ("dice", *REGIONS, "received"))
        lines.append(f"| {row['name']} | {traffic} | {dice} | {row['seeds']} |")
    return "\n".join(lines)


def reached(megabytes: float | str) -> str:
    """A number of MB for a table, or "not reached"; a text as it is."""
    if isinstance(megabytes, str):
        return megabytes
    return "not reached" if np.isnan(megabytes) else f"{megabytes:.0f}"
