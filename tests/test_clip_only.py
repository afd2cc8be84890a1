"""The script that tells which network a two-way run leaves behind."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from cosquant_lite import store
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig
from cosquant_lite.quantize import Uniform

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "clip_only.py"))


def test_it_cuts_what_the_quantizers_cut():
    x = torch.randn(1234, generator=torch.Generator().manual_seed(0)).reshape(2, 617)
    cut = SCRIPT["clipped"](x)
    assert int((cut != x).sum()) == 12
    assert float(cut.max()) == Uniform(8, clip=0.01).quantize(x).floats[1]
    assert SCRIPT["cut_off"]({"w": x, "b": x[:1, :50]}, {"w": cut, "b": x[:1, :50]}) == {
        "w": pytest.approx(1 - float(cut.norm() / x.norm()) ** 2, rel=1e-4)
    }


def test_it_measures_what_the_run_has_recorded(tmp_path, capsys):
    config = FedConfig(data="embedded", rounds=2, clients=10, clients_per_round=3, batch_size=25, down="cosine:3")
    images = load_data("cifar10", "embedded")
    last = list(store.resume(tmp_path / "run", config, images))[-1]
    assert SCRIPT["main"]([str(tmp_path / "run"), "--out", str(tmp_path / "found.json")]) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert (row["server"], row["clients"], row["round"]) == (last["accuracy"], last["received"], 2)
    assert row["by_share"][SCRIPT["SHARES"].index(0.01)] == row["clipped"]
    assert "cosine:3 down, none up, round 2 of 2: server" in capsys.readouterr().out


def test_a_down_link_with_a_memory_is_refused(tmp_path, capsys):
    small = {"data": "embedded", "rounds": 1, "clients": 10, "clients_per_round": 3, "batch_size": 25}
    config = FedConfig(**small, down="cosine:3", down_sends="difference")
    list(store.resume(tmp_path / "run", config, load_data("cifar10", "embedded")))
    assert SCRIPT["main"]([str(tmp_path / "run")]) == 2
    assert "sends differences" in capsys.readouterr().err


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert SCRIPT["main"]([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_other_data_than_those_of_the_run_are_refused(tmp_path, capsys):
    small = {"data": "embedded", "rounds": 1, "clients": 10, "clients_per_round": 3, "batch_size": 25}
    list(store.resume(tmp_path, FedConfig(**small), load_data("cifar10", "embedded")))
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "source": "CIFAR-10, JPEG copies"}))
    assert SCRIPT["main"]([str(tmp_path)]) == 2
    assert (
        "is a run on 'CIFAR-10, JPEG copies', and here is only 'embedded handwritten digits" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("file", "content"), [("config.json", "{}"), ("config.json", "{"), ("checkpoint.pt", "")])
def test_a_damaged_run_is_named(tmp_path, capsys, file, content):
    small = {"data": "embedded", "rounds": 1, "clients": 10, "clients_per_round": 3, "batch_size": 25}
    list(store.resume(tmp_path, FedConfig(**small), load_data("cifar10", "embedded")))
    (tmp_path / file).write_text(content)
    assert SCRIPT["main"]([str(tmp_path)]) == 2
    assert f"{file} is damaged" in capsys.readouterr().err
