"""Synthetic brains that come with the project: an ellipsoid, a tumour of three nested regions, four contrasts, noise.

They have what the loop needs (four modalities, labels, sites whose scanners differ) and nothing of a patient.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cosquant_lite.datasets import Volumes
from cosquant_lite.datasets.brats import volumes

CASES = 5  # of each scanner
SCANNERS = {"A": (1.0, 0.04), "B": (0.8, 0.05), "C": (1.25, 0.06), "D": (1.0, 0.08)}  # gamma, noise
CONTRAST = torch.tensor([  # brightness of tissue, oedema, non-enhancing, enhancing tumour, ventricle
    [0.45, 0.80, 0.65, 0.70, 0.15],  # FLAIR
    [0.60, 0.48, 0.38, 0.50, 0.20],  # T1w
    [0.60, 0.48, 0.40, 0.90, 0.20],  # T1gd
    [0.45, 0.75, 0.80, 0.60, 0.95],  # T2w
])  # fmt: skip


def phantoms(size: int = 32) -> Volumes:
    """20 cases of size^3 voxels from 4 scanners, always the same."""
    cases = {
        f"Phantom_scanner{scanner}_{number}": _case(size, gamma, noise, 100 * index + number)
        for index, (scanner, (gamma, noise)) in enumerate(SCANNERS.items())
        for number in range(1, CASES + 1)
    }
    images, labels = (torch.stack(part) for part in zip(*cases.values()))
    return volumes(images, labels, list(cases), f"embedded phantom (synthetic, {size}x{size}x{size}), not BraTS")


def _case(size: int, gamma: float, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """image: uint8 (4, S, S, S), label: uint8 (S, S, S)."""
    draws = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    place = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))

    def smooth(cells: int) -> Tensor:
        """A random field of about unit spread that changes over size / cells voxels."""
        coarse = torch.randn(1, 1, cells, cells, cells, generator=draws)
        return interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)[0, 0]

    def distance(centre: Tensor, radii: Tensor) -> Tensor:
        return ((place - centre.view(3, 1, 1, 1)) / radii.view(3, 1, 1, 1)).square().sum(0).sqrt()

    brain = distance(torch.zeros(3), torch.tensor([0.75, 0.92, 0.8])) + 0.02 * smooth(5) < 1
    middle = torch.tensor([0.35, 0.4, 0.35]) * (2 * torch.rand(3, generator=draws) - 1)
    radii = 0.28 + 0.2 * torch.rand(3, generator=draws)
    depth = distance(middle, radii) + 0.12 * smooth(6)
    label = ((depth < 1).int() + (depth < 0.72).int() + (depth < 0.45).int()) * brain
    kind = label.clone()
    for side in (-0.15, 0.15):
        ventricle = distance(torch.tensor([side, 0.05, 0.1]), torch.tensor([0.09, 0.35, 0.16])) < 1
        kind[ventricle & (label == 0)] = 4
    tissue = 1 + 0.12 * smooth(10)
    bias = 1 + 0.1 * smooth(3)
    image = CONTRAST[:, kind.long()] * tissue * bias + noise * torch.randn(4, size, size, size, generator=draws)
    image = (255 * image.clamp(0, 1) ** gamma).clamp(min=1) * brain  # inside the brain nothing is 0
    return image.to(torch.uint8), label.to(torch.uint8)
