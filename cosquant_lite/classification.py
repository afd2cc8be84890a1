"""The CIFAR-10 task: which of ten classes an image is. A network of the paper's size, cross-entropy, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from cosquant_lite.datasets import Images
from cosquant_lite.models import CNNS
from cosquant_lite.task import Task
from cosquant_lite.training import Pool, State, as_they_are, nothing

if TYPE_CHECKING:
    from cosquant_lite.federated import FedConfig

JITTER = 0.4  # brightness, contrast and saturation are scaled by a factor in 1 -/+ this, as in the authors' set-up
LUMA = 0.299, 0.587, 0.114  # weights of red, green and blue in ITU-R BT.601, as in torchvision


def task(config: FedConfig, images: Images, parts: list[Tensor], device: torch.device) -> Task:
    """One of the `models.CNNS` on these images."""
    train_x, test_x, *how = _prepared(images, config.augment, device)
    train_x, test_x, train_y, test_y = (x.to(device) for x in (train_x, test_x, images.train_y, images.test_y))
    model = CNNS[config.model](len(images.classes))
    model = model.to(device, memory_format=torch.channels_last)  # 1.3 times as fast on the CPU

    def measure(pool: Pool, weights: State) -> dict:
        return {"accuracy": accuracy(pool, weights, test_x, test_y)}

    parts = [part.to(device) for part in parts]  # or each use of them would wait for what a GPU does
    return Task(model, train_x, train_y, parts, cross_entropy, measure, *how)


def normalise(images: Images) -> tuple[Tensor, Tensor]:
    """Training and test images as float32, with zero mean and unit spread per channel of the training images."""
    train_x, test_x, *_ = _prepared(images, augmented=False)
    return train_x, test_x


def _prepared(images: Images, augmented: bool, device: torch.device | str = "cpu"):
    """Training images, test images, the random numbers for a batch of training images, and what is done to it with them on
    `device` before the network sees it."""
    pixels = images.train_x.transpose(0, 1).flatten(1).float() / 255
    mean, spread = pixels.mean(1).view(3, 1, 1), pixels.std(1).view(3, 1, 1)

    there = mean.to(device), spread.to(device)  # once, not for every batch

    def scaled(x: Tensor, mean: Tensor = mean, spread: Tensor = spread) -> Tensor:
        return ((x - mean) / spread).contiguous(memory_format=torch.channels_last)

    train_x, test_x = images.train_x / 255, images.test_x / 255
    if augmented:
        return train_x, scaled(test_x), draw, lambda x, y, drawn: (scaled(augment(x, drawn), *there), y)
    return scaled(train_x), scaled(test_x), nothing, as_they_are


def accuracy(pool: Pool, weights: State, x: Tensor, y: Tensor) -> float:
    """Fraction of x classified as y."""

    def hits(part: tuple[Tensor, Tensor]) -> int:
        model = pool.model(weights)
        model.eval()
        with torch.inference_mode():
            return (model(part[0]).argmax(1) == part[1]).sum().item()

    size = 2000 if x.is_cuda else 100
    return sum(pool.map(hits, zip(x.split(size), y.split(size)))) / len(y)


def draw(n: int, shuffle: torch.Generator) -> Tensor:
    """The random numbers that `augment` needs for n images, (6, n)."""
    return torch.rand(6, n, generator=shuffle)


def augment(x: Tensor, drawn: Tensor) -> Tensor:
    """Random crop (4 pixels of black around), flip and colour jitter of each image, as in the authors' set-up.

    x: float32 in [0, 1], (n, 3, 32, 32). drawn: uniform in [0, 1), (6, n), from `draw`. Jitter: brightness, then
    contrast, then saturation.
    """
    n, size = len(x), x.shape[-1]
    (top, left), flipped = (9 * drawn[:2]).long(), drawn[2] < 0.5
    brightness, contrast, saturation = (1 + JITTER * (2 * drawn[3:] - 1)).view(3, n, 1, 1, 1)
    line = torch.arange(size, device=x.device)
    columns = torch.where(flipped.view(n, 1), line.flip(0), line) + left.view(n, 1)
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    x = pad(x, (4, 4, 4, 4))[image, :, (top.view(n, 1) + line).view(n, size, 1), columns.view(n, 1, size)]
    x = (x.permute(0, 3, 1, 2) * brightness).clamp(0, 1)
    mean_grey = _grey(x).mean((2, 3), keepdim=True)
    x = (mean_grey + contrast * (x - mean_grey)).clamp(0, 1)
    grey = _grey(x)
    return (grey + saturation * (x - grey)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """Brightness of images (n, 3, ...): (n, 1, ...)."""
    red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(LUMA))
    return red + green + blue
