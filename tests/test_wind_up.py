"""The script that tells whether clipped weights are pushed or wander."""

import json
import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "wind_up.py"))


def a_path(step, rounds=20, n=10_000):
    """Weights that all change by step(generator) a round."""
    draws = torch.Generator().manual_seed(0)
    path = [torch.randn(n, generator=draws)]
    for _ in range(rounds):
        path.append(path[-1] + step(path[0], draws))
    return path


def test_entries_that_wander_are_at_chance():
    found = SCRIPT["pushes"](a_path(lambda first, draws: 0.01 * torch.randn(len(first), generator=draws)))
    for group in ("cut", "next"):
        assert found[group]["entries"] == 100
        assert abs(found[group]["steadiness"]) < 0.4  # standard error 0.1
        assert abs(found[group]["positive"] - 0.5) < 0.2


def test_entries_that_are_pushed_have_the_root_of_the_rounds():
    path = a_path(lambda first, draws: 0.01 * first.sign() * (first.abs() > 2.326))  # of a Gaussian the largest 2 %
    found = SCRIPT["pushes"](path)
    cut = float(path[0].abs().sort(descending=True).values[100])
    assert found["cut"]["steadiness"] == pytest.approx(20**0.5)
    assert found["cut"]["positive"] == 1
    assert found["cut"]["moved"] == pytest.approx(0.2 / cut, rel=1e-4)
    assert found["largest"]["entries"] == 5
    assert found["largest"]["size"] == pytest.approx(float(path[0].abs().sort().values[-5:].mean()) / cut, rel=1e-6)


def test_entries_that_shrink_are_negative():
    found = SCRIPT["pushes"](a_path(lambda first, draws: -0.01 * first))
    assert found["cut"]["steadiness"] == pytest.approx(-(20**0.5))
    assert found["next"]["positive"] == 0


def test_the_command_writes_a_row_for_each_window_tensor_and_group(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SCRIPT["measure"].__globals__, "STARTS", (1, 2))
    monkeypatch.setitem(SCRIPT["measure"].__globals__, "LENGTH", 2)
    out = tmp_path / "found.json"
    assert SCRIPT["main"](["--profile", "quick", "--only", "cosine-2-down-8", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["from"], row["to"]) for row in rows[::9]] == [(2, 3), (3, 4)]
    assert rows[0]["ends"][0]["round"] == 1
    assert all(0 < end["received"] <= 100 for end in rows[0]["ends"])
    assert {row["entries"] for row in rows if row["tensor"] == "conv2.weight"} == {10, 184}
    assert "cosine-2-down-8" in capsys.readouterr().out


def test_an_unknown_experiment_is_named(capsys):
    assert SCRIPT["main"](["--only", "cosine-9"]) == 2
    assert "cosine-9" in capsys.readouterr().err
