"""The engine's options against the whole loop written out by hand: same weights to the last bit, round by round."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from cosquant_lite.classification import augment, draw
from cosquant_lite.datasets import load_data, partition
from cosquant_lite.federated import FedConfig, rounds
from cosquant_lite.link import parse_link, send
from cosquant_lite.models import cnn, initial_weights
from cosquant_lite.streams import generator

SMALL = {"data": "embedded", "rounds": 4, "clients": 4, "clients_per_round": 2, "batch_size": 50, "epochs": 2}
OPTIONS = {
    "sizes, schedule, long gradients": {
        "split": "dirichlet:0.5", "lr_schedule": "cosine", "max_norm": 0.5, "momentum": 0.9, "weight_decay": 1e-3,
        "server_lr": 0.7, "lr": 0.05,
    },
    "augmented": {"augment": True, "lr_schedule": "cosine", "lr_min": 0.06},
    "coins both ways": {"down": "cosine:3,rounding=stochastic", "up": "cosine:2,rounding=stochastic"},
    "memories both ways": {
        "down": "cosine:3,rounding=stochastic", "down_feedback": True, "up": "cosine:2,rounding=stochastic",
        "up_feedback": True,
        "split": "dirichlet:0.5",
    },
    "differences": {"down": "cosine:2", "down_sends": "difference", "up": "cosine:2", "seed": 3},
    "updates from the server's weights": {"down": "cosine:3", "up_from": "server", "up": "cosine:4,mask=0.5"},
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return load_data("cifar10", "embedded")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_round_is_what_it_is_by_hand(images, one_thread, options):
    config = FedConfig(**{**SMALL, **options})
    seen = set()
    for number, (ours, (received, weights, loss, lr, chosen)) in enumerate(
        zip(rounds(config, images), by_hand(config, images), strict=True), 1
    ):
        for name in weights:
            assert torch.equal(ours.received[name], received[name]), f"received {name} in round {number}"
            assert torch.equal(ours.progress.weights[name], weights[name]), f"{name} after round {number}"
        assert ours.record["loss"] == pytest.approx(loss, rel=1e-6)
        assert ours.record["lr"] == pytest.approx(lr)
        again, seen = seen & set(chosen), seen | set(chosen)
    assert again, "the last round must draw a client that has a memory already"


def by_hand(config, images):
    """What clients receive, the server's weights after it, mean loss, step size and clients of each round."""
    seed, down, up = config.seed, parse_link(config.down), parse_link(config.up)
    parts = partition.split(config.split, images.train_y, config.clients, generator(seed, "split"))
    model = cnn().to(memory_format=torch.channels_last)
    weights, held, lost_down, lost_up = initial_weights(model, seed), None, None, {}
    for number in range(1, config.rounds + 1):
        coins = generator(seed, "down", number)
        if config.down_sends == "difference":
            held = plus(held, send(minus(weights, held), down, coins).state) if held else weights
            received = held
        else:
            wanted = plus(weights, lost_down) if lost_down else weights
            received = send(wanted, down, coins).state
            lost_down = minus(wanted, received) if config.down_feedback else None
        falling = config.lr * (1 + math.cos(math.pi * (number - 1) / (config.rounds - 1))) / 2
        lr = config.lr if config.lr_schedule == "constant" else max(falling, config.lr_min)
        chosen = torch.randperm(config.clients, generator=generator(seed, "sample", number))
        chosen = chosen[: config.clients_per_round].tolist()
        mean, losses = {name: 0 for name in weights}, []
        total = sum(len(parts[client]) for client in chosen)
        for client in chosen:
            trained, loss = train(
                model, received, images, parts[client], config, lr, generator(seed, "client", number, client)
            )
            update = minus(received if config.up_from == "received" else weights, trained)
            wanted = plus(update, lost_up[client]) if client in lost_up else update
            arrived = send(wanted, up, generator(seed, "up", number, client)).state
            if config.up_feedback:
                lost_up[client] = minus(wanted, arrived)
            share = len(parts[client]) / total
            mean = {name: mean[name] + share * arrived[name] for name in mean}
            losses.append(share * loss)
        weights = {name: x - config.server_lr * mean[name] for name, x in weights.items()}
        yield received, weights, sum(losses), lr, chosen


def train(model, weights, images, part, config, lr, shuffle):
    """A client's weights and mean loss after its epochs."""
    model.load_state_dict(weights)
    pixels = images.train_x.transpose(0, 1).flatten(1).float() / 255
    mean, spread = pixels.mean(1).view(3, 1, 1), pixels.std(1).view(3, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr, config.momentum, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.epochs):
        for batch in part[torch.randperm(len(part), generator=shuffle)].split(config.batch_size):
            x = images.train_x[batch] / 255
            if config.augment:
                x = augment(x, draw(len(batch), shuffle))
            x = ((x - mean) / spread).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), images.train_y[batch])
            loss.backward()
            if config.max_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_norm)
            optimizer.step()
            losses.append(loss.item())
    return {name: x.clone() for name, x in model.state_dict().items()}, sum(losses) / len(losses)


def plus(one, other):
    return {name: x + other[name] for name, x in one.items()}


def minus(one, other):
    return {name: x - other[name] for name, x in one.items()}
