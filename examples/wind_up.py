"""Are the weights that a clip on the way down cuts pushed away from zero, steadily, or do they only wander?

In the set-up of the paper's group, at the start of its 2,000 rounds, where the step is large. At the start of a window
the entries of each large tensor are ranked by magnitude: "cut" are those that the next message clips, "largest" a
twentieth of these, "next" as many as "cut" just below. Over the window's rounds the server's steps away from zero are
added up. Where nothing pushes, an entry wanders: the sum of its steps is as often positive as negative, and the sum
divided by the root of the sum of their squares is 0 in the mean. Steps that are all the same would make it the root of
the number of rounds. The same entries in a run without a clip say what is the clip's part.

example: python examples/wind_up.py --out results/two-networks/wind-up.json
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cosquant_lite import experiments, runs
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds

CLIP = 0.01
NAMES = "cosine-2-down-8", "cosine-2-down-8-noclip"
STARTS, LENGTH = (20, 60, 100), 20  # rounds
LARGE = "conv2.weight", "conv3.weight", "fc1.weight"


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, print and write what was found."""
    parser = argparse.ArgumentParser("python examples/wind_up.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="full", help="of the runs (default: full)")
    parser.add_argument("--only", default=",".join(NAMES), help=f"experiments (default: {','.join(NAMES)})")
    parser.add_argument("--seeds", default="0", help="separated by commas (default: 0)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result (default: none)")
    args = parser.parse_args(argv)
    try:
        if args.out:
            runs.check_writable(args.out)
        rows = []
        for seed in experiments.seeds(args.seeds):
            for name in args.only.split(","):
                rows += [
                    {"name": name, "seed": seed, **row} for row in measure(experiments.config(name, args.profile, seed))
                ]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{'steps away from zero':64}{'entries':>8}{'size / cut':>11}{'positive':>9}{'steadiness':>11}{'sum / cut':>10}"
    )
    for row in rows:
        title = f"{row['name']:24}{row['tensor']:14}{row['group']}, rounds {row['from']} to {row['to']}"
        print(f"{title:64}{row['entries']:8}{row['size']:11.2f}{row['positive']:9.0%}", end="")
        print(f"{row['steadiness']:11.2f}{row['moved']:10.2f}")
    if args.out:
        command = f"python examples/wind_up.py --profile {args.profile} --only {args.only} --seeds {args.seeds}"
        runs.write_json(args.out, {"clip": CLIP, **runs.provenance(), "command": command, "rows": rows})
    return 0


def measure(config: FedConfig) -> list[dict]:
    """A row for each window, large tensor and group of entries."""
    data, last = load_data(config.dataset, config.data), max(STARTS) + LENGTH
    steps = rounds(config, data)
    path = [step for step, _ in zip(steps, tqdm(range(last), disable=not sys.stderr.isatty()))]
    rows = []
    for start in STARTS:
        ends = [{"round": start + more, **_accuracies(path[start + more - 1].record)} for more in (0, LENGTH)]
        window = [step.progress.weights for step in path[start - 1 : start + LENGTH]]
        for tensor in LARGE:
            for group, found in pushes([state[tensor] for state in window]).items():
                about = {"tensor": tensor, "group": group, "from": start + 1, "to": start + LENGTH}
                rows.append({**about, **found, "ends": ends})
    return rows


def _accuracies(record: dict) -> dict:
    """Of the server's weights and of what clients receive, in %; None in rounds that were not measured."""
    return {key: record[key] and 100 * record[key] for key in ("accuracy", "received")}


def pushes(path: Iterable[Tensor]) -> dict[str, dict]:
    """Of the entries of a tensor that are cut at the start of its path, of the largest of them, and of as many just below:
    how steadily and how far they move away from zero along the path.

    size: their mean magnitude at the start, in units of the cut. steadiness: mean of sum / root of the sum of squares.
    moved: mean sum, in units of the cut. positive: share of sums.
    """
    first, *later = [state.double().flatten() for state in path]
    size, order = first.abs().sort(descending=True)
    count = int(CLIP * len(first))
    steps = torch.stack(later).diff(dim=0, prepend=first[None]) * first.sign()
    total, length = steps.sum(0), steps.square().sum(0).sqrt()
    found = {}
    groups = {"largest": order[: -(-count // 20)], "cut": order[:count], "next": order[count : 2 * count]}
    for group, chosen in groups.items():
        found[group] = {
            "entries": len(chosen),
            "size": float(first[chosen].abs().mean() / size[count]),
            "positive": float((total[chosen] > 0).double().mean()),
            "steadiness": float((total[chosen] / length[chosen]).mean()),
            "moved": float(total[chosen].mean() / size[count]),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
