"""What happens on one client, and measuring the model: local SGD, augmentation, accuracy, on all cores.

Clients run side by side, each in a thread with one intra-op thread: that is faster than one client on all cores, and
what comes out does not depend on how many threads there are.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import local

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

State = dict[str, Tensor]
JITTER = 0.4  # brightness, contrast and saturation are scaled by a factor in 1 -/+ this, as in the authors' set-up
GREY = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # luma weights of ITU-R BT.601, as in torchvision


def train_client(
    model: nn.Module,
    weights: State,
    x: Tensor,
    y: Tensor,
    shuffle: torch.Generator,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float = 0.0,
    prepare: Callable[[Tensor, torch.Generator], Tensor] = lambda x, shuffle: x,
) -> tuple[State, float]:
    """E epochs of SGD from `weights` on one client's images; returns the trained weights and the mean loss.

    x: what `prepare(batch, shuffle)` turns into float32 images, (n, 3, 32, 32); y: int64 (n,). shuffle: the order of
    the images, and the augmentation. max_norm: longer gradients are shortened to it; 0 is no limit.
    FloatingPointError if the loss became infinite or NaN.
    """
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=shuffle).split(batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(prepare(x[batch], shuffle)), y[batch])
            loss.backward()
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise FloatingPointError(
            f"a client's loss became {losses[-1]} at lr={lr}: the training diverged; try a smaller lr or a max_norm"
        )
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, float(np.mean(losses))


def accuracy(pool: "Pool", weights: State, x: Tensor, y: Tensor) -> float:
    """Fraction of x classified as y."""

    def hits(part: tuple[Tensor, Tensor]) -> int:
        model = pool.model(weights)
        model.eval()
        with torch.inference_mode():
            return (model(part[0]).argmax(1) == part[1]).sum().item()

    return sum(pool.map(hits, zip(x.split(100), y.split(100)))) / len(y)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop (4 pixels of black around), flip and colour jitter of each image, as in the authors' set-up.

    x: float32 in [0, 1], (n, 3, 32, 32). Jitter: brightness, then contrast, then saturation.
    """
    n, size = len(x), x.shape[-1]
    corners = torch.randint(0, 9, (2, n), generator=generator)
    flipped = torch.rand(n, generator=generator) < 0.5
    factors = 1 + JITTER * (2 * torch.rand(3, n, 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors.to(x.device)
    grey_of = GREY.to(x.device)
    rows = corners[0].view(n, 1) + torch.arange(size)
    columns = corners[1].view(n, 1) + torch.arange(size)
    columns = torch.where(flipped.view(n, 1), columns.flip(1), columns)
    rows, columns = rows.to(x.device), columns.to(x.device)
    x = pad(x, (4, 4, 4, 4))[
        torch.arange(n, device=x.device).view(n, 1, 1), :, rows.view(n, size, 1), columns.view(n, 1, size)
    ]
    x = (x.permute(0, 3, 1, 2) * brightness).clamp(0, 1)
    mean_grey = (x * grey_of).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = (mean_grey + contrast * (x - mean_grey)).clamp(0, 1)
    grey = (x * grey_of).sum(1, keepdim=True)
    return (grey + saturation * (x - grey)).clamp(0, 1)


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
