"""The command line: `python -m cosquant_lite reproduce | run | data | bench | course`."""

import argparse
import re
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from cosquant_lite import __version__, runs
from cosquant_lite.datasets import DATASETS

# no shortened options: a result keeps its command without `--out` and the like, which it knows by their full names
PARSER = partial(argparse.ArgumentParser, allow_abbrev=False)
RUN_EXAMPLE = "example: python -m cosquant_lite run --rounds 3 --down cosine:8,clip=0 --up cosine:2,clip=0.01"
DATA_EXAMPLE = "example: python -m cosquant_lite data import cifar10 ~/Downloads/cifar-10-python.tar.gz"
PREPARE = "Crops each case to the brain and resamples it; needs memory for one case at a time."
PREPARE_EXAMPLE = "example: python -m cosquant_lite data prepare brats ~/MICCAI_BraTS_2018 --size 96"
BENCH_EXAMPLE = "example: python -m cosquant_lite bench --entries 16777216 --out build/bench"
COURSE_EXAMPLE = "example: python -m cosquant_lite course build --out build/course"
REPRODUCE_EXAMPLE = "example: python -m cosquant_lite reproduce --only 02,03 --out build"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures are one line on stderr, not a traceback."""
    args = _parser(argv).parse_args(argv)
    return runs.exit_status(lambda: args.command(args))


def _parser(argv: list[str] | None) -> argparse.ArgumentParser:
    parser = PARSER("python -m cosquant_lite", description=__doc__, epilog=REPRODUCE_EXAMPLE)
    parser.add_argument("--version", action="version", version=f"cosquant-lite {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=PARSER)
    _add_reproduce(
        commands.add_parser(
            "reproduce", help="run the notebooks, write every figure and a report", epilog=REPRODUCE_EXAMPLE
        )
    )
    _add_data(commands.add_parser("data", help="see, import, download and check data", epilog=DATA_EXAMPLE))
    _add_bench(
        commands.add_parser("bench", help="speed, size and error of the codec and of its peers", epilog=BENCH_EXAMPLE)
    )
    _add_course(
        commands.add_parser(
            "course", help="exercises, grading, an archive without network, badges", epilog=COURSE_EXAMPLE
        )
    )
    run = commands.add_parser("run", help="one federated experiment", epilog=RUN_EXAMPLE)
    if "run" in (sys.argv[1:] if argv is None else argv)[:1]:  # its flags come from FedConfig, which imports torch
        _add_run(run)
    return parser


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="quick", help="quick or full (default: quick)")
    parser.add_argument("--data", default="auto", help="auto, real or embedded (default: auto)")
    parser.add_argument("--only", default="", metavar="03,04", help="these notebooks only, by number or name")
    parser.add_argument(
        "--param",
        "-p",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another notebook parameter, e.g. seed=1",
    )
    parser.add_argument("--out", default="build", type=Path, help="where to write (default: build)")
    parser.add_argument("--force", action="store_true", help="run again what is up to date")
    parser.set_defaults(command=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from cosquant_lite.reproduce import reproduce

    return reproduce(args.profile, args.data, args.only, args.param, args.out, args.force)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = "Peers are measured if they are installed: pip install -e . -r requirements-bench.txt"
    parser.add_argument("--entries", type=int, default=2**24, help="how many float32 (default: 16777216)")
    parser.add_argument("--repeat", type=int, default=9, help="repetitions, of which the fastest counts (default: 9)")
    parser.add_argument("--out", type=Path, default="build/bench", help="where to write (default: build/bench)")
    parser.add_argument(
        "--only", choices=("codec", "round", "scale"), help="measure just this (default: codec and round)"
    )
    parser.add_argument("--device", default="cpu", help="of round: where clients train (default: cpu)")
    parser.add_argument(
        "--profile", default="reference", help="of round: local training, reference or full (default: reference)"
    )
    parser.add_argument("--flower", type=Path, help="a script that prints the seconds of Flower's rounds, to compare")
    parser.add_argument("--clients", default="10,100,1000", help="of scale: how many clients (default: 10,100,1000)")
    parser.set_defaults(command=partial(_bench, parser))


def _bench(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from cosquant_lite.bench import bench
    from cosquant_lite.bench_round import bench_round, check_round

    files = {"codec": "bench.json", "round": "round.json", "scale": "scale.json"}
    options = {
        "codec": {"entries", "repeat"},
        "round": {"repeat", "device", "profile", "flower"},
        "scale": {"clients"},
    }
    wanted = (args.only,) if args.only else ("codec", "round")
    for option in sorted(set().union(*options.values()) - set().union(*(options[name] for name in wanted))):
        if getattr(args, option) != parser.get_default(option):
            raise ValueError(f"--{option} is no option of what is measured here, which is {' and '.join(wanted)}")
    for name in wanted:  # an error before the measurement, not after it
        runs.check_writable(args.out / files[name])
    if args.only in (None, "round"):
        check_round(args.repeat, args.flower, args.device, args.profile)
    if args.only in (None, "codec"):
        bench(args.entries, args.repeat, args.out)
    if args.only in (None, "round"):
        bench_round(args.repeat, args.out, args.flower, args.device, args.profile)
    if args.only == "scale":
        from cosquant_lite.bench_scale import bench_scale

        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", args.clients):
            raise ValueError(f"--clients must be whole numbers separated by commas, got {args.clients!r}")
        bench_scale([int(word) for word in args.clients.split(",")], args.out)


def _add_course(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="WHAT", parser_class=PARSER)
    for name, does, command in (
        ("start", "a student's own copies of the exercises; what you have written stays", _course_start),
        ("build", "make the students' copies and the instructor's", _course_build),
        ("grade", "grade what was submitted", _course_grade),
        (
            "pack",
            "one archive for a room without network: notebooks, exercises, data, wheels (several GB)",
            _course_pack,
        ),
        ("badges", "write the badges of Binder and Colab into the notebooks", _course_badges),
    ):
        action = actions.add_parser(name, help=does, description=does, epilog=COURSE_EXAMPLE)
        action.set_defaults(command=command)
        if name != "badges":
            folder = {"start": "my-exercises", "pack": "build"}.get(name, "build/course")
            action.add_argument("--out", type=Path, default=folder, help=f"the folder (default: {folder})")
    actions.choices["badges"].add_argument(
        "--repository", metavar="OWNER/NAME", help="where it is published on GitHub (default: git's remote origin)"
    )


def _course_start(args: argparse.Namespace) -> None:
    from cosquant_lite import course

    written, kept = course.start(args.out)
    print(f"{len(written)} written, {len(kept)} kept as you left them; begin with {min(written + kept)}")


def _course_build(args: argparse.Namespace) -> None:
    from cosquant_lite import course

    course.build(args.out)
    print(f"students get {args.out / 'release'}, you keep {args.out / 'instructor'}")
    print(f"put submissions into {args.out / 'submitted'} as STUDENT/ex01/NOTEBOOK.ipynb, then: course grade")


def _course_grade(args: argparse.Namespace) -> None:
    from cosquant_lite import course

    for row in course.grade(args.out):
        score = f"{row['score']:g} of {row['of']:g}" if row["of"] else "not graded"
        print(f"{row['student']:20} {row['exercises']:6} {score:12} {row['remarks']}")
    print(f"written to {args.out / 'grades.csv'}")


def _course_pack(args: argparse.Namespace) -> None:
    from cosquant_lite import offline

    archive = offline.pack(args.out)
    print(f"{archive}: {archive.stat().st_size / 1e9:.1f} GB, for this kind of system and Python {sys.version[:4]}")


def _course_badges(args: argparse.Namespace) -> None:
    from cosquant_lite import badges

    changed = badges.write(args.repository or badges.published())
    print(f"{len(changed)} notebooks changed")


def _add_run(parser: argparse.ArgumentParser) -> None:
    from cosquant_lite.federated import FedConfig

    for field in fields(FedConfig):
        flag, means = "--" + field.name.replace("_", "-"), field.metadata["help"]
        shown = {"default": field.default, "help": f"{means} (default: {field.default})".replace("%", "%%")}
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **shown)
        else:
            parser.add_argument(flag, type=field.type, **shown)
    parser.add_argument("--runs", type=Path, default="build/runs", help="where runs are kept (default: build/runs)")
    parser.add_argument("--out", type=Path, help="write the history into this JSON file too, after every round")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one for each core)")
    parser.add_argument("--device", default="cpu", help="where clients train: cpu or cuda (default: cpu)")
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from cosquant_lite import store
    from cosquant_lite.datasets import load_data
    from cosquant_lite.federated import FedConfig

    config = FedConfig(**{field.name: getattr(args, field.name) for field in fields(FedConfig)})
    data = load_data(config.dataset, config.data)
    folder = store.directory(args.runs, config)
    print(
        f"data: {data.source}\ndown: {config.down}, up: {config.up}, {config.clients_per_round} of {config.clients} clients a round\n"
        f"kept in {folder}: the same command goes on after an interruption"
    )

    if args.out:
        runs.check_writable(args.out)  # an error before the training, not after it
    stored, records, total = store.done(folder), [], 0

    def write() -> None:
        about = store.read_about(folder)  # says who made these rounds: an earlier session, perhaps
        runs.write_json(args.out, {"rounds": records, "command": runs.command_line(), **about})

    with tqdm(total=config.rounds, unit="round", disable=not sys.stderr.isatty()) as progress:
        try:
            for record in store.resume(folder, config, data, args.workers, args.device):
                records.append(record)
                if args.out and record["round"] >= stored:
                    write()
                progress.write(_line(record))
                total += record["bytes_down"] + record["bytes_up"]
                progress.set_postfix_str(f"{total / 1e6:,.1f} MB")
                progress.update()
        except FloatingPointError:
            if args.out and records:
                write()  # it says now that the run diverged
            raise
    print(f"sum: {total:,} bytes both ways")


def _line(record: dict) -> str:
    name = "accuracy" if "accuracy" in record else "dice"
    value = "" if record[name] is None else f"{record[name]:.2%}"
    arrives = "" if record.get("received") in (None, record[name]) else f" (received: {record['received']:.2%})"
    return (
        f"round {record['round']:4d}  {name} {value:>6}{arrives}  loss {record['loss']:.3f}"
        f"  down {record['bytes_down']:,} B  up {record['bytes_up']:,} B  {record['seconds']:.1f} s"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=PARSER)
    for name, does, command in (
        ("status", "what is here and what `auto` would use", _data_status),
        ("verify", "check the embedded files and the imported ones against their checksums", _data_verify),
        (
            "capture",
            "train on real CIFAR-10 and store the client updates that notebooks 00-04 and 08 use (15 to 30 minutes)",
            _data_capture,
        ),
    ):
        example = f"example: python -m cosquant_lite data {name}"
        actions.add_parser(name, help=does, description=does, epilog=example).set_defaults(command=command)
    actions.choices["capture"].add_argument("--out", type=Path, help="folder (default: captured/ in the data folder)")
    download = actions.add_parser(
        "download",
        help="fetch a data set from its own host",
        epilog="example: python -m cosquant_lite data download cifar10",
    )
    download.add_argument("dataset", choices=list(DATASETS))
    download.set_defaults(command=_data_download)
    fetch = actions.add_parser("import", help="take a data set from an archive or folder", epilog=DATA_EXAMPLE)
    fetch.add_argument("dataset", choices=list(DATASETS))
    fetch.add_argument(
        "path",
        type=Path,
        help="cifar10: official archive, its folder, or an image folder (or tar) with train/ and test/; brats: a folder "
        "of cases",
    )
    fetch.set_defaults(command=_data_import)
    prepare = actions.add_parser(
        "prepare", help="resample volumes to cubes of another size", epilog=PREPARE_EXAMPLE, description=PREPARE
    )
    prepare.add_argument("dataset", choices=["brats"])
    prepare.add_argument("path", type=Path, nargs="?", help="folder of cases (default: the downloaded MSD Task01)")
    prepare.add_argument("--size", type=int, default=64, help="edge of the cube in voxels (default: 64)")
    prepare.set_defaults(command=_data_prepare)


def _data_status(args: argparse.Namespace) -> None:
    from cosquant_lite.datasets import data_root, load_data
    from cosquant_lite.datasets.embedded import client_update

    print(f"data folder: {data_root()} (set COSQUANT_DATA to change it)")
    print(f"images that `auto` uses: {load_data('cifar10', 'auto').source}")
    print(f"volumes that `auto` uses: {load_data('brats', 'auto').source}")
    print(f"client update that `auto` uses: {client_update('middle', 'auto').source}")


def _data_verify(args: argparse.Namespace) -> int:
    from cosquant_lite.datasets import checksums

    return checksums.verify()


def _data_capture(args: argparse.Namespace) -> None:
    from cosquant_lite.capture import capture
    from cosquant_lite.datasets import data_root

    out = args.out or data_root() / "captured"
    for stage, about in capture(out)["stages"].items():
        print(f"{stage}: {about['source']}, accuracy {about['accuracy']:.2%}")
    print(f"written to {out}")


def _data_download(args: argparse.Namespace) -> None:
    from cosquant_lite.datasets import cifar10, data_root

    if args.dataset == "brats":
        from cosquant_lite.datasets import nifti

        print(f"prepared from the download: {nifti.prepare(nifti.download(data_root()), data_root())}")
    else:
        print(f"downloaded: {cifar10.download(data_root())}")


def _data_import(args: argparse.Namespace) -> None:
    from cosquant_lite.datasets import cifar10, data_root

    if args.dataset == "brats":
        from cosquant_lite.datasets import nifti

        source = nifti.prepare(args.path, data_root())
    else:
        source = cifar10.import_from(args.path, data_root())
    print(f"imported into {data_root()}: {source}")


def _data_prepare(args: argparse.Namespace) -> None:
    from cosquant_lite.datasets import data_root, nifti

    source = nifti.prepare(args.path or data_root() / nifti.MSD, data_root(), args.size)
    print(f"prepared into {data_root()}: {source}")


if __name__ == "__main__":
    sys.exit(main())
