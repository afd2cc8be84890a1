"""The random Hadamard rotation: orthogonal, undone exactly enough, and what it is for."""

import pytest
import torch

from cosquant_lite import wire
from cosquant_lite.metrics import nmse
from cosquant_lite.quantize import Cosine, Uniform
from cosquant_lite.rotation import LARGEST, rotate, unrotate, windows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_block_is_multiplied_by_the_hadamard_matrix_and_signs():
    n = 16
    matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)], dtype=torch.float64)
    images = torch.stack([rotate(row, "hadamard", 5, 1) for row in torch.eye(n, dtype=torch.float64)], 1)
    assert torch.allclose(images.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))
    signs = (images / matrix * n**0.5).round()
    assert torch.equal(signs, signs[:1].expand(n, n))  # one sign for each entry of x
    assert 0 < (signs[0] < 0).sum() < n


def test_channels_are_multiplied_by_the_hadamard_matrix_and_signs_flip_after_it():
    """As in the group's published code, for its numbers of channels, the powers of two."""
    x = torch.randn(16, 5, 3, generator=generator())
    matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)], dtype=torch.float64)
    signs = rotate(x, "channels", 5, 1).flatten(1) / (matrix @ x.double().flatten(1) / 4)
    assert torch.allclose(signs.abs(), torch.ones(1, dtype=torch.float64))
    assert 0.3 < (signs < 0).double().mean() < 0.7


@pytest.mark.parametrize("kind", ["hadamard", "channels"])
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (3, 0), (0, 3), (1,), (2,), (864,), (10, 64), (7, 3, 3), (65, 2000), (LARGEST + 1,), (3 * LARGEST - 1,)],
)
def test_it_keeps_lengths_and_is_undone(shape, kind):
    x = torch.randn(shape, generator=generator())
    turned = rotate(x, kind, 7, 3)
    n = x.numel()
    assert {i for window in windows(n) for i in range(n)[window]} == set(range(n))
    assert turned.shape == x.shape
    assert torch.allclose(turned.norm(), x.double().norm(), rtol=1e-12)
    assert torch.allclose(unrotate(turned.float().flatten(), shape, kind, 7, 3).view(shape), x, atol=2e-6)


def test_over_channels_a_spike_stays_in_its_column():
    x = torch.randn(64, 1000, generator=generator())
    x[3, 17] = 1000.0
    turned = rotate(x, "channels", 1, 0)
    assert (turned.abs().amax(0) > 100).nonzero().tolist() == [[17]]
    assert rotate(x, "hadamard", 1, 0).abs().max() < 100


def test_seeds_and_tensors_turn_differently():
    x = torch.ones(4096)
    turned = [rotate(x, "hadamard", seed, tensor) for seed, tensor in ((1, 0), (2, 0), (1, 1))]
    for left, right in ((0, 1), (0, 2)):
        assert abs(torch.dot(turned[left], turned[right])) < 5 * 64  # independent: about 64


@pytest.mark.parametrize("n", [LARGEST, LARGEST + 1, LARGEST - 1, 66_000, 18_432])
@pytest.mark.parametrize("where", [0, 17, -1])
def test_a_spike_anywhere_is_spread(n, where):
    x = torch.randn(n, generator=generator())
    x[where] = 1000.0
    quantizer = Uniform(4, clip=0, rounding="stochastic", range="minmax")
    plain, turned = (
        nmse(x, wire.decode(wire.encode({"x": x}, quantizer, generator=generator(), rotate=way))["x"])
        for way in ("none", "hadamard")
    )
    assert rotate(x, "hadamard", 1, 0).abs().max() < 12 * x.norm() / n**0.5
    assert turned < plain / 100
    assert turned < 5 * 0.054  # 0.054: what a Gaussian tensor has, see notebook 03


@pytest.mark.parametrize("kind", ["hadamard", "channels"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rotated_frames_carry_every_float_dtype_and_leave_others_alone(dtype, kind):
    state = {"x": torch.randn(50, 9, generator=generator()).to(dtype), "n": torch.arange(5)}
    received = wire.decode(wire.encode(state, Cosine(8), rotate=kind, generator=generator()))
    assert torch.equal(received["n"], state["n"])
    assert received["x"].dtype == dtype
    assert nmse(state["x"].double(), received["x"].double()) < 0.01


@pytest.mark.parametrize("kind", ["hadamard", "channels"])
def test_with_unbiased_rounding_the_mean_is_kept(kind):
    x = torch.randn(10, 10, generator=generator())
    quantizer, draws = Uniform(2, clip=0, rounding="stochastic", range="minmax"), generator(1)
    sent = [wire.decode(wire.encode({"x": x}, quantizer, rotate=kind, generator=draws))["x"] for _ in range(2000)]
    error = (torch.stack(sent).mean(0) - x) / (torch.stack(sent).std(0) / 2000**0.5)  # in standard deviations
    assert error.abs().max() < 5
    assert abs(error.square().mean() - 1) < 0.6
