"""The notebook conventions, checked: structure, size, alt text, and that checked cells really have outputs."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

from cosquant_lite import badges

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PARAMETERS = 'profile = "quick"\nseed = 0\ndata = "embedded"\nout = ""'
KNOWN_TAGS = {"parameters", "nbval-check-output", "interactive", "skip-execution", "nbval-skip"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return without_badges(nbformat.read(path, as_version=4))


def without_badges(notebook):
    """Without the two cells that `course badges` writes where the project has a public address."""
    notebook.cells = [cell for cell in notebook.cells if cell.id not in (badges.BADGES, badges.INSTALL)]
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def text_of(notebook, cell_type):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == cell_type)


def test_there_are_notebooks():
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers))
    missing = {f"{i:02}" for i in range(int(numbers[-1]))} - set(numbers)
    readme = (NOTEBOOKS[0].parents[1] / "README.md").read_text("utf-8")
    assert all(re.search(rf"notebook {number} and is \*\*not there yet\*\*", readme) for number in missing)


def test_badges_change_nothing_that_is_checked_here(path, notebook):
    badged = badges.with_cells(nbformat.read(path, as_version=4), "some-one/a.name", path.name)
    assert len(code_cells(badged)) == len(code_cells(notebook)) + 1
    nbformat.validate(badged)
    assert without_badges(badged) == notebook


def test_is_valid_small_and_for_the_plain_kernel(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size <= 300_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_begins_with_title_promise_time_parameters_and_start(path, notebook):
    first = notebook.cells[0].source
    assert re.match(
        rf"# {path.stem[:2]} · .+\n\nAfter this you (can|know) .+\n\n\*\*Time\*\* .*\*\*Hardware\*\* .*\*\*Data\*\* .+\n\n\*\*Before this\*\* .+",
        first,
    )
    cells = code_cells(notebook)
    assert tags(cells[0]) == {"parameters"}
    assert cells[0].source == PARAMETERS
    start = rf'run = notebook\.start\("{path.stem}", profile, seed, data, out(, uses="\w+")?\)'
    assert re.search(start, cells[1].source)
    assert not any(
        line.startswith(("import ", "from "))
        for cell in cells[2:]
        if "interactive" not in tags(cell)
        for line in cell.source.splitlines()
    )


def test_ends_with_summary_differences_exercises_next(notebook):
    headings = re.findall(r"^## (.+)$", text_of(notebook, "markdown"), re.MULTILINE)
    assert headings[-4:] == ["Summary", "Differences from the paper", "Exercises", "Next"]
    summary = text_of(notebook, "markdown").split("## Summary")[1].split("## Differences")[0]
    assert len(re.findall(r"^- ", summary, re.MULTILINE)) == 3


def test_cells_are_short_and_few(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert len(lengths) <= 30
    assert max(lengths) <= 25
    assert 2 <= statistics.median(lengths) <= 8
    assert not any(cell.source.strip() == "" for cell in notebook.cells)


def test_tags_are_known_and_checked_cells_have_text_output(notebook):
    for cell in code_cells(notebook):
        assert tags(cell) <= KNOWN_TAGS
        if "nbval-check-output" in tags(cell):
            assert [output.output_type for output in cell.outputs] == ["stream"], cell.source
            assert cell.outputs[0].name == "stdout"
        if "interactive" in tags(cell):
            assert {"skip-execution", "nbval-skip"} <= tags(cell)
            assert not cell.outputs


def test_was_run_from_top_to_bottom_without_errors_or_warnings(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook) if "skip-execution" not in tags(cell)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert all(len(cell.outputs) <= 1 for cell in code_cells(notebook)), "one output per cell"


def test_figures_have_alt_text_and_go_through_show(notebook):
    images = [
        output for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(images) == text_of(notebook, "code").count("run.show(") >= 1
    for image in images:
        assert len(image.metadata["image/png"]["alt"]) >= 40
        assert image.data["text/plain"] == image.metadata["image/png"]["alt"]


def test_records_numbers_and_finishes(notebook):
    code = text_of(notebook, "code")
    assert "run.record(" in code
    assert "run.finish()" in code_cells(notebook)[-1].source


def test_has_no_machine_path_and_no_dead_link(path, notebook):
    raw = path.read_text()
    assert not re.search(r"(/home/|/root/|/Users/|/tmp/|[A-Z]:\\\\)", raw)
    for target in re.findall(r"\]\(([^)]+)\)", text_of(notebook, "markdown")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
