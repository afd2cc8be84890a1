"""The server: FedAvg with both links compressed, accuracy and bytes after every round, a checkpoint to go on from."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from cosquant_lite import runs, wire
from cosquant_lite.classification import normalise
from cosquant_lite.datasets import load_data
from cosquant_lite.flower import Compressed
from cosquant_lite.models import cnn, initial_weights

app = ServerApp()
TRAFFIC = ", bytes down {bytes-down:,}, up {bytes-up:,}, refused {refused}"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train up to `rounds` rounds in all."""
    settings = context.run_config
    images = load_data("cifar10", settings["data"])
    (_, test_x), model = normalise(images), cnn(len(images.classes))
    checkpoints = Path(settings["checkpoint"]) if settings["checkpoint"] else None
    weights, done = last_checkpoint(checkpoints) or (initial_weights(model, settings["seed"]), 0)
    nodes = {"min_train_nodes": settings["nodes"], "min_available_nodes": settings["nodes"]}
    strategy = FedAvg(fraction_evaluate=0.0, **nodes)
    if not settings["plain"]:
        links = settings["down"], settings["up"], settings["up-feedback"]
        strategy = Compressed(strategy, *links, settings["seed"], after=done)

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        state = arrays.to_torch_state_dict()
        if checkpoints and number:
            runs.write_atomic(checkpoints / f"round-{done + number:05}.frame", wire.encode(state, None))
        model.load_state_dict(state)
        with torch.inference_mode():
            return MetricRecord({"accuracy": (model(test_x).argmax(1) == images.test_y).double().mean().item()})

    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(weights),
        num_rounds=settings["rounds"] - done,
        timeout=settings["timeout"],
        train_config=ConfigRecord({"after": done}),
        evaluate_fn=evaluate,
    )
    for number, metrics in result.train_metrics_clientapp.items():
        accuracy = result.evaluate_metrics_serverapp[number]["accuracy"]
        traffic = "" if settings["plain"] else TRAFFIC.format_map(metrics)
        print(f"round {done + number}: accuracy {accuracy:.2%}, loss {metrics['loss']:.3f}{traffic}", flush=True)


def last_checkpoint(folder: Path | None) -> tuple[dict[str, torch.Tensor], int] | None:
    """Weights and number of the last finished round, if there is one."""
    found = sorted(folder.glob("round-*.frame")) if folder else []
    return (wire.decode(found[-1].read_bytes()), int(found[-1].stem.split("-")[1])) if found else None
