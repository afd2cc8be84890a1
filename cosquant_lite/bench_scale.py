"""Seconds and bytes of a round against the number of clients: in this engine, and in Flower's simulation of the example.

The embedded digits are dealt to more and more clients, who all take part in every round: training stays about the same
work, and what grows is messages. Both measure accuracy after every round; the first round, which starts things, is left
out. Bytes are the engine's frames. Float32 on Flower is Flower's own messages, without any of this package's code.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tqdm import tqdm

from cosquant_lite import runs
from cosquant_lite.bench import processor
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "flower_cifar10"
LINKS = {"float32": {}, "8 bits down, 2 up": {"down": "cosine:8", "up": "cosine:2"}}
LIMIT = 1800  # seconds that a run on Flower may take


def engine(clients: int, links: dict, number: int = 3) -> tuple[float, int]:
    """Median seconds of a round but the first (of `number`), and bytes a round both ways, in this process."""
    everyone = {"clients": clients, "clients_per_round": clients, "batch_size": 25}
    config = FedConfig(data="embedded", rounds=number, **everyone, **links)
    records = [finished.record for finished in rounds(config, load_data("cifar10", "embedded"))]
    return median(record["seconds"] for record in records[1:]), records[-1]["bytes_down"] + records[-1]["bytes_up"]


def flower(clients: int, links: dict, number: int = 3) -> float:
    """Median seconds of a round but the first in Flower's simulation engine. OSError if it does not end well within
    LIMIT seconds."""
    from cosquant_lite.loopback import deployment

    with TemporaryDirectory() as folder:
        kept = Path(folder) / "weights"
        settings = {"nodes": clients, "clients": clients, "rounds": number, "timeout": float(LIMIT)}
        with deployment(Path(folder) / "home", clients, simulated=True) as simulation:
            log = simulation.run(EXAMPLE, LIMIT, checkpoint=str(kept), plain=not links, **settings, **links)
        ended = [file.stat().st_mtime for file in sorted(kept.glob("round-*.frame"))]
    if len(ended) < number:
        raise OSError(f"Flower did {len(ended)} of {number} rounds with {clients} clients: {log[-500:]}")
    return median(after - before for before, after in pairwise(ended))


def bench_scale(clients: list[int], out: Path) -> dict:
    """Measure everything, print a table, write scale.json after every row."""
    plan = [(n, name, links) for n in clients for name, links in LINKS.items()]
    about = {"source": load_data("cifar10", "embedded").source, "threads": os.cpu_count(), "processor": processor()}
    result = {**about, "command": runs.command_line(), **runs.provenance(), "rows": []}
    for n, name, links in tqdm(plan, unit="row", leave=False, disable=not sys.stderr.isatty()):
        seconds, size = engine(n, links)
        row = {"clients": n, "links": name, "bytes": size, "engine": seconds, "flower": flower(n, links)}
        result["rows"].append(row)
        runs.write_json(out / "scale.json", result)
        tqdm.write(
            f"{n:6,} clients, {name:18} {size / 1e6:9.2f} MB a round; seconds: {seconds:9.2f}, Flower {row['flower']:9.2f}"
        )
    return result
