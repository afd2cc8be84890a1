"""The committed reference runs: what is read from them, and that they are what they say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cosquant_lite import experiments, reference
from cosquant_lite.federated import FedConfig, deal
from cosquant_lite.runs import RESULTS
from cosquant_lite.task import METRICS


def result(accuracy, diverged=None, each=1_000_000):
    rounds = {"accuracy": accuracy, "bytes_down": [each] * len(accuracy), "bytes_up": [each] * len(accuracy)}
    return {"diverged": diverged, "rounds": rounds}


def test_a_curve_has_the_measured_rounds_and_the_traffic_until_then():
    rounds, mb, accuracy = reference.curve([result([None, 0.2, None, 0.4]), result([None, 0.4, None, 0.6])])
    assert rounds.tolist() == [2, 4]
    assert mb.tolist() == [4, 8]
    np.testing.assert_allclose(accuracy, [[20, 40], [40, 60]])


def test_a_curve_ends_where_the_first_seed_diverged():
    rounds, _, accuracy = reference.curve([result([0.1, 0.2, 0.3]), result([0.1], "round 2: ...")])
    assert rounds.tolist() == [1]
    assert accuracy.shape == (2, 1)


def test_spread_is_mean_and_half_range_or_says_what_diverged():
    runs = [result([0.5] * 5), result([0.9, 0.6, 0.6, 0.6, 0.6, 0.6]), result([0.52] * 5)]
    assert reference.spread(np.array([50.0, 60.0, 52.0])) == "54.0 ± 5.0"
    assert reference.spread(np.array([50.0])) == "50.0"
    assert reference.spread(np.array([50.0, np.nan])) == "1 of 2 diverged"
    np.testing.assert_allclose(reference.late(runs[:1]), [50])
    np.testing.assert_allclose(reference.late(runs[1:2]), [60])  # of the last five measurements
    assert np.isnan(reference.late([result([0.5], "round 2: ...")])).all()
    assert np.isnan(reference.late([result([], "round 1: ...")])).all()
    assert np.isnan(reference.megabytes_to(55, [result([], "round 1: ...")]))


def test_a_seed_that_diverged_leaves_the_others_what_they_are():
    runs = [result([0.1, 0.8, 0.8, 0.8]), result([0.1, 0.6, 0.6, 0.6]), result([0.1], "round 2: ...")]
    np.testing.assert_allclose(reference.late(runs, 3), [80, 60, np.nan])
    np.testing.assert_allclose(reference.late([*runs[:2], result([], "round 1: ...")], 3), [80, 60, np.nan])
    cases = [[0.5, 0.25, 0.0], [0.5, 0.75, 1.0]]
    brats = [{"diverged": None, "test_cases": ["a", "b"], "rounds": {"dice_cases": [None, cases, cases]}}]
    brats += [{"diverged": "round 2: ...", "test_cases": ["a", "b"], "rounds": {"dice_cases": [None]}}]
    whole, lost = reference.late_cases(brats)
    np.testing.assert_allclose(whole, 100 * np.array(cases))
    assert np.isnan(lost).all()
    assert lost.shape == whole.shape


def test_megabytes_to_a_level_are_those_of_the_first_time():
    fast, slow = result([0.1, 0.6, 0.5]), result([0.1, 0.2, 0.6])
    assert reference.megabytes_to(55, [fast]) == 4
    assert reference.megabytes_to(55, [fast, slow]) == 5
    assert np.isnan(reference.megabytes_to(65, [fast]))
    assert np.isnan(reference.megabytes_to(55, [fast, result([0.1, 0.2, 0.3])]))


def test_received_is_what_the_clients_have_at_the_end_and_never_what_was_not_measured():
    up, both = {"down": "none"}, {"down": "cosine:8"}
    older = {**result([0.1, 0.6]), "config": up}
    np.testing.assert_allclose(reference.received([older]), [60])  # clients have the server's weights
    assert np.isnan(reference.received([{**older, "config": both}])).all()
    newer = {**older, "config": both, "rounds": {**older["rounds"], "received": [None, 0.8]}}
    np.testing.assert_allclose(reference.received([newer, older]), [80, 60])
    assert np.isnan(reference.received([{**newer, "diverged": "round 3: ..."}])).all()


def test_what_a_table_says_of_the_clients_weights():
    both = {"config": {"down": "cosine:8"}}
    lost = {**result([], "round 1: ..."), **both}
    newer = {**result([0.1, 0.8]), **both}
    newer["rounds"] = {**newer["rounds"], "received": [None, 0.8]}
    older = {**result([0.1, 0.8]), **both}
    for results, last, said in (
        ([{**result([0.5]), "config": {"down": "none"}}], 1, "the same"),
        ([newer], 1, "80.0"),
        ([newer], 5, "80.0 (last round)"),
        ([older], 1, "not measured"),
        ([lost], 1, "1 of 1 diverged"),
        ([newer, lost], 1, "1 of 2 diverged"),
        ([older, lost], 1, "not measured"),
    ):
        assert reference._received_text(results, last) == said


def test_the_table_has_runs_of_its_two_splits_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CIFAR10", tmp_path)
    monkeypatch.setattr(reference.has, "__defaults__", (tmp_path,))
    (tmp_path / "sign-large-step-dirichlet0.5-seed0.json").touch()
    (tmp_path / "cosine-2-mask-iid-seed0.json").touch()
    listed = []
    monkeypatch.setattr(reference, "rows", lambda names: listed.extend(names) or [])
    reference.table()
    assert listed == ["cosine-2-mask"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference run 'cosine-2' with split 'iid'"):
        reference.load("cosine-2", folder=tmp_path)


LOST = {"uniform-2-noclip-classes2-seed1"}  # it guesses from the first to the last round, and that is a result
COMMITTED = [(file, "reference") for file in sorted(reference.CIFAR10.glob("*.json"))]
COMMITTED += [(file, "short") for file in sorted(reference.SHORT.glob("*.json"))]
COMMITTED += [(file, "skewed") for file in sorted(reference.SKEWED.glob("*.json"))]
COMMITTED += [(file, "full") for file in sorted(reference.FULL.glob("*.json"))]
COMMITTED += [(file, "reference") for file in sorted(reference.BRATS.glob("*.json"))]
COMMITTED += [(file, "full") for file in sorted(reference.BRATS_FULL.glob("*.json"))]
COMMITTED += [(file, "reference") for file in sorted(reference.TWO_NETWORKS.glob("*/*.json"))]


@pytest.mark.parametrize(("file", "profile"), COMMITTED, ids=[str(file.relative_to(RESULTS)) for file, _ in COMMITTED])
def test_a_committed_run_is_a_named_experiment_on_real_data_and_whole(file, profile):
    stored = json.loads(file.read_text("utf-8"))
    config = FedConfig(**stored["config"])
    assert config == experiments.config(stored["name"], profile, config.seed, config.dataset, split=config.split)
    assert file.name == experiments.file_name(stored["name"], config.split, config.seed)
    assert stored["source"].startswith({"cifar10": "CIFAR-10", "brats": "BraTS"}[config.dataset])
    assert all("+" not in session["commit"] for session in stored["sessions"])
    number = stored["rounds"]["round"]
    assert number == list(range(1, len(number) + 1))
    assert bool(stored["diverged"]) == (len(number) < config.rounds)
    if not stored["diverged"]:
        ends = (
            100 * stored["rounds"][METRICS[config.dataset][0]][-1],
            reference.received([stored])[0],
        )  # NaN: not measured
        assert (np.nanmax(ends) > 10) == (file.stem not in LOST)


def test_the_readme_says_how_unevenly_the_skewed_runs_are_dealt():
    labels = torch.arange(10).repeat(5000)  # CIFAR-10 has as many of each class, and their order moves no cut
    dealt = deal(experiments.config("float32", "skewed"), SimpleNamespace(train_y=labels))
    counts = torch.stack([labels[part].bincount(minlength=10) for part in dealt])
    sizes, two = counts.sum(1), counts.topk(2).values.sum(1)
    said = (RESULTS.parent / "README.md").read_text("utf-8")
    assert f"a client has {sizes.min()} to {sizes.max():,} images" in said
    assert f"half of the clients {100 * (two / sizes).quantile(0.5):.0f} % or more of theirs in two classes" in said


def test_the_traffic_of_a_committed_run_is_the_formula():
    from cosquant_lite import wire
    from cosquant_lite.models import cnn, initial_weights

    weights = initial_weights(cnn(), 0)
    for name, down, up in (("float32", None, None), ("cosine-2-down-4", 4, 2), ("sign", None, 1)):
        for stored in reference.load(name):
            assert set(stored["rounds"]["bytes_down"]) == {10 * wire.frame_bytes(weights, down)}
            assert set(stored["rounds"]["bytes_up"]) == {10 * wire.frame_bytes(weights, up)}
