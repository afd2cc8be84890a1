"""What happens on one client: local SGD; and the threads in which clients train side by side.

Clients run side by side, each in a thread with one intra-op thread: that is faster than one client on all cores, and
what comes out does not depend on how many threads there are.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from threading import local

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cosquant_lite.kernels import PER_THREAD

State = dict[str, Tensor]


@dataclass(frozen=True)
class LocalSGD:
    """How a client trains in a round: E epochs of SGD in batches of B."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_norm: float = 0.0  # longer gradients are shortened to it; 0: no limit


def nothing(n: int, shuffle: torch.Generator) -> Tensor:
    """The random numbers of a batch of n samples that are not augmented."""
    return torch.empty(0, n)


def as_they_are(x: Tensor, y: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The batch itself: for samples that the network takes as they are stored."""
    return x, y


def train_client(
    model: nn.Module,
    weights: State,
    x: Tensor,
    y: Tensor,
    shuffle: torch.Generator,
    sgd: LocalSGD,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    draw: Callable[[int, torch.Generator], Tensor] = nothing,
    prepare: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = as_they_are,
) -> tuple[State, float]:
    """E epochs of SGD from `weights` on one client's samples; returns the trained weights and the mean loss.

    x, y: the client's n samples and their labels; `prepare(x, y, draw(n, shuffle))` turns a batch of n of them into
    what the network and the loss take. shuffle: the order of the samples, and the augmentation. FloatingPointError if
    the loss became infinite or NaN.
    """
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
    losses = []
    for _ in range(sgd.epochs):
        for batch in torch.randperm(len(y), generator=shuffle).split(sgd.batch_size):
            optimizer.zero_grad()
            inputs, targets = prepare(x[batch], y[batch], draw(len(batch), shuffle).to(y.device))
            loss = loss_of(model(inputs), targets)
            loss.backward()
            if sgd.max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), sgd.max_norm)
            optimizer.step()
            losses.append(loss.item())
    infinite = [loss for loss in losses if not np.isfinite(loss)]
    if infinite:
        raise FloatingPointError(
            f"a client's loss became {infinite[0]} at lr={sgd.lr}: the training diverged; try a smaller lr or a max_norm"
        )
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, float(np.mean(losses))


class Pool:
    """Worker threads, each with a copy of the model and one intra-op thread. Use as a context manager."""

    def __init__(self, model: nn.Module, workers: int):
        keep_freed_memory()
        self._template, self._own = model, local()
        self._threads = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def model(self, weights: State | None = None) -> nn.Module:
        """The calling worker's own copy, with these weights."""
        if not hasattr(self._own, "model"):
            self._own.model, self._own.weights = deepcopy(self._template), None
        if weights is None:
            self._own.weights = None  # the caller may change them
        elif self._own.weights is not weights:
            self._own.model.load_state_dict(weights)
            self._own.weights = weights
        return self._own.model

    def map(self, work: Callable, *items: Iterable) -> list:
        """work(item, ...) for each item, side by side; the results in order. As the built-in map."""
        return list(self._threads.map(work, *items))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error) -> None:
        self._threads.shutdown(cancel_futures=True)


@contextmanager
def one_thread_if_small(state: State) -> Iterator[None]:
    """One intra-op thread for the caller, unless the network is large.

    Several are no faster at tensors of some ten thousand entries, and where another process wants the cores, too, each
    operation waits for the scheduler: a round of two such runs side by side takes ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if sum(x.numel() for x in state.values()) < PER_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, if the C library is glibc; others are left as they are.

    The activations of every batch are freed and asked for again. With its defaults glibc often gives them back to the
    system in between, and the page faults take up to a third of the training time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc allows
