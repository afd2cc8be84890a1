"""Runs that survive: one directory a run, named by its configuration, that can be killed at any moment and goes on.

    config.json      the configuration, what its data are, and the provenance of every session that finished a round or
                     diverged
    rounds.jsonl     one line a finished round
    checkpoint.pt    what the next round needs (federated.Progress), and the configuration; written after each round
    lock             held while a process works here; the system lets go of it when the process dies

A directory copied to another machine goes on there.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, fields
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

    workers, device: as in `federated.rounds`. FloatingPointError if it diverged, now or in an earlier session.
    ValueError if the folder holds a run of another configuration or of other data. OSError if the folder cannot be
    written, or another process works in it; what was stored stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is working on {folder}; wait for it, or stop it") from None
    try:
        about = _about(folder, config, data)
        records, progress = _load(folder, config)
        yield from records
        if about["diverged"]:
            raise FloatingPointError(about["diverged"])
        if len(records) >= config.rounds:
            return
        usable(device)
        about["sessions"].append({"device": device_name(device), **runs.provenance()})
        for finished in rounds(config, data, progress, workers, device):
            if finished.record["round"] == len(records) + 1:  # not earlier: a session may end before its first round
                runs.write_json(folder / "config.json", about)
            _append(folder / "rounds.jsonl", finished.record)
            _save(folder / "checkpoint.pt", finished.progress, config)
            yield finished.record
    except FloatingPointError as error:
        runs.write_json(folder / "config.json", {**about, "diverged": str(error)})
        raise
    finally:
        lock.release()


def done(folder: Path) -> int:
    """How many rounds are stored. OSError names a checkpoint that is damaged."""
    progress = read_checkpoint(folder / "checkpoint.pt")
    return progress.number if progress else 0


def _load(folder: Path, config: FedConfig) -> tuple[list[dict], Progress | None]:
    """What was finished: a line is written before its checkpoint, so the last one may have none and is dropped."""
    lines = folder / "rounds.jsonl"
    progress = read_checkpoint(folder / "checkpoint.pt", config)
    rounds_done = progress.number if progress else 0
    content = lines.read_bytes() if lines.exists() else b""
    stored = content.splitlines()
    if len(stored) < rounds_done or (progress is None and len(stored) > 1):
        raise OSError(
            f"{lines} has {len(stored)} rounds, and checkpoint.pt is that of round {rounds_done}: one of the two is "
            f"missing or not from this run; put it back, or remove {folder} to begin again"
        )
    records = [_record(line, number, lines) for number, line in enumerate(stored[:rounds_done], 1)]
    whole = b"".join(line + b"\n" for line in stored[:rounds_done])
    if whole != content:  # or an editor has left the last line without its end
        runs.write_atomic(lines, whole)
    return records, progress


def _record(line: bytes, number: int, file: Path) -> dict:
    """The record of round `number`, which is its line's number, too."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or record.get("round") != number:
            raise ValueError(f"it is not the record of round {number}")
    except ValueError as error:
        raise OSError(
            f"line {number} of {file} is damaged: {error}; put it back, or remove the folder to begin again"
        ) from None
    return record


def read_checkpoint(file: Path, config: FedConfig | None = None) -> Progress | None:
    """Where a run stands; None if there is no such file. OSError names one that is damaged, or of another run than config."""
    if not file.exists():
        return None
    content = io.BytesIO(file.read_bytes())
    try:
        with zipfile.ZipFile(content) as parts:  # torch takes what is there: it does not look at the checksums
            wrong = parts.testzip()
        if wrong:
            raise ValueError(f"the checksum of {wrong} is wrong")
        content.seek(0)
        kept = torch.load(content, weights_only=True)
        of = kept.pop("config", None)  # those from before 27 November 2026 have none
        progress = Progress(**kept)
        if not isinstance(progress.number, int) or not isinstance(progress.weights, dict):
            raise ValueError("it holds no weights and no number of rounds")
    except Exception as error:  # damage can lead to any
        raise OSError(f"{file} is damaged: {error}; remove {file.parent} to begin again") from None
    if config and of not in (None, asdict(config)):
        raise OSError(f"{file} is of another run; put its own back, or remove {file.parent} to begin again")
    return progress


def _append(file: Path, record: dict) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _save(file: Path, progress: Progress, config: FedConfig) -> None:
    buffer = io.BytesIO()
    torch.save({**vars(progress), "config": asdict(config)}, buffer)
    runs.write_atomic(file, buffer.getvalue())


def _about(folder: Path, config: FedConfig, data: Images | Volumes) -> dict:
    """What config.json says, or will say. ValueError if it says something else."""
    mine = {"config": asdict(config), **datasets.about(data)}
    if not (folder / "config.json").exists():
        left = [name for name in ("rounds.jsonl", "checkpoint.pt") if (folder / name).exists()]
        if left:
            raise OSError(f"{folder} has {left[0]} and no config.json; put it back, or remove {folder} to begin again")
        return {**mine, "diverged": None, "sessions": []}
    stored = read_about(folder)
    one, other = (
        {**says["config"], **{key: says.get(key) for key in mine if key != "config"}} for says in (stored, mine)
    )
    if one != other:
        differ = [f"{key} {one.get(key)!r}, not {value!r}" for key, value in other.items() if one.get(key) != value]
        raise ValueError(f"{folder} holds another run: {'; '.join(differ)}; take another folder")
    return {"diverged": None, **stored}


def read_about(folder: Path) -> dict:
    """What a run's config.json says. ValueError names one that is damaged; OSError if there is none."""
    file = folder / "config.json"
    stored = runs.read_json(file)
    if not isinstance(stored, dict) or not {"config", "source", "sessions"} <= stored.keys():
        raise ValueError(f"{file} is damaged: configuration, source or sessions are missing")
    known = {each.name for each in fields(FedConfig)}
    if not isinstance(stored["config"], dict) or not stored["config"].keys() <= known:
        raise ValueError(
            f"{file} is damaged, or of another version: unknown configuration {str(stored['config'])[:200]}"
        )
    return stored
