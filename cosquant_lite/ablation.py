"""What the cosine, the clip, the rounding, the rotation and the scale do to accuracy, one at a time, on real CIFAR-10.

example: python -m cosquant_lite.ablation --seeds 0,1,2 --out results/ablation
Every cell is an up link. A quantizer that lengthens or shortens updates is a larger or smaller server step in disguise,
so each cell first gets the server step of STEPS that has the smallest training loss after short runs (with a seed of
their own; no test image is looked at). Then all cells run with each seed. The clients' step size falls to zero along a
cosine: without that, a large step makes accuracy jump from round to round, and the training loss, which clients report
after they have begun to repair the jump, does not show it. Finished runs are only read, interrupted ones go on.
Twelve rounds can take a step for the best that is too long for sixty: --step runs cells with another one (notebook 08).
"""

import argparse
import itertools
import math
import sys
from dataclasses import asdict
from pathlib import Path

from cosquant_lite import experiments, reference, runs, store
from cosquant_lite.datasets import Images, load_data
from cosquant_lite.federated import FedConfig
from cosquant_lite.link import parse_link

STOCHASTIC, PLAIN, FITTED = "rounding=stochastic", "clip=0", "clip=auto,scale=mse"
CELLS = {
    "float32": "none",
    **{  # two bits: each thing alone, with the cosine and with even levels
        f"{quantizer}-2{name}": f"{quantizer}:2{options}"
        for quantizer in ("cosine", "uniform")
        for name, options in {
            "": "",  # the paper's: clip 1 %, nearest
            "-stochastic": f",{STOCHASTIC}",
            "-noclip": f",{PLAIN}",
            "-noclip-stochastic": f",{PLAIN},{STOCHASTIC}",
            "-rotated": ",rotate=hadamard",
            "-mse": ",scale=mse",
            "-auto-mse": f",{FITTED}",
        }.items()
    },
    "uniform-2-noclip-stochastic-rotated": f"uniform:2,{PLAIN},{STOCHASTIC},rotate=hadamard",  # baseline U + R of v2
    "cosine-1": "cosine:1",  # at one bit even levels and the cosine are the same two numbers
    "cosine-1-mse": "cosine:1,scale=mse",
    "cosine-1-rotated-mse": "cosine:1,scale=mse,rotate=hadamard",  # nearly DRIVE
    "cosine-1-stochastic": f"cosine:1,{STOCHASTIC}",
    "cosine-4": "cosine:4",
    "uniform-4": "uniform:4",
    "uniform-4-noclip-stochastic": f"uniform:4,{PLAIN},{STOCHASTIC}",
    "eden-2": "eden:2,rotate=hadamard",
}
RUN = {"data": "real", "rounds": 60, "lr_schedule": "cosine", "evaluate_every": 20}  # else FedConfig's defaults: E = 1
STEPS, FIRST = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0), 2.0
SEARCH = {"rounds": 12, "evaluate_every": 12, "seed": 1000}
RESULTS = runs.RESULTS / "ablation"  # the committed runs
NOTHING = 2.2  # a training loss above it has learnt nothing: guessing has ln(10) = 2.303
GUESSING = 10.0  # % accuracy of a network that has learnt nothing
LATE = 4  # rounds at the end of a search run over which the loss is averaged


def configuration(cell: str, **others) -> FedConfig:
    """That of a cell's runs. ValueError lists the names."""
    runs.check_choice("cell", cell, tuple(CELLS))
    return FedConfig(**{**RUN, "up": CELLS[cell], **others})


def search(cell: str, data: Images, root: Path, device: str) -> dict:
    """Mean training loss at the end of a short run for the server steps that were tried, and the best step.

    From FIRST down to the first step that learns at all, then to the better neighbour, until both are worse. ValueError
    if none learns.
    """
    losses: dict[float, float] = {}

    def loss(step: float) -> float:
        if step not in losses:
            settings = configuration(cell, server_lr=step, **SEARCH)
            label = f"{cell}, server step {step}"
            records, diverged = experiments.finish(settings, store.directory(root, settings), data, label, device)
            losses[step] = math.inf if diverged else sum(record["loss"] for record in records[-LATE:]) / LATE
        return losses[step]

    at = STEPS.index(FIRST)
    while loss(STEPS[at]) > NOTHING:
        if at == 0:
            raise ValueError(f"{cell} learns nothing with any server step from {FIRST} down to {STEPS[0]}")
        at -= 1
    best = None
    while at != best:
        best, at = at, min(range(max(at - 1, 0), min(at + 2, len(STEPS))), key=lambda i: loss(STEPS[i]))
    return {"losses": {step: None if math.isinf(x) else x for step, x in losses.items()}, "step": STEPS[best]}


