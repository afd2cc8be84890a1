"""Execute the notebooks headlessly and compare what they record with what is expected.

Written under the output folder: notebooks/ (executed), figures/ (PNG and SVG), records/ (numbers of each notebook),
report.json and report.html. A notebook works in a scratch folder and its files are moved when it is finished, the
record last, so a killed run leaves no half result under a final name.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cosquant_lite import report, runs
from cosquant_lite.datasets import DATA_CHOICES, EMBEDDED, data_root

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def reproduce(profile: str, data: str, only: str, params: list[str], out: Path, force: bool) -> int:
    """Run what is not up to date, write the report; 0 if every number is within tolerance, otherwise 1 (130: Ctrl-C).

    only: comma-separated numbers or names, "" for all. params: more notebook parameters as NAME=VALUE.
    ValueError, before anything runs, for an unknown profile, data choice, notebook or parameter.
    """
    _check("profile", profile, runs.PROFILES)
    _check("data", data, DATA_CHOICES)
    paths = _select(only)
    parameters = {"profile": profile, "data": data, **_parse(params, paths)}
    out = out.resolve()
    runs.write_atomic(out / ".writable", "")  # an unwritable folder is an error now, not after an hour
    interrupted, failures = False, {}
    for number, path in enumerate(paths, 1):
        if not force and is_up_to_date(path, parameters, out):
            print(f"[{number}/{len(paths)}] {path.stem}: up to date")
            continue
        try:
            execute(path, parameters, out, f"[{number}/{len(paths)}] {path.stem}")
        except KeyboardInterrupt:
            interrupted = True
            break
        except Exception as error:  # whatever a cell raised; the other notebooks still run
            failures[path.stem] = str(error).strip()
            print(f"{path.stem} FAILED:\n{failures[path.stem]}", file=sys.stderr)
    outcomes = [_outcome(path, parameters, out, failures, path in paths) for path in all_notebooks()]
    rows = report.write(out, parameters, outcomes)
    if interrupted:
        done = [outcome["notebook"] for outcome in outcomes if outcome["status"] == "finished"]
        print(f"\ninterrupted; finished and kept: {', '.join(done) or 'nothing'}; the same command goes on from there")
        return 130
    return 0 if report.passed(outcomes, rows) else 1


def all_notebooks() -> list[Path]:
    """The course, in reading order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, parameters: Mapping, out: Path, title: str) -> None:
    """Run one notebook with papermill and move its results into place; raises what the notebook raised."""
    import papermill
    from traitlets.config import Config

    _remove_dead(out)
    scratch = out / f".running-{path.stem}-{os.getpid()}"
    (scratch / "notebooks").mkdir(parents=True)
    # on a shared machine nobody else can connect to a kernel behind a socket file; Windows has only TCP
    config = Config() if os.name == "nt" else Config({"KernelManager": {"transport": "ipc"}})
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            path,
            scratch / "notebooks" / path.name,
            {**parameters, "out": str(scratch)},
            kernel_name="python3",
            cwd=NOTEBOOKS,
            progress_bar={"desc": title, "dynamic_ncols": True},
            config=config,
            shutdown_kernel="immediate",  # nothing is lost: the notebook has run; and Ctrl-C need not wait for it
        )
        record_file = scratch / "records" / f"{path.stem}.json"
        record = json.loads(record_file.read_text()) if record_file.exists() else {"values": []}
        if not record["values"]:
            raise RuntimeError(f"{path.stem} ran to its end but recorded no number: it calls run.record() nowhere")
        record |= {"key": _key(path, parameters), "seconds": round(time.perf_counter() - start, 1)}
        runs.write_json(record_file, record)
        _move(scratch, out, record_file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_up_to_date(path: Path, parameters: Mapping, out: Path) -> bool:
    """Whether the last finished run had the same sources, package, data, versions and parameters, and is all there."""
    record = _read_record(path, out)
    files = [out / "notebooks" / path.name] + [
        out / "figures" / f"{figure['name']}.{form}" for figure in record.get("figures", []) for form in ("png", "svg")
    ]
    return record.get("key") == _key(path, parameters) and all(file.exists() for file in files)


def _remove_dead(out: Path) -> None:
    """Delete the scratch folders of processes that were killed."""
    for scratch in out.glob(".running-*"):
        try:
            os.kill(int(scratch.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(scratch, ignore_errors=True)
        except PermissionError:
            pass  # alive, and somebody else's


def _move(scratch: Path, out: Path, record_file: Path) -> None:
    """Move the finished files to their final names, the record last: it is what says that the rest is complete."""
    (out / record_file.relative_to(scratch)).unlink(missing_ok=True)
    files = [file for file in scratch.glob("*/*") if file != record_file]
    for file in [*files, record_file]:
        final = out / file.relative_to(scratch)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, final)


def _outcome(path: Path, parameters: Mapping, out: Path, failures: Mapping, selected: bool) -> dict:
    about = {"notebook": path.stem, "figures": [], "values": [], "seconds": None, "error": failures.get(path.stem, "")}
    if path.stem in failures:
        return {**about, "status": "failed"}
    if not is_up_to_date(path, parameters, out):
        return {**about, "status": "not finished" if selected else "not run"}
    return {**about, **_read_record(path, out), "status": "finished"}


def _read_record(path: Path, out: Path) -> dict:
    try:
        return json.loads((out / "records" / f"{path.stem}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def _key(path: Path, parameters: Mapping) -> str:
    """A hash over everything that can change the notebook's results."""
    cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    digest = hashlib.sha256(json.dumps([cells, dict(parameters), runs.versions()], sort_keys=True).encode())
    package = sorted(Path(__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.mplstyle"))
    inputs = sorted(EMBEDDED.glob("*.json")) + sorted(data_root().glob("*/*.json"))
    references = [file for file in sorted((ROOT / "results").rglob("*.json")) if file != report.EXPECTED]
    for file in package + inputs + references:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _select(only: str) -> list[Path]:
    paths = all_notebooks()
    if not only:
        return paths
    known = {key: path for path in paths for key in (path.stem, path.stem[:2])}
    wanted = [word.strip() for word in only.split(",")]
    unknown = [word for word in wanted if word not in known]
    if unknown:
        raise ValueError(
            f"unknown notebook {', '.join(map(repr, unknown))}; there are {', '.join(path.stem for path in paths)}"
        )
    return sorted({known[word] for word in wanted})


def _parse(params: list[str], paths: list[Path]) -> dict:
    """NAME=VALUE words as a dict, each name checked against the notebooks' own parameters cells."""
    import papermill

    parsed = {}
    for word in params:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"parameter {word!r} is not NAME=VALUE")
        parsed[name] = int(value) if value.lstrip("-").isdecimal() else value
    for path in paths if parsed else []:
        known = set(papermill.inspect_notebook(path)) - {"out", "profile", "data"}
        if unknown := sorted(set(parsed) - known):
            raise ValueError(
                f"unknown parameter {', '.join(unknown)} for {path.stem}; allowed: {', '.join(sorted(known))}"
            )
    return parsed


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
