"""The command that runs the notebooks: its errors, what it repeats, and what is left when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from cosquant_lite import report, reproduce, runs
from cosquant_lite.__main__ import main

START = """from cosquant_lite import notebook
run = notebook.start("{name}", profile, seed, data, out)"""
PARAMETERS = 'profile = "quick"\nseed = 0\ndata = "embedded"\nout = ""'
FIGURE = """import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot([1, 2])
run.show(fig, "line", "a rising line", "two numbers")"""


def write_notebook(folder, name, *cells):
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    code = [nbformat.v4.new_code_cell(source) for source in (START.format(name=name), *cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, *code], metadata=kernel), folder / f"{name}.ipynb")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A folder of notebooks and an expectation, in place of the real ones."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    expected = {"settings": {"profile": "quick", "seed": 0, "data": "embedded"},
                "notebooks": {"00_first": {"one": {"value": 1.0, "tolerance": 0.1}}}}  # fmt: skip
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    monkeypatch.setattr(reproduce, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(report, "EXPECTED", tmp_path / "expected.json")
    return notebooks


def run(out, **changes):
    arguments = {
        "profile": "quick",
        "data": "embedded",
        "only": "",
        "params": [],
        "out": out,
        "force": False,
        **changes,
    }
    return reproduce.reproduce(**arguments)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--profile", "slow"], "unknown profile 'slow'; allowed: quick, full"),
        (["--data", "mine"], "unknown data 'mine'; allowed: auto, real, embedded"),
        (["--only", "03,77"], "unknown notebook '77'; there are 00_start_here, 01_uniform_quantization"),
        (["-p", "sede=1"], "unknown parameter sede for 00_start_here; allowed: seed"),
        (["-p", "seed"], "parameter 'seed' is not NAME=VALUE"),
        (["-p", "seed=abc"], "parameter seed='abc' is no int"),
        (["--data", "real"], "data='real', but there is none under"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_a_wrong_word_is_an_error_that_lists_the_right_ones(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path))
    out = [] if "--out" in words else ["--out", str(tmp_path)]
    assert main(["reproduce", *words, *out]) == 2
    assert named in capsys.readouterr().err
    assert not any(tmp_path.glob("*/*"))


def test_runs_reports_and_repeats_only_what_changed(course, tmp_path, capsys):
    out = tmp_path / "out"
    write_notebook(course, "00_first", FIGURE, 'run.record("one", 1.05, figure="line")')
    assert run(out) == 0
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [(row["number"], row["figure"], row["verdict"]) for row in rows] == [("one", "00-line", "ok")]
    assert "a rising line" in (out / "report.html").read_text()
    assert sorted(file.name for file in (out / "figures").iterdir()) == ["00-line.png", "00-line.svg"]
    assert not list(out.glob(".*"))
    executed = (out / "notebooks" / "00_first.ipynb").read_text()
    assert str(tmp_path) not in executed
    assert [file.name for file in course.iterdir()] == ["00_first.ipynb"], "nothing is left beside the notebooks"

    first = (out / "records" / "00_first.json").stat().st_mtime_ns
    assert run(out) == 0
    assert "up to date" in capsys.readouterr().out
    assert (out / "records" / "00_first.json").stat().st_mtime_ns == first
    assert run(out, force=True) == 0
    assert (out / "records" / "00_first.json").stat().st_mtime_ns > first

    (out / "figures" / "00-line.svg").unlink()  # something is missing: run again
    assert run(out) == 0
    assert (out / "figures" / "00-line.svg").exists()
    write_notebook(course, "00_first", 'run.record("one", 2.0)')  # the source changed, and the value with it
    assert run(out) == 1
    assert json.loads((out / "report.json").read_text())["rows"][0]["verdict"] == "OFF"
    assert not list((out / "figures").iterdir()), "the figure that it no longer shows is gone"
    assert run(out, params=["seed=1"]) == 0  # no expectation for another seed
    assert "no expectation" in capsys.readouterr().out


def test_what_is_up_to_date_is_not_any_more_when_the_data_changed(course, tmp_path, monkeypatch):
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path))
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    (path,) = course.iterdir()
    path.write_text(path.read_text().replace("out)", 'out, uses=\\"brats\\")'))
    keys = {data: [reproduce._key(path, {"data": data})] for data in ("auto", "embedded")}
    for change in ("brats", "brats/source.json", "brats/SHA256SUMS", "cifar-10-batches-py"):
        (tmp_path / change).write_text(change) if "." in change or "SUMS" in change else (tmp_path / change).mkdir()
        for data, found in keys.items():
            found.append(reproduce._key(path, {"data": data}))
    empty, folder, source, sums, official = keys["auto"]
    assert empty == folder != source != sums == official, "brats is what this notebook uses"
    assert keys["embedded"][0] == keys["embedded"][1]
    path.write_text(path.read_text().replace("brats", "update"))
    assert reproduce._key(path, {"data": "real"}), (
        "there is none, which is no error of a notebook that was not asked for"
    )


def test_a_notebook_that_fails_or_records_nothing_is_a_failure_and_the_others_run(course, tmp_path, capsys):
    write_notebook(course, "00_first", 'raise RuntimeError("the reason")')
    write_notebook(course, "01_silent", "1 + 1")
    write_notebook(course, "02_fine", 'run.record("two", 2.0)')
    assert run(tmp_path / "out") == 1
    assert "the reason" in capsys.readouterr().err
    notebooks = {n["notebook"]: n for n in json.loads((tmp_path / "out" / "report.json").read_text())["notebooks"]}
    assert {name: n["status"] for name, n in notebooks.items()} == {
        "00_first": "failed",
        "01_silent": "failed",
        "02_fine": "finished",
    }
    assert "recorded no number" in notebooks["01_silent"]["error"]
    assert sorted(file.name for file in (tmp_path / "out" / "failed").iterdir()) == [
        "00_first.ipynb",
        "01_silent.ipynb",
    ]


def test_a_notebook_that_changes_while_it_runs_is_not_kept(course, tmp_path, capsys):
    write_notebook(course, "00_first", f"""run.record("one", 1.0)
