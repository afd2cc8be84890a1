"""The files around the code agree with each other and with it."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import cosquant_lite
from cosquant_lite import readme

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of committed files")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_environment_yml_asks_for_this_package_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PROJECT["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [conda[0], PROJECT["requires-python"]] == ["python=3.11", ">=3.11"], "the oldest that is allowed"
    assert conda[1:] == ["pip", "make"]
    (package,) = pip
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", package).group(1).split(",")
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"]), "every extra, and no unknown one"


def test_every_dependency_has_a_lower_bound_and_a_reason():
    listed = PROJECT["dependencies"] + [word for extra in PROJECT["optional-dependencies"].values() for word in extra]
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for requirement in listed:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[\d.]+(,<[\d.]+)?", requirement), requirement
        assert re.search(rf'"{re.escape(requirement)}", *# .{{10,}}', text), f"no reason beside {requirement}"
    for line in (ROOT / "environment.yml").read_text("utf-8").split("dependencies:")[1].splitlines():
        assert not line.strip() or line.strip() == "- pip:" or "#" in line, f"no reason beside {line}"


def test_every_third_party_import_is_a_dependency():
    names = {
        "sklearn": "scikit-learn",
        "PIL": "pillow",
        "IPython": "ipykernel",
        "traitlets": "ipykernel",
        "yaml": "pyyaml",
    }
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["flower"] + extras["course"]
    listed = {re.split(r"[>=\[]", requirement)[0] for requirement in wanted}
    peers = set(re.findall(r"^[a-z]+", (ROOT / "requirements-bench.txt").read_text("utf-8"), re.MULTILINE))
    for file in (ROOT / "cosquant_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module] if isinstance(node, ast.ImportFrom) else []
            modules = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"cosquant_lite"}
            for module in modules - (peers if file.name == "bench.py" else set()):
                assert names.get(module, module) in listed, f"{file.name} imports {module}"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert PROJECT["version"] == cosquant_lite.__version__ == citation["version"]
    assert "2012.08241" in citation["references"][0]["url"]


def test_readme_tables_are_fresh():
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.with_tables(text) == text, "run `make readme`"


def test_readme_names_every_notebook():
    text = (ROOT / "README.md").read_text("utf-8")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in text


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "results/README.md", "data/README.md"])
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, _, heading in re.findall(r"\]\(([^)#]*)(#?)([^)]*)\)", (ROOT / page).read_text("utf-8")):
        if not target.startswith("https://"):
            file = (ROOT / page).parent / target if target else ROOT / page
            assert file.exists(), target
            assert not heading or heading in anchors(file), f"{target}#{heading}"


def test_every_folder_and_file_of_results_is_explained():
    text = (ROOT / "results" / "README.md").read_text("utf-8")
    for entry in (ROOT / "results").iterdir():
        assert f"]({entry.name})" in text or entry.name == "README.md", entry.name


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text("utf-8"))) <= targets


def test_ci_runs_the_readme_s_test_command():
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "make test"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": "make test"}
    assert re.search(r"^make test ", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)


def test_committed_files_are_small_and_hold_no_machine_path():
    home = re.compile(r"/(?:root|work|home/\w+|Users/\w+)/")
    for file in tracked_files():
        assert file.stat().st_size <= 2_000_000, file
        if (
            file.suffix in {".py", ".md", ".json", ".ipynb", ".toml", ".yml", ".cff", ".txt"}
            and file.parent.name != "tests"
        ):
            assert not home.search(file.read_text("utf-8")), file


def test_the_readme_s_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    assert names["state"]["layer.weight"].shape == (1000,)
    assert len(names["history"].rounds) == 3


def test_help_answers_without_importing_torch():
    code = "import sys, cosquant_lite.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_importable_and_unknown_ones_are_named():
    assert all(getattr(cosquant_lite, name) is not None for name in cosquant_lite.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Cosin'; it has Cosine"):
        cosquant_lite.Cosin  # noqa: B018
