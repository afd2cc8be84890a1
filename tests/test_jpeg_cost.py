"""The script that trains in one place to see what JPEG costs."""

import json
import runpy
from pathlib import Path
from statistics import mean, variance

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "examples" / "jpeg_cost.py"))


def test_it_learns_digits_and_writes_every_epoch(tmp_path, capsys):
    words = ["--data", "embedded", "--epochs", "2", "--seeds", "0,1", "--out", str(tmp_path / "found.json")]
    assert SCRIPT["main"](words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert "not CIFAR-10" in found["source"]
    assert [len(curve) for curve in found["accuracy"]] == [2, 2]
    assert all(0.6 < curve[-1] <= 1 for curve in found["accuracy"])
    assert "not CIFAR-10: " in capsys.readouterr().out


def test_the_same_seed_has_the_same_accuracies(tmp_path):
    for name in ("first", "again"):
        assert (
            SCRIPT["main"](["--data", "embedded", "--epochs", "1", "--seeds", "0,1", "--out", str(tmp_path / name)])
            == 0
        )
    (zero, one), (zero_again, one_again) = (
        json.loads((tmp_path / name).read_text())["accuracy"] for name in ("first", "again")
    )
    assert (zero, one) == (zero_again, one_again)
    assert zero != one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--seeds", "a"], "--seeds must be whole numbers"),
        (["--data", "imagenet"], "unknown data 'imagenet'"),
        (["--out", "/"], "is a folder"),
    ],
)
def test_what_is_wrong_is_named(words, message, capsys):
    assert SCRIPT["main"](["--data", "embedded", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_page_of_results_and_notebook_06_say_what_was_measured():
    found = json.loads((ROOT / "results" / "jpeg-cost.json").read_text("utf-8"))
    assert found["source"].startswith("CIFAR-10, JPEG")
    assert [tuple(pair) for pair in found["original"]] == SCRIPT["ORIGINAL"]
    here, there = [curve[-1] for curve in found["accuracy"]], [accuracy for _, accuracy in found["original"]]
    error = (variance(here) / len(here) + variance(there) / len(there)) ** 0.5
    cost = f"{100 * (mean(there) - mean(here)):.1f} points (standard error {100 * error:.1f}"
    for file in ("results/README.md", "notebooks/06_bidirectional_cifar10.ipynb"):
        text = (ROOT / file).read_text("utf-8")
        assert cost in text, file
        assert f"{100 * mean(here):.1f} %" in text, file
        assert f"{100 * mean(there):.1f} %" in text, file
