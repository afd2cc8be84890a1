"""The ablation's table of cells, and the command that searches steps and runs cells."""

import json
import math

import pytest

from cosquant_lite import ablation
from cosquant_lite.link import parse_link


def test_cells_differ_and_are_compared_with_float32():
    configurations = {cell: ablation.configuration(cell) for cell in ablation.CELLS}
    assert configurations["float32"].up == "none"
    assert len({parse_link(each.up) for each in configurations.values()}) == len(configurations)
    assert {each.rounds for each in configurations.values()} == {60}


def test_a_wrong_name_lists_the_right_ones(capsys):
    assert ablation.main(["--only", "cosine-3"]) == 2
    assert "unknown cell 'cosine-3'; allowed: float32, cosine-2" in capsys.readouterr().err


def test_pairs_differ_in_one_option_only():
    assert ("uniform-2-noclip-stochastic", "uniform-2-stochastic") in ablation.pairs("clip", "0", "0.01")
    curve = ablation.pairs("quantizer", "uniform", "cosine")
    assert [one.replace("uniform", "cosine") for one, _ in curve] == [other for _, other in curve]
    assert len(curve) == 8
    assert ("cosine-2-mse", "cosine-2-auto-mse") in ablation.pairs("clip", "0.01", "auto")
    assert ablation.pairs("scale", "norm", "best") == []


def test_gains_are_seed_by_seed_and_a_lost_run_guesses():
    found = {
        "uniform-2": {0: 50.0, 1: 51.0},
        "cosine-2": {1: 52.5, 2: 60.0},
        "cosine-4": {0: math.nan},
        "uniform-4": {0: 30.0},
    }
    (two, four) = ablation.gains("quantizer", "uniform", "cosine", found)
    assert two == ("uniform-2", 1, 1.5)
    assert four == ("uniform-4", 0, -20.0)


@pytest.fixture
def short(monkeypatch):
    few = {"data": "embedded", "clients": 10, "clients_per_round": 2, "batch_size": 25}
    monkeypatch.setattr(ablation, "RUN", {**few, "rounds": 2, "evaluate_every": 1})
    monkeypatch.setattr(ablation, "SEARCH", {"rounds": 3, "evaluate_every": 3, "seed": 1000})


def test_the_search_walks_to_the_smallest_loss_and_no_further(monkeypatch, tmp_path):
    tried = []

    def finish(settings, *others):
        tried.append(settings.server_lr)
        return [{"loss": abs(settings.server_lr - 0.72)}] * 12, "too long" if settings.server_lr > 2 else None

    monkeypatch.setattr(ablation.experiments, "finish", finish)
    found = ablation.search("cosine-2", None, tmp_path, "cpu")
    assert found["step"] == 0.7
    assert sorted(tried) == [0.5, 0.7, 1.0, 1.4, 2.0, 2.8]
    assert found["losses"][2.8] is None


def test_a_step_that_learns_nothing_is_not_the_best_among_its_neighbours(monkeypatch, tmp_path):
    losses = {2.8: 2.30, 2.0: 2.22, 1.4: 2.31, 1.0: 2.29, 0.7: 2.1, 0.5: 1.9, 0.35: 2.0}
    monkeypatch.setattr(
        ablation.experiments, "finish", lambda one, *others: ([{"loss": losses[one.server_lr]}] * 12, None)
    )
    assert ablation.search("cosine-1", None, tmp_path, "cpu")["step"] == 0.5
    monkeypatch.setattr(ablation.experiments, "finish", lambda *others: ([], "too long"))
    with pytest.raises(ValueError, match="cosine-2 learns nothing with any server step from"):
        ablation.search("cosine-2", None, tmp_path, "cpu")


def test_the_step_with_the_smallest_loss_is_taken_and_kept(short, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "STEPS", (1.0, 1e6))  # the larger one diverges
    monkeypatch.setattr(ablation, "FIRST", 1.0)
    words = ["--only", "float32,cosine-2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert ablation.main(words) == 0
    kept = json.loads((tmp_path / "steps.json").read_text())["cells"]
    assert [cell["step"] for cell in kept.values()] == [1.0, 1.0]
    assert kept["cosine-2"]["losses"]["1000000.0"] is None
    stored = json.loads((tmp_path / "cosine-2-iid-seed0.json").read_text())
    assert (stored["config"]["up"], stored["config"]["server_lr"]) == ("cosine:2", 1.0)

    assert ablation.accuracies(tmp_path)["cosine-2"] == {0: 100 * stored["rounds"]["accuracy"][-1]}

    def never(*args):
        raise AssertionError("searched again")

    monkeypatch.setattr(ablation, "search", never)
    monkeypatch.setattr(ablation.experiments, "run_and_write", never)
    assert ablation.main([*words, "--runs", str(tmp_path / "elsewhere")]) == 0


def test_a_given_step_is_taken_without_a_search_and_kept_apart(short, tmp_path):
    words = ["--only", "cosine-2", "--step", "0.5", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert ablation.main(words) == 0
    (stored,) = tmp_path.glob("*/*.json")
    assert stored.parent.name == "step-0.5"
    result = json.loads(stored.read_text())
    assert result["config"]["server_lr"] == 0.5
    assert ablation.by_step(tmp_path) == {"cosine-2": {0.5: {0: 100 * result["rounds"]["accuracy"][-1]}}}
    for lost in ({"diverged": "too long"}, {"rounds": {"accuracy": [0.5, 0.1]}}):
        stored.write_text(json.dumps(result | lost))
        assert math.isnan(ablation.by_step(tmp_path)["cosine-2"][0.5][0])
    assert not (tmp_path / "steps.json").exists()


def test_kept_steps_of_another_search_are_not_used(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "STEPS", (1.0,))
    monkeypatch.setattr(ablation, "FIRST", 1.0)
    words = ["--only", "float32", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert ablation.main(words) == 0
    monkeypatch.setattr(ablation, "STEPS", (1.0, 2.0))
    assert ablation.main(words) == 2
    assert "steps.json is of another search" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(short, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--only", "float32", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "file")]
    assert ablation.main(words) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
