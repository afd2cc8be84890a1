"""Federated averaging with a down link and an up link; every message is real bytes.

One round: server weights -> down link -> each chosen client trains E local epochs -> update = received weights minus
trained weights -> up link -> server subtracts the weighted mean of the decoded updates from its own exact weights.
"""

import math
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import chain, tee
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from cosquant_lite import runs
from cosquant_lite.batched import start_clients
from cosquant_lite.datasets import DATA_CHOICES, DATASETS, Images, Volumes, about, brats, load_data, partition
from cosquant_lite.link import Delivery, parse_link, send, send_with_memory
from cosquant_lite.models import MODELS, initial_weights
from cosquant_lite.streams import generator
from cosquant_lite.task import METRICS, Task
from cosquant_lite.training import LocalSGD, Pool, State, one_thread_if_small, train_client

HUGE = 1e30  # no trained network has such weights; float32 ends at 3e38
CHOICES = {
    "dataset": DATASETS,
    "data": DATA_CHOICES,
    "lr_schedule": ("constant", "cosine"),
    "down_sends": ("weights", "difference"),
    "up_from": ("received", "server"),
}


def _option(default, means: str):
    """A field of FedConfig, and what `run --help` says of it."""
    return field(default=default, metadata={"help": means})


@dataclass(frozen=True)
class FedConfig:
    """One federated experiment. The defaults are a short run that a laptop can do, not the paper's 2,000 rounds."""

    dataset: str = _option("cifar10", "cifar10 or brats")
    data: str = _option("auto", "real, embedded, or auto: real if it is there")
    model: str = _option(
        "auto", "cnn or cnn-unpadded for cifar10; unet-tiny, unet-small or unet-full for brats; auto: the first"
    )
    down: str = _option("none", "link from server to clients: what the weights become on the way, e.g. cosine:8,clip=0")
    up: str = _option("none", "link from clients to server: what the updates become on the way, e.g. cosine:2")
    rounds: int = _option(10, "communication rounds")
    epochs: int = _option(1, "local epochs E")
    batch_size: int = _option(50, "local batch B")
    clients: int = _option(100, "clients that hold data")
    clients_per_round: int = _option(10, "clients drawn in each round")
    split: str = _option(
        "iid", "of the samples: iid, classes:2 (classes a client), dirichlet:0.5 (alpha); brats: iid or site"
    )
    lr: float = _option(0.1, "step size of the clients' SGD")
    lr_schedule: str = _option("constant", "over the rounds: constant, or cosine: down along half a cosine, to lr_min")
    lr_min: float = _option(1e-6, "the cosine schedule goes no lower")
    momentum: float = _option(0.0, "of the clients' SGD, reset at every round")
    weight_decay: float = _option(0.0, "of the clients' SGD")
    max_norm: float = _option(0.0, "longer gradients of a batch are shortened to it; 0: no limit")
    augment: bool = _option(
        False, "random crop, flip and colour jitter of training images; flip, scale and shift of volumes"
    )
    server_lr: float = _option(1.0, "the server subtracts so many times the mean update")
    down_sends: str = _option(
        "weights", "the weights (the paper), or their difference to what clients hold, to all clients"
    )
    up_from: str = _option(
        "received", "an update counts from the received weights, or from the server's exact ones (ideal)"
    )
    down_feedback: bool = _option(
        False, "the server adds what the down link lost last time to the weights it sends next"
    )
    up_feedback: bool = _option(False, "each client adds what the up link lost to its next message, whenever that is")
    evaluate_every: int = _option(
        1, "rounds between two measurements of accuracy or Dice; the last round always has one"
    )
    seed: int = _option(0, "fixes weights, split, sampling, shuffling and rounding")

    def __post_init__(self):
        for each in fields(self):
            object.__setattr__(self, each.name, _as_type(each.type, each.name, getattr(self, each.name)))
        parse_link(self.down)
        parse_link(self.up)
        partition.parse(self.split)
        for name, allowed in CHOICES.items():
            runs.check_choice(name, getattr(self, name), allowed)
        models = MODELS[self.dataset]
        object.__setattr__(self, "model", models[0] if self.model == "auto" else self.model)
        runs.check_choice(f"model for {self.dataset}", self.model, models)
        splits = ("iid", "site") if self.dataset == "brats" else ("iid", "classes", "dirichlet")
        runs.check_choice(f"split for {self.dataset}", partition.parse(self.split)[0], splits)
        for name in ("rounds", "epochs", "batch_size", "clients", "clients_per_round", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "lr_min", "momentum", "weight_decay", "max_norm", "server_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        for way in ("down", "up"):
            if getattr(self, f"{way}_feedback") and parse_link(getattr(self, way)).mask < 1:
                raise ValueError(
                    f"{way}_feedback does not go with a mask: a masked message is 1 / p times too long, and what it lost "
                    "grows without end"
                )
        if self.down_feedback and self.down_sends == "difference":
            raise ValueError("down_feedback with down_sends='difference': a difference already holds what was lost")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round is {self.clients_per_round}, but there are only {self.clients} clients"
            )
        if self.lr_schedule == "cosine" and self.lr_min > self.lr:
            raise ValueError(f"lr_min must be at most lr, {self.lr}, where the schedule begins; got {self.lr_min}")


