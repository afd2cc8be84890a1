"""Runs that survive: one directory a run, named by its configuration, that can be killed at any moment and goes on.

    config.json      the configuration, the data's source, and the provenance of every session that worked on it
    rounds.jsonl     one line a finished round
    checkpoint.pt    what the next round needs (federated.Progress), written after each round
    lock             held while a process works here; the system lets go of it when the process dies

A directory copied to another machine goes on there.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from cosquant_lite import runs
from cosquant_lite.datasets import Images
from cosquant_lite.federated import FedConfig, Progress, rounds


def directory(root: Path, config: FedConfig) -> Path:
    """Where a run lives: a name for people, and 12 hexadecimal digits of the configuration's SHA-256."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
    links = f"{config.down}-{config.up}".translate(str.maketrans(":,=.", "____"))
    return root / f"{config.dataset}-{links}-seed{config.seed}-{digest}"


def resume(folder: Path, config: FedConfig, images: Images, workers: int = 0, device: str = "cpu") -> Iterator[dict]:
    """Yield the record of each round, first those that are stored, then new ones as they are finished and stored.

    workers, device: as in `federated.rounds`. OSError if the folder cannot be written, or another process works in it; what was stored stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is working on {folder}; wait for it, or stop it") from None
    try:
        records, progress = _load(folder)
        yield from records
        if len(records) >= config.rounds:
            return
        _note_session(folder, config, images, device)
        for finished in rounds(config, images, progress, workers, device):
            _append(folder / "rounds.jsonl", finished.record)
            _save(folder / "checkpoint.pt", finished.progress)
            yield finished.record
    finally:
        lock.release()


def _load(folder: Path) -> tuple[list[dict], Progress | None]:
    """What was finished: a line is written before its checkpoint, so the last one may have none and is dropped."""
    checkpoint, lines = folder / "checkpoint.pt", folder / "rounds.jsonl"
    progress = Progress(**torch.load(checkpoint, weights_only=True)) if checkpoint.exists() else None
    done = progress.number if progress else 0
    stored = lines.read_text("utf-8").splitlines() if lines.exists() else []
    runs.write_atomic(lines, "".join(line + "\n" for line in stored[:done]))
    return [json.loads(line) for line in stored[:done]], progress


def _append(file: Path, record: dict) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _save(file: Path, progress: Progress) -> None:
    buffer = io.BytesIO()
    torch.save(vars(progress), buffer)
    runs.write_atomic(file, buffer.getvalue())


def _note_session(folder: Path, config: FedConfig, images: Images, device: str) -> None:
    file = folder / "config.json"
    sessions = json.loads(file.read_text("utf-8"))["sessions"] if file.exists() else []
    about = {
        "config": asdict(config),
        "source": images.source,
        "sessions": [*sessions, {"device": device, **runs.provenance()}],
    }
    runs.write_json(file, about)
