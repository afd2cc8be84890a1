"""Two improvements that cost no byte: a scale fitted to the codes, and a clip chosen for each tensor."""

import math

import pytest
import torch

from cosquant_lite import clipping, kernels, quantize, wire
from cosquant_lite.link import parse_link, send
from cosquant_lite.metrics import nmse
from cosquant_lite.packing import unpack
from cosquant_lite.quantize import Cosine, Uniform

MAKE = [Cosine, Uniform]
SIZES = [1_000, 2**18 + 5]  # the definition, and the kernels
CLIPS = (0.0, *(10 ** (-5 + 0.12 * i) for i in range(40)))  # up to 48 %


def gaussian(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def received(x, quantizer, **options):
    return wire.decode(wire.encode({"x": x}, quantizer, **options))["x"]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rounding", quantize.ROUNDINGS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("make", MAKE)
def test_scale_mse_is_the_projection_of_x_on_what_the_codes_say(make, bits, rounding, n):
    """x - x_hat is orthogonal to x_hat: no other factor has a smaller error."""
    x, coins = gaussian(n), [torch.Generator().manual_seed(1) for _ in range(2)]
    plain, fitted = (
        received(x, make(bits, rounding=rounding, scale=scale), generator=coins[i]).double()
        for i, scale in enumerate(("norm", "mse"))
    )
    torch.testing.assert_close(fitted / fitted.norm(), plain / plain.norm(), rtol=0, atol=1e-6)
    assert abs(float((x - fitted) @ fitted)) < 1e-5 * float(fitted @ fitted)
    assert nmse(x, fitted) <= nmse(x, plain) + 1e-9


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("make", MAKE)
def test_scale_unbiased_arrives_as_long_as_x_along_x(make, n):
    x = gaussian(n)
    arrived = received(x, make(1, scale="unbiased")).double()
    assert float(arrived @ x.double()) == pytest.approx(float(x.double() @ x.double()), rel=1e-6)


def test_scale_unbiased_is_unbiased_over_random_rotations():
    """The mean over rotations comes as near to x as the mean of independent, unbiased estimates does: 1 / trials."""
    x, trials = gaussian(256), 400
    quantizer, coins, errors = Cosine(1, clip=0, scale="unbiased"), torch.Generator().manual_seed(0), []
    mean = torch.zeros(256)
    for _ in range(trials):
        one = received(x, quantizer, rotate="hadamard", generator=coins)
        errors.append(nmse(x, one))
        mean += one / trials
    assert nmse(x, mean) < 2 * sum(errors) / trials / trials


@pytest.mark.parametrize("rounding", quantize.ROUNDINGS)
@pytest.mark.parametrize("scale", quantize.SCALES)
@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_clip_auto_is_about_the_best_clip(make, bits, scale, rounding):
    for x in (
        gaussian(20_000),
        gaussian(20_000) ** 3,
        torch.distributions.Laplace(0, 1).icdf(
            0.001 + 0.998 * torch.rand(20_000, generator=torch.Generator().manual_seed(0))
        ),
    ):

        def error(clip, x=x):
            quantizer = make(bits, clip=clip, rounding=rounding, scale=scale)
            return sum(nmse(x, quantizer.roundtrip(x, torch.Generator().manual_seed(i))) for i in range(3)) / 3

        assert error("auto") <= 1.04 * min(map(error, CLIPS))


@pytest.mark.parametrize("make", MAKE)
def test_the_expected_error_is_the_error(make):
    x = gaussian(20_000)
    for bits, clip, scale in ((1, 0.1, "norm"), (2, 0.01, "mse"), (4, 0, "unbiased")):
        quantizer = make(bits, clip=clip, scale=scale)
        found = clipping.counts(x)
        filled = found.nonzero().flatten()
        middle = (torch.stack([filled, filled + 1]) << 16).to(torch.int32).view(torch.float32).double().mean(0)
        largest = quantize.statistics(x.double(), clip)[1]
        expected = clipping.error(found[filled].double(), middle, largest, quantizer) / float(x.double().square().sum())
        assert expected == pytest.approx(nmse(x, quantizer.roundtrip(x)), rel=0.03)


@pytest.mark.parametrize(
    "options", [{"scale": "mse"}, {"scale": "unbiased"}, {"clip": "auto"}, {"clip": "auto", "scale": "mse"}], ids=str
)
@pytest.mark.parametrize("make", MAKE)
def test_kernels_do_what_the_definition_does(make, options):
    x = gaussian(2**18 + 5)
    x[::1000] *= 30
    quantizer = make(2, **options)
    slow, (floats, packed) = quantizer.quantize(x), kernels.quantize_packed(x, quantizer)
    assert floats == pytest.approx(slow.floats, rel=3e-7)
    assert torch.equal(unpack(packed, 2, len(x)), slow.codes)
    assert torch.equal(kernels._magnitudes(x), clipping.counts(x))


def test_known_numbers_on_a_gaussian():
    x = gaussian(2**20)
    assert nmse(x, received(x, Cosine(1))) == pytest.approx(3.55, rel=0.02)
    assert nmse(x, received(x, Cosine(1, scale="mse"))) == pytest.approx(1 - 2 / math.pi, rel=0.005), "1 - 2 / pi"
    assert nmse(x, received(x, Cosine(2))) == pytest.approx(0.248, rel=0.02)
    assert nmse(x, received(x, Cosine(2, scale="mse"))) == pytest.approx(0.199, rel=0.02)
    assert 0.1175 < nmse(x, received(x, Cosine(2, clip="auto", scale="mse"))) < 0.1205, "Lloyd-Max: 0.1175"


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize(
    "x", [torch.zeros(5), torch.tensor([3.0]), torch.tensor([]), torch.tensor([0.0, 0, 0, -2])], ids=str
)
def test_degenerate_tensors(make, x):
    for options in ({"scale": "mse"}, {"clip": "auto"}, {"scale": "unbiased", "clip": "auto"}):
        assert received(x, make(2, **options)).isfinite().all()
    assert torch.equal(received(torch.zeros(5), make(2, scale="mse")), make(2).roundtrip(torch.zeros(5)))


def test_as_links_and_errors():
    quantizer = parse_link("cosine:2,clip=auto,scale=mse").quantizer
    assert (quantizer.clip, quantizer.scale) == ("auto", "mse")
    state = {"w": gaussian(100)}
    assert send(state, parse_link("cosine:2,clip=auto,scale=mse")).bytes == send(state, parse_link("cosine:2")).bytes
    for text, words in (
        ("cosine:2,scale=best", "scale must be one of 'norm', 'mse', 'unbiased'"),
        ("cosine:2,clip=automatic", "clip 'automatic' is not a number"),
        ("uniform:2,range=minmax,clip=auto", "range='minmax' goes neither"),
        ("uniform:2,range=minmax,scale=mse", "range='minmax' goes neither"),
        ("cosine:2,mask=auto", "mask"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_link(text)


@pytest.mark.parametrize("make", MAKE)
def test_clip_auto_counts_a_small_tensor_s_largest_entries_as_the_clip_does(make):
    for seed in range(20):
        x = gaussian(40, seed) ** 3

        def error(clip, x=x):
            return nmse(x, make(2, clip=clip).roundtrip(x))

        assert error("auto") <= 1.04 * min(map(error, clipping.CANDIDATES))
