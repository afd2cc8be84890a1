"""A run that is killed goes on and ends as if it had not been; a second process and a full disk do no harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosquant_lite import runs, store
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds

OPTIONS = {"data": "embedded", "rounds": 5, "clients": 6, "clients_per_round": 2, "batch_size": 50,
           "up": "cosine:1", "up_feedback": True, "down": "cosine:4,rounding=stochastic"}  # fmt: skip
CONFIG = FedConfig(**OPTIONS)
SCRIPT = f"""
import sys
from pathlib import Path
from cosquant_lite import store
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig
config = FedConfig(**{OPTIONS!r})
for record in store.resume(Path(sys.argv[1]), config, load_data("cifar10", "embedded")):
    print("round", record["round"], flush=True)
"""


@pytest.fixture(scope="module")
def images():
    return load_data("cifar10", "embedded")


@pytest.fixture(scope="module")
def uninterrupted(images):
    return without_time(finished.record for finished in rounds(CONFIG, images))


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_killed_again_and_again_it_ends_with_the_same_history(tmp_path, images, uninterrupted):
    for rounds_seen in (1, 2, 1):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(rounds_seen):
            process.stdout.readline()
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 1 <= len(lines(tmp_path)) <= 5
    assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted
    assert without_time(lines(tmp_path)) == uninterrupted
    assert len(json.loads((tmp_path / "config.json").read_text())["sessions"]) >= 2


def test_a_directory_copied_to_a_bare_machine_goes_on_there(tmp_path, images, uninterrupted):
    begun = store.resume(tmp_path / "here", CONFIG, images)
    assert without_time([next(begun), next(begun)]) == uninterrupted[:2]
    begun.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "other-name")
    absent = ("monai", "nibabel", "matplotlib", "IPython", "papermill", "flwr", "constriction")
    bare = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", bare, str(tmp_path / "there" / "other-name")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert without_time(lines(tmp_path / "there" / "other-name")) == uninterrupted
    assert len(lines(tmp_path / "here")) == 2


def test_half_a_line_and_a_line_without_checkpoint_are_computed_again(tmp_path, images, uninterrupted):
    running = store.resume(tmp_path, CONFIG, images)
    next(running)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    next(running)
    running.close()
    (tmp_path / "checkpoint.pt").write_bytes(before)  # killed between the line and its checkpoint
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write('{"round": 3, "accu')
    assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted


def test_a_finished_run_is_only_read(tmp_path, images, uninterrupted):
    list(store.resume(tmp_path, CONFIG, images))
    start = time.perf_counter()
    assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted
    assert time.perf_counter() - start < 2


def test_a_second_process_says_so_and_stops(tmp_path, images):
    running = store.resume(tmp_path, CONFIG, images)
    next(running)
    other = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "another process is working on" in other.stderr
    next(running)
    assert len(lines(tmp_path)) == 2


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path, images, uninterrupted, monkeypatch):
    real, running = runs.write_atomic, store.resume(tmp_path, CONFIG, images)
    next(running)
    monkeypatch.setattr(runs, "write_atomic", full_disk)
    with pytest.raises(OSError, match="No space left"):
        next(running)
    monkeypatch.setattr(runs, "write_atomic", real)
    assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted


def full_disk(path, content):
    raise OSError(28, "No space left on device")


def test_directories_are_named_by_the_configuration(tmp_path):
    first, same, other = (store.directory(tmp_path, FedConfig(up="cosine:2", lr=lr)) for lr in (0.1, 0.1, 0.2))
    assert first == same != other
    assert "cosine_2" in first.name
    assert first.parent == tmp_path


def test_a_checkpoint_holds_all_that_the_next_round_needs(tmp_path, images):
    list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 2}), images))
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    last = list(rounds(FedConfig(**{**OPTIONS, "rounds": 2}), images))[-1].progress
    assert stored["number"] == 2
    assert all(torch.equal(stored["weights"][name], x) for name, x in last.weights.items())
    assert stored["lost_up"].keys() == last.lost_up.keys()


def test_what_belongs_to_another_run_is_refused_before_anything_is_yielded(tmp_path, images):
    list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 1}), images))
    other = replace(images, source="CIFAR-10")
    for config, data, named in (
        (CONFIG, images, "another run: rounds 1, not 5; take"),
        (FedConfig(**{**OPTIONS, "rounds": 1}), other, "another run: source '.*digits.*', not 'CIFAR-10'"),
    ):
        with pytest.raises(ValueError, match=named):
            next(store.resume(tmp_path, config, data))


def test_a_damaged_configuration_is_named(tmp_path, images):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged: Expecting"):
        next(store.resume(tmp_path, CONFIG, images))


@pytest.mark.parametrize("content", ["[]", "{}", '{"config": {"colour": 1}, "source": "", "sessions": []}'])
def test_a_configuration_that_is_none_is_named(tmp_path, images, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        next(store.resume(tmp_path, CONFIG, images))


def test_a_run_without_its_configuration_is_no_other_run(tmp_path, images):
    list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 1}), images))
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"has rounds\.jsonl and no config\.json; put it back"):
        next(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 1, "up": "sign"}), images))
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_line_is_named(tmp_path, images):
    config = FedConfig(**{**OPTIONS, "rounds": 2})
    list(store.resume(tmp_path, config, images))
    content = (tmp_path / "rounds.jsonl").read_bytes()
    for wrong in (b"{", b"\xff"):
        (tmp_path / "rounds.jsonl").write_bytes(content.replace(b'"loss"', wrong, 1))
        with pytest.raises(OSError, match=r"line 1 of .*rounds.jsonl is damaged"):
            next(store.resume(tmp_path, config, images))


@pytest.mark.parametrize(
    ("edit", "number"), [(lambda a, b: [a, a], 2), (lambda a, b: [b, a], 1), (lambda a, b: [a, "null"], 2)]
)
def test_lines_that_are_not_the_rounds_in_order_are_named(tmp_path, images, edit, number):
    config = FedConfig(**{**OPTIONS, "rounds": 2})
    list(store.resume(tmp_path, config, images))
    file = tmp_path / "rounds.jsonl"
    file.write_text("\n".join(edit(*file.read_text().splitlines())) + "\n")
    with pytest.raises(
        OSError, match=rf"line {number} of .*rounds.jsonl is damaged: it is not the record of round {number}"
    ):
        list(store.resume(tmp_path, config, images))


def test_a_last_line_without_its_end_is_still_a_line(tmp_path, images, uninterrupted):
    begun = store.resume(tmp_path, CONFIG, images)
    next(begun), next(begun)
    begun.close()
    file = tmp_path / "rounds.jsonl"
    file.write_text(file.read_text().rstrip())
    for _ in range(2):
        assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted
    assert without_time(lines(tmp_path)) == uninterrupted


def test_the_checkpoint_of_another_run_is_refused(tmp_path, images):
    for seed in (0, 1):
        begun = store.resume(tmp_path / str(seed), replace(CONFIG, seed=seed), images)
        next(begun)
        begun.close()
    shutil.copy(tmp_path / "1" / "checkpoint.pt", tmp_path / "0" / "checkpoint.pt")
    with pytest.raises(OSError, match=r"0/checkpoint.pt is of another run; put its own back"):
        next(store.resume(tmp_path / "0", CONFIG, images))


def test_a_checkpoint_of_before_they_had_the_configuration_goes_on(tmp_path, images, uninterrupted):
    begun = store.resume(tmp_path, CONFIG, images)
    next(begun)
    begun.close()
    file = tmp_path / "checkpoint.pt"
    kept = torch.load(file, weights_only=True)
    assert kept.pop("config")["seed"] == 0
    torch.save(kept, file)
    assert without_time(store.resume(tmp_path, CONFIG, images)) == uninterrupted


def test_no_flipped_bit_of_a_checkpoint_changes_a_run(tmp_path, images):
    """torch.load alone would take most of these for another state."""
    list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 1}), images))
    file = tmp_path / "checkpoint.pt"
    content, refused = file.read_bytes(), 0
    whole = torch.load(file, weights_only=True)
    draws = torch.Generator().manual_seed(0)
    for at in torch.randint(8 * len(content), (60,), generator=draws).tolist():
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        read = read_or_none(file)
        refused += read is None
        assert read is None or same(read, whole)  # some bits fill the gaps between the parts of the file
    assert refused > 30


def read_or_none(file):
    try:
        return vars(store.read_checkpoint(file))
    except OSError:
        return None


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(x, other[key]) for key, x in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_session_that_never_finished_a_round_is_not_recorded(tmp_path, images):
    with pytest.raises(ValueError, match="workers must be at least 0"):
        list(store.resume(tmp_path, CONFIG, images, workers=-1))
    assert not (tmp_path / "config.json").exists()
    next(store.resume(tmp_path, CONFIG, images))
    with pytest.raises(ValueError, match="workers must be at least 0"):
        list(store.resume(tmp_path, CONFIG, images, workers=-1))
    assert len(json.loads((tmp_path / "config.json").read_text())["sessions"]) == 1


@pytest.mark.parametrize("options", [{"down_sends": "difference"}, {"down_feedback": True}], ids=str)
def test_what_the_down_link_remembers_survives_an_interruption(tmp_path, images, options):
    config = FedConfig(**{**OPTIONS, "rounds": 4, **options})
    begun = store.resume(tmp_path, config, images)
    next(begun), next(begun)
    begun.close()
    again = without_time(store.resume(tmp_path, config, images))
    assert again == without_time(finished.record for finished in rounds(config, images))


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_or_missing_checkpoint_is_named_and_nothing_is_lost(tmp_path, images, damage):
    list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 2}), images))
    checkpoint, before = tmp_path / "checkpoint.pt", lines(tmp_path)
    content = checkpoint.read_bytes()
    checkpoint.unlink() if damage == "gone" else checkpoint.write_bytes(content[: 1000 * (damage == "cut")])
    with pytest.raises(OSError, match=r"remove .* to begin again"):
        next(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 2}), images))
    assert lines(tmp_path) == before
    checkpoint.write_bytes(content)
    assert len(list(store.resume(tmp_path, FedConfig(**{**OPTIONS, "rounds": 2}), images))) == 2


def test_a_run_that_diverged_says_so_again_and_is_not_trained_again(tmp_path, images):
    config = FedConfig(**{**OPTIONS, "lr": 1e30, "up": "none", "down": "none", "up_feedback": False})
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="the training diverged"):
            list(store.resume(tmp_path, config, images))
    about = json.loads((tmp_path / "config.json").read_text())
    assert "the training diverged" in about["diverged"]
    assert len(about["sessions"]) == 1


def test_a_round_whose_line_cannot_be_written_is_computed_again(tmp_path, images, monkeypatch):
    config, running = FedConfig(**{**OPTIONS, "rounds": 2}), None
    running = store.resume(tmp_path, config, images)
    next(running)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_append", full_disk)
        with pytest.raises(OSError, match="No space left"):
            next(running)
    assert [record["round"] for record in store.resume(tmp_path, config, images)] == [1, 2]


def test_lines_that_are_missing_are_named(tmp_path, images):
    config, lines = FedConfig(**{**OPTIONS, "rounds": 2}), tmp_path / "rounds.jsonl"
    list(store.resume(tmp_path, config, images))
    first = lines.read_bytes().splitlines(keepends=True)[0]
    for content in (first, b"", None):
        lines.unlink() if content is None else lines.write_bytes(content)
        with pytest.raises(OSError, match=r"has [01] rounds, and checkpoint.pt is that of round 2: one of the two is"):
            next(store.resume(tmp_path, config, images))


class Touch:
    """Unpickled without care, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"weights": Touch(tmp_path / "ran"), "number": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(OSError, match="is damaged"):
        store.read_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_finished_run_is_read_on_any_machine(tmp_path, images):
    """Where it was trained on a GPU, and there is none here."""
    config = FedConfig(**{**OPTIONS, "rounds": 1})
    (record,) = store.resume(tmp_path, config, images)
    assert list(store.resume(tmp_path, config, images, device="cuda:99")) == [record]
