"""The table of experiments, and the command that runs them."""

import json
import shutil

import pytest
import torch

from cosquant_lite import experiments
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, make_task

EVERY = [
    (name, dataset, profile)
    for dataset, profiles in experiments.PROFILES.items()
    for profile in profiles
    for name in experiments.names(dataset)
]


@pytest.mark.parametrize(("name", "dataset", "profile"), EVERY)
def test_every_experiment_is_a_valid_configuration(name, dataset, profile):
    config = experiments.config(name, profile, 3, dataset)
    assert isinstance(config, FedConfig)
    assert (config.seed, config.dataset) == (3, dataset)


@pytest.mark.parametrize("dataset", experiments.PROFILES)
def test_every_experiment_can_deal_out_the_embedded_data(dataset):
    data = load_data(dataset, "embedded")
    plans = {name: experiments.config(name, "quick", 0, dataset) for name in experiments.names(dataset)}
    for plan in {(config.split, config.clients): config for config in plans.values()}.values():
        assert sum(map(len, make_task(plan, data, torch.device("cpu")).parts)) == len(data.train_x)


def test_an_experiment_on_a_network_for_images_is_none_of_brats(capsys):
    left_out = set(experiments.EXPERIMENTS) - set(experiments.names("brats"))
    assert left_out == {"float32-unpadded", "cosine-2-unpadded"}
    assert list(experiments.EXPERIMENTS) == experiments.names("cifar10")
    assert experiments.main(["--dataset", "brats", "--only", "float32-unpadded"]) == 2
    assert "unknown model for brats 'cnn-unpadded'; allowed: unet-tiny" in capsys.readouterr().err


def test_a_wrong_name_lists_the_right_ones(capsys):
    assert experiments.main(["--only", "cosine-3"]) == 2
    assert "unknown experiment 'cosine-3'; allowed: float32, cosine-2" in capsys.readouterr().err


def test_results_are_written_and_a_second_call_only_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        experiments.PROFILES["cifar10"], "quick", {**experiments.PROFILES["cifar10"]["quick"], "rounds": 2}
    )
    words = ["--only", "cosine-2", "--seeds", "0,1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert experiments.main(words) == 0
    first = (tmp_path / "cosine-2-iid-seed1.json").read_text()
    stored = json.loads(first)
    assert stored["config"]["up"] == "cosine:2"
    assert stored["rounds"]["round"] == [1, 2]
    assert "not CIFAR-10" in stored["source"]
    assert len(stored["sessions"]) == 1
    assert stored["diverged"] is None
    assert "cosine-2, iid, seed 0: " in capsys.readouterr().out
    shutil.rmtree(tmp_path / "runs")
    assert experiments.main(words) == 0
    assert (tmp_path / "cosine-2-iid-seed1.json").read_text() == first
    assert not (tmp_path / "runs").exists(), "nothing is trained again"


def test_a_run_that_diverges_is_a_result_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "float32", {"server_lr": 1e6})
    monkeypatch.setitem(
        experiments.PROFILES["cifar10"], "quick", {**experiments.PROFILES["cifar10"]["quick"], "rounds": 3}
    )
    words = ["--only", "float32,cosine-2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert experiments.main(words) == 0
    stored = json.loads((tmp_path / "float32-iid-seed0.json").read_text())
    assert stored["diverged"].startswith(f"round {len(stored['rounds']['round']) + 1}: a client's loss became")
    assert (tmp_path / "cosine-2-iid-seed0.json").exists()
    assert "float32, iid, seed 0: round" in capsys.readouterr().out


def test_one_that_diverges_at_once_is_a_result_without_rounds(tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "float32", {"lr": 1e30})
    words = ["--only", "float32", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert experiments.main(words) == 0
    stored = json.loads((tmp_path / "float32-iid-seed0.json").read_text())
    assert stored["diverged"].startswith("round 1:")
    assert set(map(len, stored["rounds"].values())) == {0}


def test_seeds_that_are_no_numbers_are_named(capsys):
    assert experiments.main(["--seeds", "0,one"]) == 2
    assert "--seeds must be whole numbers separated by commas, got '0,one'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--only", "cosine-2,float32", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "file")]
    assert experiments.main(words) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_result_of_another_run_is_not_overwritten(tmp_path, capsys):
    for held in ({"dataset": "cifar10", "rounds": 100, "data": "real"}, {"colour": 1}):
        (tmp_path / "float32-iid-seed0.json").write_text(before := json.dumps({"config": held}))
        assert experiments.main(["--only", "float32", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 2
        assert "float32-iid-seed0.json holds another run; move it away" in capsys.readouterr().err
        assert (tmp_path / "float32-iid-seed0.json").read_text() == before
    assert not (tmp_path / "runs").exists()


def test_a_split_is_checked_for_all_runs_before_the_first_and_leaves_the_central_one_alone(
    tmp_path, monkeypatch, capsys
):
    planned = []
    monkeypatch.setattr(experiments, "run_and_write", lambda name, settings, *_: planned.append((name, settings.split)))
    words = ["--only", "float32,central", "--out", str(tmp_path), "--split"]
    assert experiments.main([*words, "classes:2"]) == 0
    assert planned == [("float32", "classes:2"), ("central", "iid")]
    for wrong, said in (("dirichlet:1e-6", "without a sample"), ("", "unknown split ''")):
        assert experiments.main([*words, wrong]) == 2
        assert said in capsys.readouterr().err
    assert len(planned) == 2


def test_a_missing_package_and_an_interruption_are_one_line(monkeypatch, capsys):
    for error, status in ((ImportError("no monai"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(experiments, "load_data", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert experiments.main([]) == status
    assert capsys.readouterr().err == "error: no monai\n\ninterrupted: the same command goes on\n"
