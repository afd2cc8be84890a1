"""The benchmark runs anywhere, writes what it measured, and a codec that fails or is missing stops nothing."""

import json

import pytest
import torch

from cosquant_lite import bench, bench_round, bench_scale, wire
from cosquant_lite.__main__ import main
from cosquant_lite.models import cnn, initial_weights


def test_it_measures_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_peers", lambda: {"broken": lambda: 1 / 0, "missing": missing, "copy": a_copy})
    assert main(["bench", "--only", "codec", "--entries", "20000", "--repeat", "2", "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert rows["copy"]["bits"] == 32
    assert rows["copy"]["nmse"] == 0
    assert rows["cosine 4, no clip"]["bits"] == pytest.approx(4, abs=0.02)
    assert 0 < rows["cosine 4, no clip"]["nmse"] < 0.1
    assert rows["cosine 4, clip 1 %, mask 5 %"]["bits"] == pytest.approx(0.2, rel=0.2)
    assert rows["broken"]["error"] == "ZeroDivisionError: division by zero"
    assert rows["missing"]["error"] == "not installed (no_such_package)"
    assert all(row["error"] or row["encode"] > 0 < row["decode"] for row in rows.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    assert {file.name for file in tmp_path.iterdir()} == {"bench.json", "bench.png", "bench.svg"}


def missing():
    import no_such_package  # noqa: F401


def a_copy():
    return torch.clone, torch.clone, lambda message: message.nbytes


def test_wrong_numbers_are_refused(tmp_path, capsys):
    assert main(["bench", "--entries", "0", "--out", str(tmp_path)]) == 2
    assert "entries and repeat must be at least 1, got 0 and 9" in capsys.readouterr().err
    assert main(["bench", "--only", "round", "--repeat", "0", "--out", str(tmp_path)]) == 2
    assert "repeat must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "named"), [
    (["--only", "codec", "--device", "cuda"], "--device is no option of what is measured here, which is codec"),
    (["--only", "scale", "--entries", "5"], "--entries is no option of what is measured here, which is scale"),
    (["--clients", "10"], "--clients is no option of what is measured here, which is codec and round"),
])  # fmt: skip
def test_an_option_of_another_measurement_is_refused(tmp_path, capsys, words, named):
    assert main(["bench", *words, "--out", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_encoding_takes_at_most_one_and_a_half_times_the_memory_of_its_input():
    x = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    codecs = bench._ours()
    for name in ("cosine 4, no clip", "cosine 8, clip 1 %", "cosine 4, clip 1 %, ans", "cosine 4, clip 1 %, mask 5 %"):
        encode = codecs[name]()[0]
        encode(x)  # what the first call of a process loads is not the message's
        peaks = [bench._peak_memory(lambda encode=encode: encode(x)) for _ in range(3)]
        if None in peaks:
            pytest.skip("this system does not tell the peak memory of a process")
        # other threads of the process can only add to what is seen, so the smallest is the encoder's own
        assert 0.1 * x.nbytes / 8 < min(peaks) < 1.5 * x.nbytes, name


def test_a_round_is_measured_beside_bare_training_and_a_script(tmp_path, capsys, monkeypatch):
    few = bench_round._images(2000)
    monkeypatch.setattr(bench_round, "_images", lambda n: few)
    monkeypatch.setattr(bench_round, "version", lambda name: "1.0")
    script = tmp_path / "other_engine.py"
    script.write_text("import os\nfor i in range(int(os.environ['ROUNDS'])): print(f'round {i}: {i}.50 s')")
    words = ["bench", "--only", "round", "--repeat", "2", "--out", str(tmp_path)]
    assert main([*words, "--flower", str(script)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "round.json").read_text())["rows"]}
    assert rows["bare training"]["over_bare"] == 1
    assert rows["Flower, float32"]["over_bare"] == 2.5 / rows["bare training"]["median"]
    assert 0 < rows["float32 both ways"]["low"] <= rows["float32 both ways"]["high"]
    assert rows["Flower, float32"]["median"] == 2.5  # rounds from 2 on
    assert rows["float32 both ways"]["fastest"] > 0
    assert "cosine 8 down, 2 up, ans" in capsys.readouterr().out
    script.write_text("raise RuntimeError('no such engine')")
    assert main([*words, "--flower", str(script)]) == 2
    assert "no such engine" in capsys.readouterr().err
    assert main([*words, "--flower", "nowhere.py"]) == 2
    assert main([*words, "--flower", str(script), "--profile", "full"]) == 2
    assert "flower does the work of profile 'reference' on 'cpu'" in capsys.readouterr().err


def test_scale_writes_a_row_for_each_number_of_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_scale, "flower", lambda clients, links: 1.5)
    rows = bench_scale.bench_scale([2, 3], tmp_path)["rows"]
    assert json.loads((tmp_path / "scale.json").read_text())["rows"] == rows
    assert [(row["clients"], row["flower"]) for row in rows] == [(2, 1.5), (2, 1.5), (3, 1.5), (3, 1.5)]
    weights = initial_weights(cnn(), 0)
    per_client = [2 * wire.frame_bytes(weights, None), wire.frame_bytes(weights, 8) + wire.frame_bytes(weights, 2)]
    assert [row["bytes"] for row in rows] == [clients * size for clients in (2, 3) for size in per_client]
    assert all(row["engine"] > 0 for row in rows)