@dataclass(eq=False)
class History:
    """What a run measured. rounds: one dict a round, see `rounds`."""

    rounds: list[dict]
    provenance: dict


@dataclass(eq=False)
class Progress:
    """All that a run must remember between two rounds: enough to go on from.

    held: what the clients hold, if the down link sends differences. lost_down, lost_up: error-feedback memory.
    """

    weights: State
    number: int = 0
    held: State | None = None
    lost_down: State | None = None
    lost_up: dict[int, State] = field(default_factory=dict)


@dataclass(eq=False)
class Round:
    """One finished round: its record, the weights received, each client's exact update, and where the run stands."""

    record: dict
    received: State
    updates: list[State]
    progress: Progress


def run(config: FedConfig, workers: int = 0, device: str = "cpu") -> History:
    """Run the experiment to its end and return what it measured. workers, device: as in `rounds`.

    FileNotFoundError: real data that is not there. ValueError: data that cannot be dealt out like this, no such device.
    FloatingPointError: training diverged.
    """
    if not isinstance(config, FedConfig):
        raise TypeError(f"expected a FedConfig, got {type(config).__name__}")
    data = load_data(config.dataset, config.data)
    records = [finished.record for finished in rounds(config, data, workers=workers, device=device)]
    about_run = {"config": asdict(config), **about(data), "device": device_name(device)}
    return History(records, {**about_run, **runs.provenance()})