def steps(cells: list[str], data: Images, root: Path, out: Path, device: str) -> dict[str, float]:
    """The server step of each cell; steps.json keeps what is found, and cells that are in it are not searched again."""
    file = out / "steps.json"
    about = {"grid": list(STEPS), "run": RUN, "search": SEARCH}
    kept = runs.read_json(file) if file.exists() else {**about, "cells": {}}
    if not isinstance(kept, dict) or {key: kept.get(key) for key in about} != about:
        raise ValueError(f"{file} is of another search; take another --out")
    for cell in cells:
        if cell not in kept["cells"]:
            kept["cells"][cell] = {**search(cell, data, root, device), **runs.provenance()}
            runs.write_json(file, kept)
            print(
                f"{cell}: server step {kept['cells'][cell]['step']}, losses {kept['cells'][cell]['losses']}", flush=True
            )
    return {cell: kept["cells"][cell]["step"] for cell in cells}


def pairs(option: str, before: str, after: str) -> list[tuple[str, str]]:
    """Cells that differ in one option and nothing else: (one that has `before`, one that has `after`).

    option: quantizer, bits, clip, rounding, rotate or scale; before, after: as a link string says it.
    """
    said = {cell: _options(link) for cell, link in CELLS.items()}
    return [
        (one, other)
        for one in CELLS
        for other in CELLS
        if said[one].get(option) == before and said[other] == said[one] | {option: after}
    ]


def _options(link: str) -> dict[str, str]:
    """All that a link string says, defaults filled in."""
    parsed = parse_link(link)
    if parsed.quantizer is None:
        return {}
    own = {key: value for key, value in asdict(parsed.quantizer).items() if key != "range"}  # symmetric in all cells
    said = {"quantizer": link.partition(":")[0], **own, "rotate": parsed.rotate}
    return {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in said.items()}


def accuracies(folder: Path = RESULTS) -> dict[str, dict[int, float]]:
    """Accuracy in % after the last round, by cell and by seed; NaN where the run is lost: it diverged, or only guesses.

    Cells without runs are left out.
    """
    found = {cell: reference.load(cell, "iid", folder) for cell in CELLS if reference.has(cell, "iid", folder)}
    return {
        cell: {result["config"]["seed"]: _accuracy(result) for result in results} for cell, results in found.items()
    }


def _accuracy(result: dict) -> float:
    accuracy = math.nan if result["diverged"] else 100 * result["rounds"]["accuracy"][-1]
    return accuracy if accuracy > GUESSING else math.nan


def by_step(folder: Path = RESULTS) -> dict[str, dict[float, dict[int, float]]]:
    """Accuracies by cell, server step and seed: the searched step, and those that were run with --step."""
    found = {}
    for place in [folder, *sorted(folder.glob("step-*/"))]:
        for cell, values in accuracies(place).items():
            step = reference.load(cell, "iid", place)[0]["config"]["server_lr"]
            found.setdefault(cell, {})[step] = values
    return found


def gains(option: str, before: str, after: str, found: dict[str, dict[int, float]]) -> list[tuple[str, int, float]]:
    """Points of accuracy that a change gives: (the cell before it, seed, difference), for each pair and common seed.

    A run that is lost counts as GUESSING.
    """

    def points(cell: str, seed: int) -> float:
        return GUESSING if math.isnan(found[cell][seed]) else found[cell][seed]

    return [
        (one, seed, points(other, seed) - points(one, seed))
        for one, other in pairs(option, before, after)
        for seed in sorted(found.get(one, {}).keys() & found.get(other, {}).keys())
    ]


def main(argv: list[str] | None = None) -> int:
    """Search the steps, run the cells, write each result."""
    parser = argparse.ArgumentParser("python -m cosquant_lite.ablation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default=",".join(CELLS), help="cells, separated by commas (default: all)")
    parser.add_argument("--seeds", default="0", help="separated by commas (default: 0)")
    parser.add_argument(
        "--step", type=float, help="a server step for all instead of the searched ones; into OUT/step-STEP"
    )
    parser.add_argument("--runs", type=Path, default="build/runs", help="where runs are kept (default: build/runs)")
    parser.add_argument(
        "--out", type=Path, default="build/results/ablation", help="where results go (default: build/results/ablation)"
    )
    parser.add_argument("--device", default="cpu", help="where clients train: cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    return runs.exit_status(lambda: _study(args), "interrupted: the same command goes on")


def _study(args: argparse.Namespace) -> None:
    cells, seeds = args.only.split(","), experiments.seeds(args.seeds)
    for cell, seed in itertools.product(cells, seeds):  # an error before the training, not after it
        configuration(cell, seed=seed)
    data = load_data("cifar10", RUN["data"])
    runs.check_writable(args.out / "steps.json")
    if args.step is None:
        chosen, out = steps(cells, data, args.runs, args.out, args.device), args.out
    else:
        chosen, out = dict.fromkeys(cells, args.step), args.out / f"step-{args.step:g}"
    for seed, cell in itertools.product(seeds, cells):
        settings = configuration(cell, server_lr=chosen[cell], seed=seed)
        if not experiments.finished(out / experiments.file_name(cell, settings.split, seed), settings):
            experiments.run_and_write(cell, settings, data, args.runs, out, args.device)


if __name__ == "__main__":
    sys.exit(main())
