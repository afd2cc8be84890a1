"""Random masks: the stated generator, the stated share, and back."""

import pytest
import spec_decoder
import torch

from cosquant_lite.mask import PIECE, Mask, spread, take


def test_the_mask_is_what_the_docstring_says():
    for n, p, seed, tensor in ((0, 0.5, 0, 0), (11, 0.5, 1, 0), (1000, 0.05, 2**63 - 2, 7), (PIECE + 9, 0.9, 3, 1)):
        assert Mask(p, seed).kept(n, tensor).tolist() == spec_decoder.kept(n, p, seed, tensor)


@pytest.mark.parametrize("p", [0.5, 0.021, 1e-4])
def test_the_share_is_p(p):
    n = 400_000
    assert abs(int(Mask(p, 0).kept(n, 0).sum()) - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_take_and_spread(n, dtype):
    x = torch.arange(1, n + 1).to(dtype)
    keep = Mask(0.3, 5).kept(n, 0)
    assert torch.equal(take(x, keep), x[keep])
    assert torch.equal(spread(take(x, keep), keep), x * keep)
