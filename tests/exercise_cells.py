"""Run an exercise notebook as plain Python: each check must refuse an answer that is off, and accept the solution.

`python tests/exercise_cells.py NOTEBOOK ...` names a check that lets a wrong answer through.
"""

import ast
import sys
from pathlib import Path

import nbformat
import numpy as np
import torch


def off(answer):
    """The same kind of thing, but wrong: numbers a third larger and one more, words and bytes longer, and so within lists."""
    if callable(answer):
        return lambda *given, **named: off(answer(*given, **named))
    if isinstance(answer, (bool, np.bool_)):
        return not answer
    if isinstance(answer, (int, np.integer)):
        return answer + 1
    if isinstance(answer, torch.Tensor) and not answer.is_floating_point():
        return answer + 1 if answer.dtype != torch.bool else ~answer
    if isinstance(answer, (float, np.ndarray, np.floating, torch.Tensor)):
        return 1.3 * answer + 0.1
    if isinstance(answer, str):
        return answer + "1"
    if isinstance(answer, bytes):
        return answer + b"\1"
    if isinstance(answer, dict):
        return {key: off(value) for key, value in answer.items()}
    return type(answer)(map(off, answer))


def answered(source: str) -> list[str]:
    """The names that a cell defines."""
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef):
            found.append(statement.name)
        for target in getattr(statement, "targets", []):
            found += [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
    return found


def refused(check: str, space: dict, names: list[str]) -> bool:
    """Whether the check fails with every one of these answers off."""
    try:
        exec(check, {**space, **{name: off(space[name]) for name in names}})
    except Exception:  # an assertion, or whatever the wrong answer leads to
        return True
    return False


def run(path: str) -> None:
    """Run the cells in order. AssertionError: a check that lets a wrong answer through."""
    space, names = {}, []
    for cell in nbformat.read(path, as_version=4).cells:
        about = cell.metadata.get("nbgrader", {})
        if cell.cell_type != "code":
            continue
        if about.get("grade"):
            assert refused(cell.source, space, names), f"{about['grade_id']} lets a wrong answer through"
        exec(cell.source, space)
        if about.get("solution"):
            names = answered(cell.source)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        run(path)
        print(f"all of {Path(path).parts[-3]} ran")
