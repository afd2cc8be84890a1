"""Runs that survive: one directory a run, named by its configuration, that can be killed at any moment and goes on.

    config.json      the configuration, what its data are, and the provenance of every session that worked on it
    rounds.jsonl     one line a finished round
    checkpoint.pt    what the next round needs (federated.Progress), written after each round
    lock             held while a process works here; the system lets go of it when the process dies

A directory copied to another machine goes on there.
"""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from cosquant_lite import datasets, runs
from cosquant_lite.datasets import Images, Volumes
from cosquant_lite.federated import FedConfig, Progress, device_name, rounds, usable


def directory(root: Path, config: FedConfig) -> Path:
    """Where a run lives: a name for people, and 12 hexadecimal digits of the configuration's SHA-256."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
    links = f"{config.down}-{config.up}".translate(str.maketrans(":,=.", "____"))
    return root / f"{config.dataset}-{links}-seed{config.seed}-{digest}"


def resume(
    folder: Path, config: FedConfig, data: Images | Volumes, workers: int = 0, device: str = "cpu"
) -> Iterator[dict]:
    """Yield the record of each round, first those that are stored, then new ones as they are finished and stored.

    workers, device: as in `federated.rounds`. FloatingPointError if it diverged, now or in an earlier session. ValueError
    if the folder holds a run of another configuration or of other data. OSError if the folder cannot be written, or another process works in it; what was stored stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is working on {folder}; wait for it, or stop it") from None
    try:
        about = _about(folder, config, data)
        records, progress = _load(folder)
        yield from records
        if about["diverged"]:
            raise FloatingPointError(about["diverged"])
        if len(records) >= config.rounds:
            return
        usable(device)
        about["sessions"].append({"device": device_name(device), **runs.provenance()})
        runs.write_json(folder / "config.json", about)
        for finished in rounds(config, data, progress, workers, device):
            _append(folder / "rounds.jsonl", finished.record)
            _save(folder / "checkpoint.pt", finished.progress)
            yield finished.record
    except FloatingPointError as error:
        runs.write_json(folder / "config.json", {**about, "diverged": str(error)})
        raise
    finally:
        lock.release()


def _load(folder: Path) -> tuple[list[dict], Progress | None]:
    """What was finished: a line is written before its checkpoint, so the last one may have none and is dropped."""
    lines = folder / "rounds.jsonl"
    progress = _read_checkpoint(folder / "checkpoint.pt")
    done = progress.number if progress else 0
    stored = lines.read_text("utf-8").splitlines() if lines.exists() else []
    if len(stored) < done or (progress is None and len(stored) > 1):
        raise OSError(
            f"{lines} has {len(stored)} rounds, and checkpoint.pt is that of round {done}: one of the two is "
            f"missing or not from this run; put it back, or remove {folder} to begin again"
        )
    if len(stored) > done:
        runs.write_atomic(lines, "".join(line + "\n" for line in stored[:done]))
    return [json.loads(line) for line in stored[:done]], progress


def _read_checkpoint(file: Path) -> Progress | None:
    if not file.exists():
        return None
    try:
        return Progress(**torch.load(file, weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError, TypeError) as error:
        why = str(error).splitlines()[0] if str(error) else "it is empty"
        raise OSError(f"{file} is damaged: {why}; remove {file.parent} to begin again") from None


def _append(file: Path, record: dict) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _save(file: Path, progress: Progress) -> None:
    buffer = io.BytesIO()
    torch.save(vars(progress), buffer)
    runs.write_atomic(file, buffer.getvalue())


def _about(folder: Path, config: FedConfig, data: Images | Volumes) -> dict:
    """What config.json says, or will say. ValueError if it says something else."""
    file, mine = folder / "config.json", {"config": asdict(config), **datasets.about(data)}
    if not file.exists():
        return {**mine, "diverged": None, "sessions": []}
    stored = runs.read_json(file)
    for key, value in mine.items():
        if stored[key] != value:
            raise ValueError(f"{folder} holds a run with the {key} {stored[key]!r}, not {value!r}; take another folder")
    return {"diverged": None, **stored}
