"""Writing results: whole or not at all, and with their origin."""

import json
import os
import subprocess
import sys

import pytest

from cosquant_lite import runs
from cosquant_lite.__main__ import _parser, main


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither links without privilege nor such devices")
def test_a_link_stays_one_and_a_device_is_refused(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    runs.check_writable(tmp_path / "link.json")
    runs.write_atomic(tmp_path / "link.json", "through")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "target.json").read_text() == "through"
    os.mkfifo(tmp_path / "pipe")
    for write in (runs.check_writable, lambda path: runs.write_atomic(path, "")):
        with pytest.raises(OSError, match="pipe is a device, not a file"):
            write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_reader_who_has_gone_is_no_error():
    """As with `| head -1`."""
    code = "from cosquant_lite import runs; raise SystemExit(runs.exit_status(lambda: print('a line')))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


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
    assert main([*words, "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    history = json.loads(out.read_text())
    assert [record["round"] for record in history["rounds"]] == [1, 2]
    assert history["config"]["up"] == "cosine:2"
    assert "not CIFAR-10" in history["source"]
    assert str(tmp_path) not in json.dumps(history)
    assert main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 2, (
        "a folder cannot be written as a file; said before training"
    )
    assert capsys.readouterr().out.count("accuracy") == 2
    assert main(["run", "--up", "cosin:2"]) == 2
    assert "unknown quantizer 'cosin'; allowed: none, cosine, uniform" in capsys.readouterr().err


def test_the_recorded_command_leaves_out_where_it_was_written(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "run", "--out", "/somewhere/h.json", "--rounds", "3", "--out=/else"])
    assert runs.command_line().split()[3:] == ["run", "--rounds", "3"]


def test_a_run_that_fails_leaves_an_earlier_history_as_it_is(tmp_path, capsys):
    (tmp_path / "h.json").write_text("earlier")
    words = ["run", "--data", "embedded", "--clients", "10", "--clients-per-round", "2", "--lr", "1e30"]
    assert main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "h.json")]) == 2
    assert "diverged" in capsys.readouterr().err
    assert (tmp_path / "h.json").read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["h.json", "runs"]


def test_the_history_of_a_run_that_diverges_later_says_so(tmp_path, capsys):
    words = ["run", "--data", "embedded", "--clients", "10", "--clients-per-round", "2", "--rounds", "4"]
    words += ["--server-lr", "1e6", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "h.json")]
    for _ in range(2):  # the second one only reads
        assert main(words) == 2
        history = json.loads((tmp_path / "h.json").read_text())
        assert 1 <= len(history["rounds"]) < 4
        assert history["diverged"] in capsys.readouterr().err
        (tmp_path / "h.json").unlink()


def test_a_finished_run_is_written_once_not_round_by_round(tmp_path, monkeypatch):
    words = ["run", "--data", "embedded", "--clients", "10", "--clients-per-round", "2", "--rounds", "3"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "h.json")]
    assert main(words) == 0
    first, lengths, write = (tmp_path / "h.json").read_text(), [], runs.write_json
    monkeypatch.setattr(
        runs, "write_json", lambda path, content: (lengths.append(len(content["rounds"])), write(path, content))
    )
    assert main(words) == 0
    assert lengths == [3]
    assert (tmp_path / "h.json").read_text() == first


def test_options_are_not_shortened_so_that_places_are_left_out(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--ou", "/somewhere"])
    assert "unrecognized arguments: --ou" in capsys.readouterr().err


def test_the_commit_of_a_repository_around_a_copy_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "copy" / "cosquant_lite" / "runs.py"))
    (tmp_path / "copy" / "cosquant_lite").mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert runs.provenance()["commit"] == "not a git checkout"


@pytest.mark.parametrize("words", [[], ["reproduce"], ["run"], ["data"], ["data", "status"], ["data", "verify"],
                                   ["data", "capture"], ["data", "import"], ["data", "download"]])  # fmt: skip
def test_every_help_shows_an_example_that_parses(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    example = shown.split("example: python -m cosquant_lite ")[1].split()
    assert _parser(example).parse_args(example).command


def test_a_history_says_who_made_its_rounds_not_who_wrote_it_down(tmp_path, monkeypatch):
    words = ["run", "--data", "embedded", "--clients", "10", "--clients-per-round", "2", "--rounds", "1"]
    words += ["--batch-size", "50", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "history.json")]
    for commit in ("first", "second"):
        monkeypatch.setattr(runs, "_commit", lambda commit=commit: commit)
        assert main(words) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert [session["commit"] for session in history["sessions"]] == ["first"]
    assert len(history["rounds"]) == 1
    assert history["config"]["clients"] == 10
    assert "not CIFAR-10" in history["source"]


def test_a_commit_with_changes_has_a_plus(tmp_path, monkeypatch):
    copy = tmp_path / "cosquant_lite" / "runs.py"
    copy.parent.mkdir()
    copy.write_text("")
    monkeypatch.setattr(runs, "__file__", str(copy))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = runs.provenance()["commit"]
    assert len(clean) == 12
    copy.write_text("changed")
    assert runs.provenance()["commit"] == clean + "+"


def test_a_file_that_cannot_be_written_is_named_and_not_the_probe(tmp_path):
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "result.json"
    with pytest.raises((NotADirectoryError, FileExistsError)) as caught:
        runs.check_writable(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("content", ['["key"]', "{}", "{"])
def test_a_file_without_the_entry_is_called_damaged(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"some\.json is damaged"):
        runs.read_key(path, "key")
