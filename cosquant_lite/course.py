"""Exercises: student copies, the instructor's version, and grading. nbgrader does the work; this file points it at the
masters in exercises/ and sums up what it says.

A master is a notebook with text, hint, solution and check. Nothing that is made from it is kept by hand.
"""

import csv
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import nbformat
from tqdm import tqdm

MASTERS = Path(__file__).resolve().parents[1] / "exercises"
STUB = 'raise NotImplementedError("not done yet: replace this line by your own code")'
MARKERS = re.compile(r"^ *### (BEGIN|END) (SOLUTION|HIDDEN TESTS)\n?", re.MULTILINE)
CONFIG = """# The lecturer's nbgrader settings: run `nbgrader` commands, or `jupyter lab` with the formgrader, in this folder.
c = get_config()
c.CourseDirectory.course_id = "cosquant-lite"
c.ClearSolutions.code_stub = {{"python": {stub!r}}}
c.ExecutePreprocessor.timeout = {seconds}
"""


def build(out: Path, seconds: int = 60) -> None:
    """Write out/release (students' copies), out/instructor (with solutions) and what nbgrader needs to grade there.

    seconds: how long a cell of a submission may run. OSError if nbgrader cannot make a copy.
    """
    shutil.copytree(MASTERS, out / "source", dirs_exist_ok=True)
    (out / "nbgrader_config.py").write_text(CONFIG.format(stub=STUB, seconds=seconds), "utf-8")
    grader = api(out)
    for name in assignments():
        made = grader.generate_assignment(name, force=True)
        if not made["success"]:
            raise OSError(f"no student copy of {name}: {made['log'][-800:]}")
        for master in (MASTERS / name).glob("*.ipynb"):
            readable = nbformat.read(master, as_version=4)
            for cell in readable.cells:
                cell.source = MARKERS.sub("", cell.source)
            (out / "instructor" / name).mkdir(parents=True, exist_ok=True)
            nbformat.write(readable, out / "instructor" / name / master.name)


def start(out: Path) -> tuple[list[Path], list[Path]]:
    """Write a student's own copies, out/exNN/NOTEBOOK.ipynb. What is there stays as it is.

    Returns the files that were written and those that were kept. FileNotFoundError where there are no masters.
    """
    if not assignments():
        raise FileNotFoundError(f"no masters in {MASTERS}: a packed course has the copies already, in my-exercises")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        copies = {
            out / made.relative_to(Path(folder, "release")): made for made in Path(folder).glob("release/*/*.ipynb")
        }
        kept = sorted(path for path in copies if path.exists())
        written = sorted(copies.keys() - set(kept))
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copies[path], path)
    return written, kept


def grade(out: Path) -> list[dict]:
    """Grade out/submitted/STUDENT/exNN/*.ipynb, all that are there, and write out/grades.csv.

    A row has student, exercises, score, of, and remarks: what was wrong with the submission itself. One that cannot be
    graded gets a row without a score, and the others go on. FileNotFoundError if nothing was built or submitted.
    """
    if not (out / "nbgrader_config.py").exists():
        raise FileNotFoundError(f"{out} was not made by `course build`: call that first, with the same --out")
    found = sorted(folder for folder in out.glob("submitted/*/*") if folder.is_dir())
    if not found:
        raise FileNotFoundError(f"no submissions: {out / 'submitted'} must hold STUDENT/exNN/NOTEBOOK.ipynb")
    grader, rows = api(out), []
    for folder in tqdm(found, unit="submission", disable=not sys.stderr.isatty()):
        rows.append(_grade_one(grader, folder))
        with open(out / "grades.csv", "w", newline="", encoding="utf-8") as file:  # now: who stops it keeps the grades
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return rows


def assignments() -> list[str]:
    """The names of the exercises: ex01 and so on."""
    return sorted(folder.name for folder in MASTERS.glob("ex*"))


def api(out: Path):
    """nbgrader, working in this folder."""
    try:
        from nbgrader.apps import NbGraderAPI
    except ImportError:
        raise ImportError('grading needs nbgrader: pip install "cosquant-lite[course]"') from None
    from traitlets.config import PyFileConfigLoader

    config = PyFileConfigLoader("nbgrader_config.py", path=str(out)).load_config()
    config.CourseDirectory.root = str(out.resolve())
    tools = str(Path(sys.executable).parent)  # nbgrader calls alembic by name, also where no environment is activated
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = tools + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # nbgrader gives no point if a check writes anything to stderr
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="nbgrader")
    return NbGraderAPI(config=config)


def _grade_one(grader, folder: Path) -> dict:
    student, name = folder.parent.name, folder.name
    row = {"student": student, "exercises": name, "score": "", "of": "", "remarks": ""}
    if name not in assignments():
        return row | {"remarks": f"unknown exercises {name!r}; there are {', '.join(assignments())}"}
    missing = [words for master in (MASTERS / name).glob("*.ipynb") for words in _missing(master, folder / master.name)]
    done = grader.autograde(name, student, force=True, create=True)
    late = ["a cell ran too long and was stopped"] if "Timeout waiting for execute reply" in done["log"] else []
    if not done["success"]:
        return row | {"remarks": "; ".join(missing) or "could not be graded: " + done["log"].strip()[-200:]}
    graded = grader.get_submission(name, student)
    return row | {"score": graded["score"], "of": graded["max_score"], "remarks": "; ".join(missing + late)}


def _missing(master: Path, submitted: Path) -> list[str]:
    """What a submission lacks of its master, in words."""
    try:
        there = {cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nbformat.read(submitted, 4).cells}
    except FileNotFoundError:
        return [f"{submitted.name} is missing"]
    except Exception as error:  # nbformat has an error of its own for each way to be no notebook
        return [f"{submitted.name} is not a notebook: {str(error).splitlines()[0]}"]
    wanted = [cell.metadata.nbgrader.grade_id for cell in nbformat.read(master, 4).cells if cell.cell_type == "code"]
    return [f"cell {name!r} was deleted" for name in wanted if name not in there]
