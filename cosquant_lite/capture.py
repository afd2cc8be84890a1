"""Capture real client updates from a real run: the input of notebooks 00 to 04 and 08."""

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cosquant_lite import federated, runs
from cosquant_lite.datasets import load_data
from cosquant_lite.datasets.checksums import write_sums
from cosquant_lite.datasets.embedded import STAGES, UPDATE_FILE, UPDATE_PROVENANCE

CONFIG = federated.FedConfig(data="real", rounds=60, epochs=5, batch_size=50, lr=0.1, seed=0)
ROUNDS = dict(zip((2, 20, 60), STAGES))
PEER_LAYER = "conv2.weight"


def capture(out: Path) -> dict:
    """Run CONFIG on real CIFAR-10, float32 both ways, and store one client's update and weights at ROUNDS.

    Arrays are stored as float16 (the error that this makes is in the provenance). Returns the provenance.
    """
    for name in (UPDATE_FILE, UPDATE_PROVENANCE):  # an error before the training, not after it
        runs.check_writable(out / name)
    images = load_data(CONFIG.dataset, CONFIG.data)
    arrays, stages = {}, {}
    progress = tqdm(federated.rounds(CONFIG, images), total=CONFIG.rounds, unit="round", desc="capture")
    for finished in progress:
        number, accuracy = finished.record["round"], finished.record["accuracy"]
        progress.set_postfix_str(f"accuracy {accuracy:.1%}")
        if number not in ROUNDS:
            continue
        stage = ROUNDS[number]
        exact = {f"{stage}/update/{name}": x.numpy() for name, x in finished.updates[0].items()}
        exact |= {f"{stage}/weights/{name}": x.numpy() for name, x in finished.received.items()}
        if stage == "middle":
            exact["peers"] = np.stack([update[PEER_LAYER].flatten().numpy() for update in finished.updates])
        arrays |= {name: x.astype(np.float16) for name, x in exact.items()}
        error = max(np.linalg.norm(arrays[name] - x) / np.linalg.norm(x) for name, x in exact.items())
        source = f"client update, round {number}, E = {CONFIG.epochs}, {images.source}"
        stages[stage] = {
            "round": number,
            "source": source,
            "accuracy": accuracy,
            "worst_float16_error": float(f"{error:.2e}"),
        }
    about = {"stages": stages, "peer_layer": PEER_LAYER, "source": images.source, "config": asdict(CONFIG),
             "command": "python -m cosquant_lite data capture", "stored_as": "float16", **runs.provenance()}  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    runs.write_atomic(out / UPDATE_FILE, buffer.getvalue())
    runs.write_json(out / UPDATE_PROVENANCE, about)
    write_sums(out, [UPDATE_FILE, UPDATE_PROVENANCE])
    return about