def rounds(
    config: FedConfig,
    data: Images | Volumes,
    progress: Progress | None = None,
    workers: int = 0,
    device: str = "cpu",
    together: bool | None = None,
) -> Iterator[Round]:
    """Yield each round when it is finished, from `progress` on.

    A record has round, accuracy (BraTS: dice and dice_cases), received (the same of the weights that the clients
    receive next; all None in rounds that are not measured), loss (the clients' mean training loss), lr, bytes_down and
    bytes_up (all messages of the round), header_down and header_up (what of them is not codes or values) and seconds.
    workers: threads, 0 for one on each core; the result does not depend on it. device: where clients train and accuracy
    is measured; messages are made on the CPU, so that they are the same bytes. together: all clients of a round as one
    batched network, if they have equally many images; None: just if the device is not the CPU.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, which is one thread on each core, got {workers}")
    device = usable(device)
    task = make_task(config, data, device)
    progress = progress or Progress(initial_weights(task.model, config.seed))
    together = (device.type != "cpu" and task.batches) if together is None else together
    with Pool(task.model, workers or os.cpu_count()) as pool:
        while progress.number < config.rounds:
            with one_thread_if_small(progress.weights):
                finished = _round(config, task, pool, progress, together)
            progress = finished.progress
            yield finished


def make_task(config: FedConfig, data: Images | Volumes, device: torch.device) -> Task:
    """What the data set is for, divided among the clients."""
    parts = deal(config, data)
    if config.dataset == "brats":
        from cosquant_lite import segmentation  # MONAI takes seconds to import, and images do not need it

        return segmentation.task(config, data, parts, device)
    from cosquant_lite import classification

    return classification.task(config, data, parts, device)


def deal(config: FedConfig, data: Images | Volumes) -> list[Tensor]:
    """Which samples each client holds. ValueError if the data cannot be dealt out like this."""
    draws = generator(config.seed, "split")
    if config.dataset == "brats":
        sites = [brats.site(name) for name in data.train_cases]
        return partition.split(config.split, torch.arange(len(sites)), config.clients, draws, sites)
    return partition.split(config.split, data.train_y, config.clients, draws)


def _round(config: FedConfig, task: Task, pool: Pool, progress: Progress, together: bool) -> Round:
    """The round after `progress`."""
    start, number = perf_counter(), progress.number + 1
    received, down, progress = _broadcast(config, progress, number)
    order = torch.randperm(config.clients, generator=generator(config.seed, "sample", number))
    chosen = order[: config.clients_per_round].tolist()
    sizes = [len(task.parts[client]) for client in chosen]
    trained = train_chosen(config, task, pool, received, number, chosen, together)
    uploads, arriving = tee(_uploads(config, progress, received, number, chosen, trained))
    mean = weighted_mean((delivery.state for _, _, delivery, _ in arriving), sizes)
    losses, updates, deliveries, lost = zip(*uploads)
    weights = {name: x - config.server_lr * mean[name] for name, x in progress.weights.items()}
    check_finite(weights, learning_rate(config, number))
    lost_up = {**progress.lost_up, **dict(zip(chosen, lost))} if config.up_feedback else {}
    done = Progress(weights, number, progress.held, progress.lost_down, lost_up)
    readers = config.clients if config.down_sends == "difference" else len(chosen)
    record = {
        "round": number,
        **_measure(config, task, pool, done),
        "loss": float(np.average(losses, weights=sizes)),
        "lr": learning_rate(config, number),
        "bytes_down": down.bytes * readers,
        "bytes_up": sum(delivery.bytes for delivery in deliveries),
        "header_down": down.header * readers,
        "header_up": sum(delivery.header for delivery in deliveries),
        "seconds": perf_counter() - start,
    }
    return Round(record, received, list(updates), done)


def _measure(config: FedConfig, task: Task, pool: Pool, progress: Progress) -> dict:
    """Accuracy or Dice of the server's weights; received: that of what the next message would make of them at the clients.

    The two part where the down link keeps losing the same entries (see README). None in rounds that are not measured.
    """
    if progress.number % config.evaluate_every and progress.number < config.rounds:
        return dict.fromkeys((*METRICS[config.dataset], "received"))
    measured = task.measure(pool, progress.weights)
    if config.down == "none":
        return {**measured, "received": measured[METRICS[config.dataset][0]]}
    received, *_ = _broadcast(config, progress, progress.number + 1)
    return {**measured, "received": task.measure(pool, received)[METRICS[config.dataset][0]]}


def train_chosen(
    config: FedConfig, task: Task, pool: Pool, received: State, number: int, chosen: list[int], together: bool
) -> Iterable[tuple[State, float]]:
    """Each chosen client's trained weights and mean loss in round `number`, in order. together: as in `rounds`."""
    sgd = local_sgd(config, number)
    data = [(task.x[part], task.y[part]) for part in (task.parts[client] for client in chosen)]
    shuffles = [generator(config.seed, "client", number, client) for client in chosen]
    if together and len({len(y) for _, y in data}) == 1:
        how = (sgd, task.loss_of, task.draw, task.prepare)
        started = [
            start_clients(task.model, received, *map(torch.stack, zip(*data[part])), shuffles[part], *how)
            for part in halves(len(chosen))
        ]
        return chain.from_iterable(finish() for finish in started)

    def alone(one: tuple[Tensor, Tensor], shuffle: torch.Generator) -> tuple[State, float]:
        return train_client(pool.model(), received, *one, shuffle, sgd, task.loss_of, task.draw, task.prepare)

    return pool.map(alone, data, shuffles)


