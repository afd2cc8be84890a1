"""The baselines against their papers' formulas."""

import re

import numpy as np
import pytest
import torch

from cosquant_lite import comparators, wire
from cosquant_lite.comparators import Sign
from cosquant_lite.link import parse_link
from cosquant_lite.metrics import nmse
from cosquant_lite.quantize import Cosine


def heavy(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(3, n)).float()


def test_mean_magnitude_is_the_formula_and_the_best_scale():
    x = heavy(10_001)
    received = Sign().roundtrip(x)
    expected = np.abs(x.double().numpy()).mean() * np.sign(x.numpy())
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-7)
    scales = received.abs().max() * torch.tensor([0.99, 1.01])
    assert all(nmse(x, received) < nmse(x, scale * x.sign()) for scale in scales)


def test_it_halves_no_error_but_never_adds_any():
    for x in (heavy(1000), torch.ones(5), torch.tensor([1.0, 0, 0, 0])):
        assert nmse(x, Sign().roundtrip(x)) <= 1 + 1e-6  # a contraction: |x - C(x)|^2 = |x|^2 - |x|_1^2 / n
        ones, n = x.abs().sum().item(), x.numel()
        assert nmse(x, Sign().roundtrip(x)) == pytest.approx(1 - ones**2 / n / x.square().sum().item(), abs=1e-6)


def test_one_bit_cosine_sends_the_same_signs_at_another_scale():
    x = heavy(5000)
    sign, cosine = Sign().roundtrip(x), Cosine(1).roundtrip(x)
    assert torch.equal(sign.sign(), cosine.sign())
    assert cosine.abs().max() > 3 * sign.abs().max()


def test_scale_one_sends_signs():
    assert Sign("one").roundtrip(torch.tensor([3.0, -0.1, 0.0])).tolist() == [1, -1, -1]


def test_a_tensor_of_zeros_and_an_empty_one_stay():
    for x in (torch.zeros(5), torch.empty(0, 3)):
        assert torch.equal(Sign().roundtrip(x), x)


def test_the_frame_holds_one_bit_an_entry_whatever_the_size():
    for n in (10, 100_000):  # on both sides of where the compiled kernels begin
        x = heavy(n)
        blob = wire.encode({"x": x}, Sign())
        assert torch.equal(wire.decode(blob)["x"], Sign().roundtrip(x))
        assert len(blob) == wire.frame_bytes({"x": x}, 1)


def test_scales_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="scale must be one of 'mean', 'one', got 'max'"):
        Sign("max")


def test_the_links_of_the_table_exist():
    links = re.findall(r"^ {4}((?:uniform|sign)\S*)", comparators.__doc__, re.MULTILINE)
    assert len(links) == 5
    for link in links:
        assert parse_link(link).quantizer is not None
