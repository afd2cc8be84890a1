"""Federated averaging with a down link and an up link; every message is real bytes.

One round: server weights -> down link -> each chosen client trains E local epochs -> update = received weights minus
trained weights -> up link -> server subtracts the weighted mean of the decoded updates from its own exact weights.
"""

import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cosquant_lite import runs
from cosquant_lite.datasets import DATA_CHOICES, IMAGE_SETS, Images, load_images, partition
from cosquant_lite.link import parse_link, send
from cosquant_lite.models import cnn, initial_weights

State = dict[str, Tensor]
SPLITS = ("iid",)


@dataclass(frozen=True)
class FedConfig:
    """One federated experiment. The defaults are a short run that a laptop can do, not the paper's 2,000 rounds."""

    dataset: str = "cifar10"  # which images
    data: str = "auto"  # real, embedded, or auto: real if it is there
    down: str = "none"  # link from server to clients: what the weights become on the way, e.g. cosine:8
    up: str = "none"  # link from clients to server: what the updates become on the way, e.g. cosine:2
    rounds: int = 10  # communication rounds
    epochs: int = 1  # local epochs E
    batch_size: int = 50  # local batch B
    clients: int = 100  # clients that hold data
    clients_per_round: int = 10  # clients drawn in each round
    split: str = "iid"  # how the images are dealt out
    lr: float = 0.1  # step size of the clients' SGD
    momentum: float = 0.0  # its momentum, reset at every round
    weight_decay: float = 0.0  # its weight decay
    seed: int = 0  # fixes weights, split, sampling, shuffling and rounding

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _as_type(field.type, field.name, getattr(self, field.name)))
        parse_link(self.down)
        parse_link(self.up)
        for name, allowed in {"dataset": IMAGE_SETS, "data": DATA_CHOICES, "split": SPLITS}.items():
            runs.check_choice(name, getattr(self, name), allowed)
        for name in ("rounds", "epochs", "batch_size", "clients", "clients_per_round"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round is {self.clients_per_round}, but there are only {self.clients} clients"
            )


@dataclass(eq=False)
class History:
    """What a run measured. rounds: one dict a round {round, accuracy, loss, bytes_down, bytes_up, seconds}."""

    rounds: list[dict]
    provenance: dict


@dataclass(eq=False)
class Round:
    """One finished round, with what `data capture` needs: the weights received and each client's exact update."""

    record: dict
    received: State
    updates: list[State]


def run(config: FedConfig) -> History:
    """Run the experiment to its end and return what it measured."""
    images = load_images(config.dataset, config.data)
    records = [finished.record for finished in rounds(config, images)]
    return History(records, {"config": asdict(config), "source": images.source, **runs.provenance()})


def rounds(config: FedConfig, images: Images) -> Iterator[Round]:
    """Yield each round when it is finished."""
    down, up = parse_link(config.down), parse_link(config.up)
    model = cnn(len(images.classes)).to(memory_format=torch.channels_last)  # 1.3 times as fast on the CPU
    weights = initial_weights(model, config.seed)
    train_x, test_x = normalise(images)
    parts = partition.iid(len(images.train_y), config.clients, generator(config.seed, "split"))
    for number in range(1, config.rounds + 1):
        start = perf_counter()
        received, down_length = send(weights, down, generator(config.seed, "down", number))
        chosen = torch.randperm(config.clients, generator=generator(config.seed, "sample", number))
        updates, decoded, sizes, losses, bytes_up = [], [], [], [], 0
        for client in chosen[: config.clients_per_round].tolist():
            mine = parts[client]
            shuffle = generator(config.seed, "client", number, client)
            trained, loss = train_client(model, received, train_x[mine], images.train_y[mine], config, shuffle)
            update = {name: received[name] - trained[name] for name in received}
            message, length = send(update, up, generator(config.seed, "up", number, client))
            updates.append(update)
            decoded.append(message)
            sizes.append(len(mine))
            losses.append(loss)
            bytes_up += length
        mean = weighted_mean(decoded, sizes)
        weights = {name: weights[name] - mean[name] for name in weights}
        record = {
            "round": number,
            "accuracy": accuracy(model, weights, test_x, images.test_y),
            "loss": float(np.average(losses, weights=sizes)),
            "bytes_down": down_length * config.clients_per_round,
            "bytes_up": bytes_up,
            "seconds": perf_counter() - start,
        }
        yield Round(record, received, updates)


def train_client(
    model: nn.Module, weights: State, x: Tensor, y: Tensor, config: FedConfig, shuffle
) -> tuple[State, float]:
    """E epochs of SGD from `weights` on one client's images; returns the trained weights and the mean loss."""
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.epochs):
        for batch in torch.randperm(len(y), generator=shuffle).split(config.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise FloatingPointError(
            f"a client's loss became {losses[-1]} at lr={config.lr}: the training diverged; try a smaller lr"
        )
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, float(np.mean(losses))


def weighted_mean(states: list[State], sizes: list[int]) -> State:
    """Each tensor averaged over the clients, weighted by how many images each one holds."""
    shares = [size / sum(sizes) for size in sizes]
    return {name: sum(share * state[name] for share, state in zip(shares, states)) for name in states[0]}


def accuracy(model: nn.Module, weights: State, x: Tensor, y: Tensor) -> float:
    """Fraction of x classified as y."""
    model.load_state_dict(weights)
    model.eval()
    with torch.inference_mode():
        hits = sum((model(part).argmax(1) == truth).sum().item() for part, truth in zip(x.split(100), y.split(100)))
    return hits / len(y)


def normalise(images: Images) -> tuple[Tensor, Tensor]:
    """Training and test images as float32, with zero mean and unit spread per channel of the training images."""
    pixels = images.train_x.transpose(0, 1).flatten(1).float() / 255
    mean, spread = pixels.mean(1).view(3, 1, 1), pixels.std(1).view(3, 1, 1)
    parts = [(x / 255 - mean) / spread for x in (images.train_x, images.test_x)]
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in parts)


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """An independent random stream for each purpose, round and client, whatever the order they are used in."""
    key = [seed, int.from_bytes(purpose.encode()), *numbers]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def _as_type(kind: type, name: str, value):
    """value as the plain int, float or str that a field wants (numpy numbers too); ValueError names the field."""
    try:
        if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise TypeError
        if kind is float and isinstance(value, str):
            raise TypeError
        return operator.index(value) if kind is int else kind(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be {'a whole number' if kind is int else kind.__name__}, got {value!r}"
        ) from None