def halves(n: int) -> list[slice]:
    """n clients in two parts: the messages of one are made while a GPU trains the other."""
    return [part for part in (slice(0, -(-n // 2)), slice(-(-n // 2), n)) if part.start < part.stop]


def local_sgd(config: FedConfig, number: int) -> LocalSGD:
    """What a client does in round `number`."""
    settings = {each.name: getattr(config, each.name) for each in fields(LocalSGD)}
    return LocalSGD(**{**settings, "lr": learning_rate(config, number)})


def check_finite(state: State, lr: float) -> None:
    """FloatingPointError if training has diverged: the loss of a batch cannot tell about the step after it."""
    if torch.nn.utils.get_total_norm(state.values()).isfinite():
        return  # so every entry is; the norm may be beyond float32 without that
    for name, x in state.items():
        if not x.isfinite().all():
            raise FloatingPointError(
                f"{name} became infinite or NaN at lr={lr}: the training diverged; try a smaller lr"
            )


@contextmanager
def _too_large_is_divergence(sent: State, memory: State | None, lr: float) -> Iterator[None]:
    """Finite weights that a link cannot send, as their norm is beyond float32, are no bad input: training has diverged."""
    try:
        yield
    except ValueError as error:
        tensors = [*sent.values(), *(memory or {}).values()]
        if max(float(x.abs().max()) for x in tensors if x.numel()) < HUGE:
            raise  # it is the link
        raise FloatingPointError(f"{error}: the training diverged at lr={lr}; try a smaller lr") from None


def usable(device: str) -> torch.device:
    """The device of this name. ValueError if there is no such device here.

    A GPU becomes the current one, and the process lets GPUs round what goes into products and convolutions to TF32's 10
    bits of mantissa, and has cuDNN choose deterministic ways.
    """
    try:
        probe = torch.zeros(1, device=device)
        probe.item()  # "meta" has no data
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: a torch without CUDA
        why = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here: {why}; 'cpu' always can, 'cuda' with a GPU") from None
    if probe.is_cuda:
        torch.cuda.set_device(probe.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.deterministic = True
    return probe.device


def device_name(device: str) -> str:
    """What to call it in provenance: of a GPU its model."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


RECORD = ("loss", "lr", "bytes_down", "bytes_up", "header_down", "header_up", "seconds")


def learning_rate(config: FedConfig, number: int) -> float:
    """The clients' step size in round `number`, from 1. Cosine: half a cosine from lr towards 0, never below lr_min."""
    if config.lr_schedule == "constant":
        return config.lr
    return max(config.lr * (1 + math.cos(math.pi * (number - 1) / max(config.rounds - 1, 1))) / 2, config.lr_min)


def _broadcast(config: FedConfig, progress: Progress, number: int) -> tuple[State, Delivery, Progress]:
    """The server's message to the clients of a round: what they hold then, what it cost, and what is remembered."""
    link, coins, weights, held = parse_link(config.down), generator(config.seed, "down", number), progress.weights, None
    if config.down_sends == "difference":
        if progress.held is None:  # nobody can add a difference to nothing: once, the weights as they are
            delivery = send(weights, parse_link("none"))
            return delivery.state, delivery, Progress(weights, progress.number, delivery.state)
        held = progress.held
        weights = {name: x - held[name] for name, x in weights.items()}
    lost = progress.lost_down
    with _too_large_is_divergence(weights, lost, learning_rate(config, number)):
        if config.down_feedback:
            delivery, lost = send_with_memory(weights, lost, link, coins)
        else:
            delivery = send(weights, link, coins)
    received = {name: held[name] + x for name, x in delivery.state.items()} if held else delivery.state
    return (
        received,
        delivery,
        Progress(progress.weights, progress.number, received if held else None, lost, progress.lost_up),
    )


def _uploads(
    config: FedConfig, progress: Progress, received: State, number: int, chosen: list[int], trained: Iterable
) -> Iterator[tuple[float, State, Delivery, State | None]]:
    """Of each client its loss, its update, its message to the server, and what the link lost of it (None without feedback).

    One after the other: in threads their many small steps wait for Python's lock three times as long. Each as soon as
    its half is ready: a GPU still trains the other.
    """
    link, origin = parse_link(config.up), received if config.up_from == "received" else progress.weights
    for client, (after, loss) in zip(chosen, trained):
        update = {name: w - after[name].cpu() for name, w in origin.items()}
        check_finite(update, learning_rate(config, number))
        coins, lost = generator(config.seed, "up", number, client), progress.lost_up.get(client)
        with _too_large_is_divergence(update, lost, learning_rate(config, number)):
            if config.up_feedback:
                delivery, lost = send_with_memory(update, lost, link, coins)
            else:
                delivery = send(update, link, coins)
        yield loss, update, delivery, lost


def weighted_mean(states: Iterable[State], sizes: list[int]) -> State:
    """Each tensor averaged over the clients, weighted by how many images each one holds. States are added as they come."""
    mean = {}
    for state, size in zip(states, sizes):
        mean = {name: mean.get(name, 0) + size / sum(sizes) * x for name, x in state.items()}
    return mean


def _as_type(kind: type, name: str, value):
    """value as the plain int, float, bool or str that a field wants (numpy numbers too); ValueError names the field."""
    try:
        if kind is bool:
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError
            return bool(value)
        if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise TypeError
        if kind is float and isinstance(value, str):
            raise TypeError
        return operator.index(value) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        wanted = {int: "a whole number", bool: "True or False"}.get(kind, kind.__name__)
        raise ValueError(f"{name} must be {wanted}, got {value!r}") from None
