"""How long a federated round takes with real messages, without any, and in Flower's simulation, in one run.

The work: 10 of 100 clients, each one epoch over 500 CIFAR-10-shaped images (random pixels: the time does not depend on
them) in batches of 50, the paper's network; no accuracy is measured. With the profile "full": five epochs, momentum,
weight decay and augmentation. "Bare" is the training of the same batches by the same code, and nothing else. Every
repetition measures bare training and each round one after the other, beginning with another one each time; ratios are
taken within a repetition. Flower runs by itself, so its ratios are of medians.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from cosquant_lite import runs
from cosquant_lite.bench import processor
from cosquant_lite.datasets import Images
from cosquant_lite.experiments import PROFILES
from cosquant_lite.federated import FedConfig, device_name, make_task, rounds, train_chosen, usable
from cosquant_lite.models import initial_weights
from cosquant_lite.streams import generator
from cosquant_lite.training import Pool

LINKS = {
    "float32 both ways": {},
    "cosine 8 down, 2 up": {"down": "cosine:8", "up": "cosine:2"},
    "cosine 8 down, 2 up, ans": {"down": "cosine:8,entropy=ans", "up": "cosine:2,entropy=ans"},
}
FLOWER = re.compile(r"round (\d+): ([\d.]+) s")  # what the script prints


def bench_round(
    repeat: int, out: Path, flower: Path | None = None, device: str = "cpu", profile: str = "reference"
) -> dict:
    """Measure, print a table, write round.json. flower: a script that prints "round N: X s" for the same work on the CPU.

    device: where clients train. profile: whose local training, "reference" or "full".
    """
    check_round(repeat, flower, device, profile)
    images, settings = (
        _images(50_000),
        {**PROFILES["cifar10"][profile], "rounds": repeat + 2, "evaluate_every": repeat + 9},
    )
    measure = {"bare training": _bare(FedConfig(**settings), images, device)}
    for name, links in LINKS.items():
        if "ans" in name and not find_spec("constriction"):  # a machine without network may lack it
            print(f"{name}: not measured, constriction is not installed")
            continue
        running = rounds(FedConfig(**settings, **links), images, device=device)
        measure[name] = lambda number, running=running: next(running).record["seconds"]
    names, times = list(measure), {name: [] for name in measure}
    for number in tqdm(range(1, repeat + 2), unit="round", leave=False, disable=not sys.stderr.isatty()):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(measure[name](number))
    times = {name: taken[1:] for name, taken in times.items()}  # the first one warms up
    if flower:
        times["Flower, float32"] = _flower(flower, repeat)
    rows = [_row(name, taken, times) for name, taken in times.items()]
    print(f"{f'a round: 10 clients, E = {FedConfig(**settings).epochs}, {device}':28}{HEAD}")
    print("\n".join(map(_line, rows)))
    about = {"source": "random pixels", "threads": os.cpu_count(), "processor": processor(), "repeat": repeat}
    about |= {"profile": profile, "device": device_name(device)}
    about |= {"flwr": version("flwr")} if flower else {}
    result = {**about, "command": runs.command_line(), **runs.provenance(), "rows": rows}
    runs.write_json(out / "round.json", result)
    return result


def check_round(repeat: int, flower: Path | None, device: str, profile: str) -> None:
    """ValueError if `bench_round` cannot be called like this."""
    runs.check_choice("profile", profile, ("reference", "full"))
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, got {repeat}")
    usable(device)
    if flower and not flower.is_file():
        raise ValueError(f"no such file: {flower}")
    if flower and (profile, device) != ("reference", "cpu"):
        raise ValueError(f"flower does the work of profile 'reference' on 'cpu', not of {profile!r} on {device!r}")


def _images(n: int) -> Images:
    draws = torch.Generator().manual_seed(0)

    def some(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(256, (n, 3, 32, 32), generator=draws, dtype=torch.uint8)
        return pixels, torch.randint(10, (n,), generator=draws)

    return Images(*some(n), *some(100), tuple("abcdefghij"), "random pixels")


def _bare(config: FedConfig, images: Images, device: str) -> Callable[[int], float]:
    """A function of the round's number: the seconds that training its clients takes, from the first round's weights."""
    task = make_task(config, images, usable(device))
    weights, pool = initial_weights(task.model, config.seed), Pool(task.model, os.cpu_count())

    def seconds(number: int) -> float:
        order = torch.randperm(config.clients, generator=generator(config.seed, "sample", number))
        start = perf_counter()
        list(train_chosen(config, task, pool, weights, number, order[:10].tolist(), together=device != "cpu"))
        return perf_counter() - start

    return seconds


def _flower(script: Path, repeat: int) -> list[float]:
    """Seconds of each round from the second one on."""
    ran = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "E": "1", "ROUNDS": str(repeat + 1)},
        capture_output=True,
        text=True,
    )
    found = {int(number): float(taken) for number, taken in FLOWER.findall(ran.stdout)}
    taken = [found[number] for number in sorted(found) if number > 1]
    if ran.returncode or not taken:
        raise OSError(f"{script} failed: {(ran.stderr.strip() or ran.stdout.strip())[-300:]}")
    return taken


def _row(name: str, taken: list[float], times: dict[str, list[float]]) -> dict:
    """Seconds, fastest and median, and the ratios to bare training: median and quartiles."""
    bare = times["bare training"]
    ratios = [t / b for t, b in zip(taken, bare)]
    if name.startswith("Flower"):
        ratios = [median(taken) / median(bare)]
    low, high = np.quantile(ratios, (0.25, 0.75)).tolist()
    row = {"name": name, "fastest": min(taken), "median": median(taken)}
    return row | {"over_bare": median(ratios), "low": low, "high": high}


HEAD = f"{'fastest':>10}{'median':>10}{'over bare training':>26}"


def _line(row: dict) -> str:
    quartiles = f"({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['name']:28}{row['fastest']:8.3f} s{row['median']:8.3f} s{row['over_bare']:10.2f} {quartiles:>15}"
