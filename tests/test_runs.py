"""Writing results: whole or not at all, and with their origin."""

import json
import os

import pytest

from cosquant_lite import runs
from cosquant_lite.__main__ import main


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    runs.write_json(target, {"a": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        runs.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_provenance_has_versions_and_commit_and_no_paths():
    about = runs.provenance()
    assert set(about["packages"]) == set(runs.PACKAGES)
    assert about["commit"]
    assert os.path.expanduser("~") not in json.dumps(about)


def test_run_writes_a_history_and_refuses_a_wrong_flag(tmp_path, capsys):
    out = tmp_path / "history.json"
    words = [
        "run",
        "--data",
        "embedded",
        "--rounds",
        "2",
        "--clients",
        "50",
        "--clients-per-round",
        "2",
        "--up",
        "cosine:2",
    ]
    assert main([*words, "--out", str(out)]) == 0
    history = json.loads(out.read_text())
    assert [record["round"] for record in history["rounds"]] == [1, 2]
    assert history["config"]["up"] == "cosine:2"
    assert "not CIFAR-10" in history["source"]
    assert main(["run", "--up", "cosin:2"]) == 2
    assert "unknown quantizer 'cosin'; allowed: none, cosine, uniform" in capsys.readouterr().err
