"""Which network does a two-way run leave behind? The server's own weights, the same after a clip alone, and as received.

A clip of 1 % cuts the largest entries of each tensor down to the next largest, without quantizing anything. If that
alone makes of the server's weights what the clients have, the difference lies in the entries that are cut. Other shares
than 1 % say in how many of them.

example: python examples/clip_only.py build/runs/cifar10-cosine_8-cosine_2-seed0-* --out build/clip-only.json
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from cosquant_lite import runs, store
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, make_task
from cosquant_lite.link import parse_link, send
from cosquant_lite.quantize import statistics
from cosquant_lite.streams import generator
from cosquant_lite.training import Pool, State

CLIP = 0.01
SHARES = 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05  # of the entries that are cut, one share after the other


def main(argv: list[str] | None = None) -> int:
    """Measure the last checkpoint of each run directory on CIFAR-10; print and write accuracies and shares."""
    parser = argparse.ArgumentParser("python examples/clip_only.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="directories of runs on CIFAR-10")
    parser.add_argument("--out", type=Path, help="a JSON file for the result (default: none)")
    args = parser.parse_args(argv)
    try:
        if args.out:
            runs.check_writable(args.out)
        rows = [measure(folder) for folder in args.folders]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(f"{row['down']} down, {row['up']} up, round {row['round']:,} of {row['rounds']:,}:", end=" ")
        print(f"server {row['server']:.2%}, clipped {row['clipped']:.2%}, clients {row['clients']:.2%}")
    if args.out:
        command = " ".join(["python examples/clip_only.py", *map(str, args.folders)])
        runs.write_json(
            args.out, {"clip": CLIP, "shares": SHARES, **runs.provenance(), "command": command, "rows": rows}
        )
    return 0


def measure(folder: Path) -> dict:
    """Accuracies of the three networks, and the share of each clipped tensor's squared norm that the clip cuts off."""
    stored, progress = store.read_about(folder), store.read_checkpoint(folder / "checkpoint.pt")
    if progress is None:
        raise ValueError(f"{folder} has no checkpoint.pt")
    config = FedConfig(**stored["config"])
    if config.dataset != "cifar10":
        raise ValueError(f"{folder} is a run on {config.dataset}, not on cifar10")
    if config.down_feedback or config.down_sends != "weights":
        raise ValueError(
            f"{folder} sends differences or uses feedback down; only weights sent as they are can be measured"
        )
    data = load_data("cifar10", config.data)
    if data.source != stored["source"]:
        raise ValueError(f"{folder} is a run on {stored['source']!r}, and here is only {data.source!r}")
    own, number = progress.weights, progress.number
    cut = {name: clipped(x) for name, x in own.items()}
    received = send(own, parse_link(config.down), generator(config.seed, "down", number + 1)).state
    task = make_task(config, data, torch.device("cpu"))
    with Pool(task.model, os.cpu_count()) as pool:
        three = {"server": own, "clipped": cut, "clients": received}
        accuracies = {who: task.measure(pool, weights)["accuracy"] for who, weights in three.items()}
        by_share = [
            task.measure(pool, {name: clipped(x, share) for name, x in own.items()})["accuracy"] for share in SHARES
        ]
    about = {
        "folder": folder.name,
        "source": data.source,
        "down": config.down,
        "up": config.up,
        "round": number,
        "rounds": config.rounds,
    }
    return {**about, **accuracies, "by_share": by_share, "cut_off": cut_off(own, cut)}


def clipped(x: Tensor, clip: float = CLIP) -> Tensor:
    """x with its floor(clip n) entries of largest magnitude cut to the next largest."""
    _, largest, *_ = statistics(x.double(), clip)
    return x.clamp(-largest, largest)


def cut_off(own: State, cut: State) -> dict[str, float]:
    """Of each tensor that is clipped: the share of its squared norm that is gone."""
    norms = {name: (float(x.square().sum()), float(cut[name].square().sum())) for name, x in own.items()}
    return {name: 1 - after / before for name, (before, after) in norms.items() if after < before}


if __name__ == "__main__":
    sys.exit(main())
