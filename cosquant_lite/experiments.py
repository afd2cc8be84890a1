"""Named experiments and how large they are run; the command that runs a set of them and keeps the results.

example: python -m cosquant_lite.experiments --profile reference --only float32,cosine-2 --seeds 0,1,2
Results that are there stay, interrupted runs go on; each result is one JSON file, written at the end.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path

from tqdm import tqdm

from cosquant_lite import runs, store
from cosquant_lite.datasets import DATASETS, Images, Volumes, load_data
from cosquant_lite.federated import RECORD, FedConfig, deal
from cosquant_lite.models import MODELS
from cosquant_lite.task import METRICS

MINMAX = "clip=0,rounding=stochastic,range=minmax"  # the usual "linear" baseline
EXPERIMENTS = {
    "float32": {},
    "cosine-2": {"up": "cosine:2"},
    "uniform-2": {"up": "uniform:2"},  # symmetric, with the cosine's clip and rounding
    "minmax-2": {"up": f"uniform:2,{MINMAX}"},
    # from minmax-2 to uniform-2, one thing at a time: the clip, the symmetric range, nearest rounding
    "minmax-2-clip": {"up": "uniform:2,rounding=stochastic,range=minmax"},
    "uniform-2-stochastic": {"up": "uniform:2,rounding=stochastic"},
    # what could take the clip's place
    "uniform-2-noclip": {"up": "uniform:2,clip=0"},
    "minmax-2-rotated": {"up": f"uniform:2,{MINMAX},rotate=hadamard"},
    "minmax-2-channels": {"up": f"uniform:2,{MINMAX},rotate=channels"},  # as the paper's group published it, later
    "cosine-2-stochastic": {"up": "cosine:2,rounding=stochastic"},
    "cosine-1": {"up": "cosine:1"},
    # by how much one bit, two bits and the sign change a step: 2.34, 1.06 and 0.49 for the update of notebook 03
    "cosine-1-small-step": {"up": "cosine:1", "server_lr": 0.43},
    "float32-large-step": {"server_lr": 1.06},
    "sign": {"up": "sign"},
    "sign-large-step": {"up": "sign", "server_lr": 2.0},
    "sign-feedback": {"up": "sign", "up_feedback": True},  # EF-signSGD
    # "1000 times": the codes of the first, nearly the messages of the second; the third sends the largest 0.1 %, remembers the rest
    "cosine-2-mask": {"up": "cosine:2,mask=0.023"},
    "cosine-2-mask-small": {"up": "cosine:2,mask=0.008"},
    "cosine-2-top": {"up": "cosine:2,top=0.001,entropy=auto", "up_feedback": True},
    "cosine-2-down-8": {"up": "cosine:2", "down": "cosine:8"},
    "cosine-2-down-4": {"up": "cosine:2", "down": "cosine:4"},
    "uniform-2-down-4": {"up": "uniform:2", "down": "uniform:4"},  # symmetric, both ways
    "cosine-4-down-4": {"up": "cosine:4", "down": "cosine:4"},
    # what the clip does to weights: the cut ones grow where no client sees them
    "cosine-2-down-8-noclip": {"up": "cosine:2", "down": "cosine:8,clip=0"},
    "cosine-2-down-4-noclip": {"up": "cosine:2", "down": "cosine:4,clip=0"},
    "minmax-2-down-4": {"up": f"uniform:2,{MINMAX}", "down": f"uniform:4,{MINMAX}"},
    "cosine-4-down-8": {"up": "cosine:4", "down": "cosine:8"},
    "cosine-1-down-8": {"up": "cosine:1", "down": "cosine:8"},
    "uniform-2-down-8": {"up": "uniform:2", "down": "uniform:8"},
    "minmax-2-down-8": {"up": f"uniform:2,{MINMAX}", "down": f"uniform:8,{MINMAX}"},
    # with the network of the group's published code, which is not the one that our source describes
    "float32-unpadded": {"model": "cnn-unpadded"},
    "cosine-2-unpadded": {"model": "cnn-unpadded", "up": "cosine:2"},
    # one client with all images, no link: as many images as 100 rounds of ten clients and five epochs see
    "central": {"split": "iid", "clients": 1, "clients_per_round": 1, "rounds": 50, "epochs": 1, "evaluate_every": 5},
}
GROUP = {  # the paper group's CIFAR-10 set-up
    "data": "real", "epochs": 5, "momentum": 0.9, "weight_decay": 1e-4, "lr_schedule": "cosine", "augment": True,
}  # fmt: skip
BRATS = {"epochs": 3, "batch_size": 3, "momentum": 0.9, "augment": True}  # E and B of the paper
PROFILES = {
    "cifar10": {
        "quick": {  # the embedded digits: a few seconds
            "data": "embedded", "rounds": 9, "clients": 10, "clients_per_round": 4, "batch_size": 10,
        },
        "reference": {"data": "real", "rounds": 100, "evaluate_every": 5},  # E = 1, plain SGD: minutes on a CPU
        "short": {**GROUP, "rounds": 100, "evaluate_every": 10},  # cut to a twentieth: 8 to 25 minutes on two cores
        # short on unevenly dealt images; with lr 0.1 float32 itself diverges on them
        "skewed": {**GROUP, "rounds": 100, "evaluate_every": 10, "split": "dirichlet:0.5", "lr": 0.03},
        "full": {**GROUP, "rounds": 2000, "evaluate_every": 20},
    },
    "brats": {
        "quick": {  # the embedded phantom
            **BRATS, "data": "embedded", "rounds": 9, "split": "site", "clients": 4, "clients_per_round": 4,
            "epochs": 1, "batch_size": 1,
        },
        "reference": {  # 21 cases at 64^3, each site a client; E = 2 to save time on a CPU
            **BRATS, "data": "real", "rounds": 30, "split": "site", "clients": 7, "clients_per_round": 7,
            "model": "unet-small", "evaluate_every": 2, "epochs": 2,
        },
        "full": {  # the paper's set-up, as far as it is known
            **BRATS, "data": "real", "rounds": 100, "clients": 10, "clients_per_round": 10, "model": "unet-full",
        },
    },
}  # fmt: skip


def config(name: str, profile: str, seed: int = 0, dataset: str = "cifar10", **others) -> FedConfig:
    """The configuration of a named experiment. ValueError lists the names."""
    runs.check_choice("experiment", name, tuple(EXPERIMENTS))
    runs.check_choice("dataset", dataset, DATASETS)
    runs.check_choice("profile", profile, tuple(PROFILES[dataset]))
    return FedConfig(dataset, **{**PROFILES[dataset][profile], **EXPERIMENTS[name], "seed": seed, **others})


def names(dataset: str) -> list[str]:
    """Of all experiments that can be run on a data set: some say which network they train."""
    allowed = ("auto", *MODELS.get(dataset, ()))
    return [name for name, settings in EXPERIMENTS.items() if settings.get("model", "auto") in allowed]


def result(name: str, folder: Path, records: list[dict], diverged: str | None) -> dict:
    """What is committed of a run: its config.json, and one list a column; diverged: why there are no more rounds."""
    about = store.read_about(folder)
    keys = ("round", *METRICS[about["config"]["dataset"]], "received", *RECORD)
    columns = {key: [record.get(key) for record in records] for key in keys}  # received: from 26 November 2026 on
    return {"name": name, **about, "diverged": diverged, "rounds": columns}


def file_name(name: str, split: str, seed: int | str) -> str:
    """Of a result. seed: a number, or "*" for all."""
    return f"{name}-{split.replace(':', '')}-seed{seed}.json"


def finish(
    settings: FedConfig, folder: Path, data: Images | Volumes, label: str, device: str
) -> tuple[list[dict], str | None]:
    """The records of a run up to its end, and how it diverged, if it did: that is a result, too."""
    records, steps = [], store.resume(folder, settings, data, device=device)
    try:
        for record in tqdm(steps, label, settings.rounds, unit="round", disable=not sys.stderr.isatty()):
            records.append(record)
    except FloatingPointError as error:
        return records, f"round {len(records) + 1}: {error}"
    return records, None


def finished(file: Path, settings: FedConfig) -> bool:
    """Whether this is the result of a run with these settings. ValueError if it is that of another run."""
    if not file.exists():
        return False
    try:
        same = FedConfig(**runs.read_key(file, "config")) == settings  # options newer than the file: their defaults
    except TypeError:
        same = False
    if not same:
        raise ValueError(f"{file} holds another run; move it away, or take another --out")
    return True


def run_and_write(name: str, settings: FedConfig, data: Images | Volumes, root: Path, out: Path, device: str) -> None:
    """One run to its end; its result into `out`, and a line on the screen."""
    folder, label = store.directory(root, settings), f"{name}, {settings.split}, seed {settings.seed}"
    records, diverged = finish(settings, folder, data, label, device)
    runs.write_json(out / file_name(name, settings.split, settings.seed), result(name, folder, records, diverged))
    print(f"{label}: {diverged or _end(records[-1], METRICS[settings.dataset][0])}", flush=True)


def _end(record: dict, metric: str) -> str:
    own, received = record[metric], record.get("received")
    return f"{own:.2%}" if received in (None, own) else f"{own:.2%}, and {received:.2%} of what the clients receive"


def seeds(text: str) -> list[int]:
    """Of --seeds: whole numbers separated by commas. ValueError otherwise."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"--seeds must be whole numbers separated by commas, got {text!r}")
    return [int(seed) for seed in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, one after the other, and write each result."""
    parser = argparse.ArgumentParser("python -m cosquant_lite.experiments", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="quick", help="quick, reference, short, skewed or full (default: quick)")
    parser.add_argument("--dataset", default="cifar10", help="cifar10 or brats (default: cifar10)")
    parser.add_argument("--only", help="names, separated by commas (default: all)")
    parser.add_argument("--seeds", default="0", help="separated by commas (default: 0)")
    parser.add_argument("--split", help="iid, classes:2, dirichlet:0.5, site (default: the profile's)")
    parser.add_argument("--runs", type=Path, default="build/runs", help="where runs are kept (default: build/runs)")
    parser.add_argument("--out", type=Path, help="where results go (default: build/results/DATASET-PROFILE)")
    parser.add_argument("--device", default="cpu", help="where clients train: cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    return runs.exit_status(lambda: _run_all(args), "interrupted: the same command goes on")


def _run_all(args: argparse.Namespace) -> None:
    only = args.only.split(",") if args.only is not None else names(args.dataset)
    plan = []
    for seed, name in itertools.product(seeds(args.seeds), only):
        split = {} if args.split is None or name == "central" else {"split": args.split}  # one client has all there is
        plan.append((name, config(name, args.profile, seed, args.dataset, **split)))
    data = load_data(args.dataset, plan[0][1].data)  # the profile's, for all
    out = args.out or Path("build/results") / f"{args.dataset}-{args.profile}"
    for name, settings in plan:  # an error before the training, not after it
        deal(settings, data)
        file = out / file_name(name, settings.split, settings.seed)
        runs.check_writable(file)
        finished(file, settings)
    for name, settings in plan:
        file = out / file_name(name, settings.split, settings.seed)
        if finished(file, settings):
            print(f"{file} is there")
        else:
            run_and_write(name, settings, data, args.runs, out, args.device)


if __name__ == "__main__":
    sys.exit(main())