import pathlib
file = pathlib.Path({str(course / "00_first.ipynb")!r})
file.write_text(file.read_text().replace("1.0)", "1.01)"))""")  # fmt: skip
    assert run(tmp_path / "out") == 1
    assert "changed while it ran" in capsys.readouterr().err
    assert not (tmp_path / "out" / "records" / "00_first.json").exists()


def test_no_notebooks_is_an_error(course, tmp_path):
    with pytest.raises(ValueError, match=r"no notebooks in .*: the course needs a checkout"):
        run(tmp_path / "out")


def test_an_expected_number_that_was_not_recorded_is_missing(course, tmp_path):
    write_notebook(course, "00_first", 'run.record("other", 1.0)')
    assert run(tmp_path / "out") == 1
    verdicts = {
        row["number"]: row["verdict"] for row in json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    }
    assert verdicts == {"other": "no expectation", "one": "MISSING"}


@contextmanager
def started(course, out, log):
    """A `reproduce` in a process of its own, which is gone at the end whatever happens."""
    code = (
        "import sys; from pathlib import Path; from cosquant_lite import report, reproduce; "
        f"reproduce.NOTEBOOKS = Path({str(course)!r}); report.EXPECTED = Path({str(course.parent / 'expected.json')!r}); "
        f"sys.exit(reproduce.reproduce('quick', 'embedded', '', [], Path({str(out)!r}), False))"
    )
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a background shell ignores it, and so would we
        )
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_keeps_what_was_finished_and_nothing_half(course, tmp_path, how):
    out, pid_file = tmp_path / "out", tmp_path / "pid"
    write_notebook(course, "00_first", FIGURE, 'run.record("one", 1.0)')
    write_notebook(
        course,
        "01_slow",
        FIGURE,
        f"import os, pathlib, time\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(100)",
    )
    with started(course, out, tmp_path / "log") as process:
        wait_for(pid_file.exists)
        process.send_signal(how)
        assert process.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    printed = (tmp_path / "log").read_text()
    if how == signal.SIGINT:
        assert "interrupted; finished and kept: 00_first;" in printed
        assert not list(out.glob(".running*"))
        said = json.loads((out / "report.json").read_text())["notebooks"]
        assert [notebook["status"] for notebook in said] == ["finished", "not finished"]
    finals = sorted(str(file.relative_to(out)) for file in out.glob("[!.]*/*"))
    assert finals == ["figures/00-line.png", "figures/00-line.svg", "notebooks/00_first.ipynb", "records/00_first.json"]
    json.loads((out / "records" / "00_first.json").read_text())
    wait_for(lambda: not is_alive(int(pid_file.read_text())), 30)  # the kernel ends with its parent

    write_notebook(
        course, "01_slow", 'run.record("two", 2.0)'
    )  # the next call goes on, and clears what was left behind
    assert run(out) == 0
    assert not list(out.glob(".running*"))
    assert os.path.exists(out / "records" / "01_slow.json")


def test_the_folder_of_somebody_else_s_running_process_stays(tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / f".running-00_first-{number}").mkdir()

    def kill(pid, signal):
        raise PermissionError if pid == 1 else ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    reproduce._remove_dead(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == [".running-00_first-1"]


def test_versions_and_results_change_what_is_up_to_date_and_expectations_do_not(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(report, "EXPECTED", tmp_path / "results" / "expected.json")
    (path, *_), keys = reproduce.all_notebooks(), []
    for change in (lambda: None, lambda: report.EXPECTED.write_text("{}"),
                   lambda: (tmp_path / "results" / "run.json").write_text("{}"),
                   lambda: monkeypatch.setattr(runs, "versions", lambda: {"torch": "0.1"})):  # fmt: skip
        change()
        keys.append(reproduce._key(path, {"data": "embedded"}))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_notebooks_run_once_each_in_the_order_of_the_course():
    assert [path.stem[:2] for path in reproduce._select("03, 01,03")] == ["01", "03"]


def test_a_change_of_the_package_makes_a_notebook_run_again(course, tmp_path, monkeypatch):
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    (tmp_path / "package" / "datasets").mkdir(parents=True)
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "package" / "reproduce.py"))
    (path,), keys = course.iterdir(), set()
    for name in ("reproduce.py", "datasets/deep.py", "style.mplstyle"):
        keys.add(reproduce._key(path, {"data": "embedded"}))
        (tmp_path / "package" / name).write_text(name)
    assert len(keys | {reproduce._key(path, {"data": "embedded"})}) == 4


def test_auto_notices_the_official_archive(course, tmp_path, monkeypatch):
    """It has no source.json or SHA256SUMS that would tell."""
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path))
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    (path,) = course.iterdir()
    path.write_text(path.read_text().replace("out)", 'out, uses=\\"cifar10\\")'))
    before = {data: reproduce._key(path, {"data": data}) for data in ("auto", "embedded")}
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert reproduce._key(path, {"data": "auto"}) != before["auto"]
    assert reproduce._key(path, {"data": "embedded"}) == before["embedded"]


def test_auto_notices_the_official_archive_beside_imported_images(course, tmp_path, monkeypatch):
    """It is what is loaded then."""
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path))
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    (path,) = course.iterdir()
    path.write_text(path.read_text().replace("out)", 'out, uses=\\"cifar10\\")'))
    runs.write_atomic(tmp_path / "cifar10" / "source.json", "{}")
    before = reproduce._key(path, {"data": "auto"})
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert reproduce._key(path, {"data": "auto"}) != before


def test_a_long_name_of_the_folder_for_temporary_files_is_no_obstacle(course, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    assert run(tmp_path / "out") == 0


def test_a_negative_seed_is_an_error_before_anything_runs(course, tmp_path):
    write_notebook(course, "00_first", 'run.record("one", 1.0)')
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        run(tmp_path / "out", params=["seed=-1"])


def test_the_record_is_moved_last(tmp_path, monkeypatch):
    scratch, out, moved, move = tmp_path / "scratch", tmp_path / "out", [], os.replace
    for name in ("notebooks/00_first.ipynb", "figures/00-line.svg", "records/00_first.json"):
        (scratch / name).parent.mkdir(parents=True)
        (scratch / name).write_text("{}")
    monkeypatch.setattr(os, "replace", lambda file, final: (moved.append(final.name), move(file, final)))
    reproduce._move(scratch, out, scratch / "records" / "00_first.json")
    assert len(moved) == 3
    assert moved[-1] == "00_first.json", "it says that the rest is complete"
