"""Execute the notebooks headlessly and compare what they record with what is expected.

Written under the output folder: notebooks/ (executed), figures/ (PNG and SVG), records/ (numbers of each notebook),
report.json and report.html. A notebook works in a scratch folder and its files are moved when it is finished, the
record last, so a killed run leaves no half result under a final name.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cosquant_lite import report, runs
from cosquant_lite.datasets import DATA_CHOICES, DATASETS, EMBEDDED, OFFICIAL, SUMS, available, data_root, resolve

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def reproduce(profile: str, data: str, only: str, params: list[str], out: Path, force: bool) -> int:
    """Run what is not up to date, write the report; 0 if every number is within tolerance, otherwise 1 (130: Ctrl-C).

    only: comma-separated numbers or names, "" for all. params: more notebook parameters as NAME=VALUE.
    ValueError, before anything runs, for an unknown profile, data choice, notebook or parameter.
    """
    runs.check_choice("profile", profile, runs.PROFILES)
    runs.check_choice("data", data, DATA_CHOICES)
    paths = _select(only)
    parameters = {"profile": profile, "data": data, **_parse(params, paths)}
    for path in paths:
        resolve(_uses(path), data)  # real data that is not there is an error now, not a traceback in every notebook
    out = out.resolve()
    runs.check_writable(out / "report.json")  # so is an unwritable folder
    _set_environment()
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
    _remove_dead(out)
    scratch, key = out / f".running-{path.stem}-{os.getpid()}", _key(path, parameters)
    executed, record_file = scratch / "notebooks" / path.name, scratch / "records" / f"{path.stem}.json"
    executed.parent.mkdir(parents=True)
    start = time.perf_counter()
    try:
        _run_kernel(path, executed, {**parameters, "out": str(scratch)}, title)
        record = json.loads(record_file.read_text("utf-8")) if record_file.exists() else {"values": []}
        if not record["values"]:
            raise RuntimeError(f"{path.stem} ran to its end but recorded no number: it calls run.record() nowhere")
        if _key(path, parameters) != key:
            raise RuntimeError(f"{path.stem} or the package changed while it ran; run it again")
        runs.write_json(record_file, {**record, "key": key, "seconds": round(time.perf_counter() - start, 1)})
        _forget_machine(executed)
        _move(scratch, out, record_file)
    except Exception:
        _keep_failed(executed, out)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_kernel(path: Path, executed: Path, parameters: Mapping, title: str) -> None:
    import papermill
    from traitlets.config import Config

    # Kernels behind socket files: on a shared machine nobody else can connect to them. Windows has only TCP.
    sockets = tempfile.mkdtemp(prefix="cq-")
    only_tcp = os.name == "nt" or len(sockets) > 90  # a socket's path has at most 104 bytes
    config = Config() if only_tcp else Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}})
    try:
        papermill.execute_notebook(
            path,
            executed,
            parameters,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            progress_bar={"desc": title, "dynamic_ncols": True},
            config=config,
            shutdown_kernel="immediate",  # nothing is lost: the notebook has run; and Ctrl-C need not wait for it
        )
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _set_environment() -> None:
    """What kernels inherit: this checkout's package and the same data folder, whatever their working directory."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ["COSQUANT_DATA"] = str(data_root())


def _forget_machine(executed: Path) -> None:
    """Take this machine's paths out of an executed notebook; run again by hand it then writes to its default place."""
    notebook = json.loads(executed.read_text("utf-8"))
    for cell in [notebook, *notebook["cells"]]:
        cell["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["source"] = re.sub(r'^out = ".*"$', 'out = ""', "".join(cell["source"]), flags=re.MULTILINE)
    runs.write_json(executed, notebook)


def _keep_failed(executed: Path, out: Path) -> None:
    """The notebook up to its error, where one can look at it."""
    if executed.exists():
        (out / "failed").mkdir(exist_ok=True)
        os.replace(executed, out / "failed" / executed.name)


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
        pid = scratch.name.rsplit("-", 1)[1]
        if pid.isdecimal() and os.name != "nt" and not _is_alive(int(pid)):
            shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, and somebody else's
    return True


def _move(scratch: Path, out: Path, record_file: Path) -> None:
    """Move the finished files to their final names, the record last: it is what says that the rest is complete."""
    old = out / record_file.relative_to(scratch)
    for figure in _read_record(record_file, out).get("figures", []):  # those of the last run, which may have had others
        for form in ("png", "svg"):
            (out / "figures" / f"{figure['name']}.{form}").unlink(missing_ok=True)
    old.unlink(missing_ok=True)
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
        return json.loads((out / "records" / f"{path.stem}.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _key(path: Path, parameters: Mapping) -> str:
    """A hash over everything that can change the notebook's results."""
    cells = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    real = parameters["data"] != "embedded" and available(_uses(path))  # "auto" may mean another than last time
    official = real and _uses(path) == "cifar10" and (data_root() / OFFICIAL).is_dir()  # then taken before others
    of_all = [cells, dict(parameters), real, official, runs.versions()]
    digest = hashlib.sha256(json.dumps(of_all, sort_keys=True).encode())
    package = sorted(Path(__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.mplstyle"))
    inputs = sorted(EMBEDDED.glob("client_update.*"))
    for folder in (*DATASETS, "captured"):
        inputs += [file for name in ("source.json", SUMS) if (file := data_root() / folder / name).exists()]
    references = [file for file in sorted((ROOT / "results").rglob("*.json")) if file != report.EXPECTED]
    for file in package + inputs + references:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _select(only: str) -> list[Path]:
    paths = all_notebooks()
    if not paths:
        raise ValueError(f"no notebooks in {NOTEBOOKS}: the course needs a checkout, installed with pip install -e .")
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


def _uses(path: Path) -> str:
    """Which data a notebook lets `data` choose: the `uses` of its notebook.start(...), "update" by default."""
    found = re.search(r'notebook\.start\([^)]*uses=\\?"(\w+)', path.read_text("utf-8"))
    return found[1] if found else "update"


def _parse(params: list[str], paths: list[Path]) -> dict:
    """NAME=VALUE words as a dict, names and types checked against the notebooks' own parameters cells."""
    import papermill

    words = dict(word.partition("=")[::2] for word in params)
    if bad := [word for word in params if "=" not in word]:
        raise ValueError(f"parameter {bad[0]!r} is not NAME=VALUE")
    parsed = {}
    for path in paths if words else []:
        cell = papermill.inspect_notebook(path)
        known = {name: ast.literal_eval(about["default"]) for name, about in cell.items()}
        allowed = sorted(set(known) - {"out", "profile", "data"})
        if unknown := sorted(set(words) - set(allowed)):
            raise ValueError(f"unknown parameter {', '.join(unknown)} for {path.stem}; allowed: {', '.join(allowed)}")
        for name, value in words.items():
            try:
                parsed[name] = type(known[name])(value)
            except ValueError:
                raise ValueError(f"parameter {name}={value!r} is no {type(known[name]).__name__}") from None
        if parsed.get("seed", 0) < 0:
            raise ValueError(f"parameter seed={parsed['seed']} must be at least 0")
    return parsed
