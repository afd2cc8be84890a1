"""Exercises: student copies without solutions, and grading end to end with nbgrader."""

import csv
import re
import shutil
import subprocess
import sys

import exercise_cells
import nbformat
import pytest

pytest.importorskip("nbgrader", reason='nbgrader is not installed: pip install "cosquant-lite[course]"')
from cosquant_lite import course
from cosquant_lite.__main__ import main

NAMES = course.assignments()


def notebook_of(folder, name):
    [file] = (folder / name).glob("*.ipynb")
    return nbformat.read(file, as_version=4)


def code(notebook, **wanted):
    """Source of the code cells with this nbgrader metadata, by name."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in cells
        if all(cell.metadata.nbgrader[key] == value for key, value in wanted.items())
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("course")
    course.build(out, seconds=15)
    return out


def test_every_notebook_has_its_exercises():
    notebooks = {path.stem for path in (course.MASTERS.parent / "notebooks").glob("*.ipynb")}
    for name in NAMES:
        [master] = (course.MASTERS / name).glob("*.ipynb")
        assert master.stem.removeprefix("ex") in notebooks
        assert master.stem.startswith(name)
    assert {"ex01", "ex02", "ex03", "ex04", "ex05", "ex06", "ex07", "ex08"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_master_has_three_to_five_exercises_with_hint_solution_and_check(name):
    master = notebook_of(course.MASTERS, name)
    solutions, checks = code(master, solution=True), code(master, grade=True)
    assert 3 <= len(solutions) <= 5
    assert list(checks) == [f"{key}_check" for key in solutions]
    lines = [source.splitlines()[-1] for source in checks.values()]
    assert lines == [f'print("exercise {number} is right")' for number in range(1, len(checks) + 1)]
    texts = [cell.source for cell in master.cells if cell.cell_type == "markdown"][1:]
    assert len(texts) == len(solutions)
    assert all("<summary>Hint</summary>" in text for text in texts)
    assert all(source.count("### BEGIN SOLUTION") == 1 for source in solutions.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_student_copy_has_no_solution_and_its_lines_are_those_of_the_solution(built, name):
    student, instructor = (code(notebook_of(built / kind, name), solution=True) for kind in ("release", "instructor"))
    raw = (built / "release" / name).glob("*.ipynb")
    assert not re.search(r"BEGIN SOLUTION|HIDDEN TESTS", next(raw).read_text())
    for key, source in student.items():
        lines, stub = source.splitlines(), course.STUB
        assert [line.strip() for line in lines].count(stub) == 1
        rest = [line for line in lines if line.strip() not in (stub, "")]
        solution = [line for line in instructor[key].splitlines() if line.strip()]
        assert [line for line in solution if line in rest] == rest
        assert len(solution) > len(rest)


@pytest.mark.parametrize("name", NAMES)
def test_checks_refuse_what_is_wrong_and_accept_the_solutions_and_a_student_copy_runs_to_its_first_stub(
    built, name, tmp_path
):
    """As plain Python, in one process: what nbgrader does with a kernel is tested below."""
    files = [str(next((built / kind / name).glob("*.ipynb"))) for kind in ("source", "release")]
    words = [sys.executable, exercise_cells.__file__, *files]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.stdout.splitlines()[-1:] == ["all of source ran"], ran.stderr[-500:]
    assert re.search("NotImplementedError: not done yet", ran.stderr.splitlines()[-1])


def test_a_student_starts_once_and_keeps_what_was_written(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "build", lambda out: shutil.copytree(built / "release", out / "release"))
    assert main(["course", "start", "--out", str(tmp_path)]) == 0
    copies = sorted(tmp_path.glob("*/*.ipynb"))
    assert len(copies) == len(NAMES)
    assert f"{len(NAMES)} written, 0 kept as you left them; begin with {copies[0]}" in capsys.readouterr().out
    copies[0].write_text("my answers")
    copies[1].unlink()
    assert course.start(tmp_path) == ([copies[1]], [copies[0], *copies[2:]])
    assert copies[0].read_text() == "my answers"
    assert not any("### BEGIN" in path.read_text("utf-8") for path in copies[1:])
    monkeypatch.setattr(course, "MASTERS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="a packed course has the copies already, in my-exercises"):
        course.start(tmp_path)


@pytest.fixture(scope="module")
def graded(built):
    """Rows of grades.csv for eight submissions to the first exercises."""
    [file] = (built / "release" / "ex01").glob("*.ipynb")
    solutions = code(notebook_of(built / "instructor", "ex01"), solution=True)

    def submit(student, answers, deleted=()):
        notebook = nbformat.read(file, as_version=4)
        kept = [cell for cell in notebook.cells if cell.metadata.nbgrader.grade_id not in deleted]
        for cell in kept:
            cell.source = answers.get(cell.metadata.nbgrader.grade_id, cell.source)
        notebook.cells = kept
        folder = built / "submitted" / student / "ex01"
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / file.name)
        return folder / file.name

    submit("correct", solutions)
    submit("untouched", {})
    submit("half", {key: solutions[key] for key in list(solutions)[::2]})
    submit("loops", {**solutions, "nearest": "while True:\n    pass"})
    submit("deleted", solutions, deleted=("clip_check",))
    warns = re.sub(
        r"(def nearest_codes.*\n)", r"\1    import warnings; warnings.warn('careful')\n", solutions["nearest"]
    )
    submit("warns", {**solutions, "nearest": warns})
    submit("broken", solutions).write_text("this is no notebook")
    shutil.copytree(built / "submitted" / "correct" / "ex01", built / "submitted" / "stranger" / "ex99")
    assert main(["course", "grade", "--out", str(built)]) == 0
    with open(built / "grades.csv", encoding="utf-8") as rows:
        return {row["student"]: row for row in csv.DictReader(rows)}


@pytest.mark.parametrize(
    ("student", "score", "remarks"),
    [
        ("correct", 8, ""),
        ("warns", 8, ""),
        ("untouched", 0, ""),
        ("half", 4, ""),
        ("loops", 6, "a cell ran too long and was stopped"),
        ("deleted", 6, "cell 'clip_check' was deleted"),
    ],
)
def test_scores(graded, student, score, remarks):
    row = graded[student]
    assert (float(row["score"]), float(row["of"]), row["remarks"]) == (score, 8, remarks)


def test_what_cannot_be_graded_is_named_and_the_others_go_on(graded):
    assert len(graded) == 8
    assert graded["broken"]["score"] == ""
    assert "ex01_uniform_quantization.ipynb is not a notebook" in graded["broken"]["remarks"]
    assert graded["stranger"]["remarks"].startswith("unknown exercises 'ex99'; there are ex01")


def test_without_submissions_it_says_where_they_belong(tmp_path, capsys):
    assert main(["course", "grade", "--out", str(tmp_path)]) == 2
    assert "was not made by `course build`" in capsys.readouterr().err
    (tmp_path / "nbgrader_config.py").touch()
    assert main(["course", "grade", "--out", str(tmp_path)]) == 2
    assert "must hold STUDENT/exNN/NOTEBOOK.ipynb" in capsys.readouterr().err
