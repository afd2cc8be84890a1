"""The quantizers against the formulas, the authors' reference vectors, and bad input."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosquant_lite.datasets import synthetic
from cosquant_lite.metrics import mean_nmse, nmse
from cosquant_lite.quantize import Cosine, Quantized, Uniform, check_generator
from cosquant_lite.streams import generator as stream

REFERENCE = np.load(Path(__file__).parent / "data" / "cosine_reference.npz")
CASES = json.loads(str(REFERENCE["meta"]))
QUANTIZERS = [Cosine, Uniform, lambda *a: Uniform(*a, range="minmax")]


def tensor(n=1000, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The authors' own routine


def test_cosine_reproduces_the_reference_vectors():
    off, total = 0, 0
    for case in CASES:
        x, codes, x_hat = (torch.from_numpy(REFERENCE[f"{case['id']}_{kind}"]) for kind in ("x", "codes", "xhat"))
        quantizer = Cosine(case["bits"], case["clip"])
        ours = quantizer.quantize(x)
        different = ours.codes != codes
        assert abs(ours.bound - case["bound_rad"]) < 1e-4, case
        assert (ours.codes.int() - codes.int()).abs().max() <= 1, case
        assert different.sum() <= max(1, len(x) // 1000), case
        error = (quantizer.dequantize(ours) - x_hat).abs()[~different]
        assert error.max() <= 1e-5 * case["norm"], case
        off, total = off + int(different.sum()), total + len(x)
    assert len(CASES) == 50
    assert off <= total / 10_000


# Oracles in plain numpy, float64


def numpy_cosine(x, bits, clip):
    norm = np.linalg.norm(x)
    theta = np.arccos(np.clip(x / norm, -1, 1))
    bound = np.pi / 2 - np.sort(np.abs(theta - np.pi / 2))[len(x) - int(clip * len(x)) - 1]
    u = (np.clip(theta, bound, np.pi - bound) - bound) / (np.pi - 2 * bound) * (2**bits - 1)
    return u, lambda codes: norm * np.cos(codes * (np.pi - 2 * bound) / (2**bits - 1) + bound)


def numpy_uniform(x, bits, clip, symmetric):
    m = np.sort(np.abs(x))[len(x) - int(clip * len(x)) - 1]
    x = np.clip(x, -m, m)
    low, high = (-m, m) if symmetric else (x.min(), x.max())
    return (x - low) / (high - low) * (2**bits - 1), lambda codes: low + codes * (high - low) / (2**bits - 1)


@pytest.mark.parametrize(("bits", "clip"), list(product(range(1, 9), (0, 0.01, 0.1, 0.49))))
def test_codes_and_values_are_the_formulas(bits, clip):
    x = tensor(997, seed=bits)
    for quantizer, (u, value) in (
        (Cosine(bits, clip), numpy_cosine(x.double().numpy(), bits, clip)),
        (Uniform(bits, clip), numpy_uniform(x.double().numpy(), bits, clip, symmetric=True)),
        (Uniform(bits, clip, range="minmax"), numpy_uniform(x.double().numpy(), bits, clip, symmetric=False)),
    ):
        quantized = quantizer.quantize(x)
        codes = quantized.codes.numpy()
        at_a_border = np.abs(u - np.floor(u) - 0.5) < 1e-4  # the transmitted floats are rounded to float32
        np.testing.assert_array_equal(codes[~at_a_border], np.round(u)[~at_a_border])
        assert at_a_border.mean() < 0.01
        np.testing.assert_allclose(quantizer.dequantize(quantized).numpy(), value(codes), atol=1e-6 * float(x.norm()))


def test_stochastic_rounding_goes_up_with_probability_of_the_fraction():
    x, trials = tensor(50), 4000
    u, _ = numpy_cosine(x.double().numpy(), 3, 0)
    quantizer, coins = Cosine(3, 0, "stochastic"), generator()
    codes = torch.stack([quantizer.quantize(x, coins).codes for _ in range(trials)]).double()
    assert ((codes - torch.from_numpy(np.floor(u))).abs() <= 1 + 1e-9).all()
    tolerance = 5 * 0.5 / math.sqrt(trials)  # five standard deviations of a mean of coins
    np.testing.assert_allclose(codes.mean(0).numpy(), u, atol=tolerance)


def test_uniform_stochastic_is_unbiased_in_value_and_cosine_shrinks():
    x, trials, coins = torch.tensor([1.0, 0.6, 0.3, -0.2, -0.8]), 4000, generator()
    uniform = torch.stack([Uniform(1, 0, "stochastic").roundtrip(x, coins) for _ in range(trials)]).mean(0)
    assert (uniform - x).abs().max() < 5 / math.sqrt(trials)
    quantizer = Cosine(2, 0, "stochastic")
    cosine = torch.stack([quantizer.roundtrip(x, coins) for _ in range(trials)]).mean(0)
    step = (math.pi - 2 * quantizer.quantize(x, coins).bound) / 3
    noise = 5 * x.norm() * step / math.sqrt(trials)
    assert (cosine.abs() <= x.abs() + noise).all()
    assert (cosine.abs() >= x.abs() * math.cos(step / 2) - noise).all()


# Bounds and identities

FLOATS = st.floats(-1e6, 1e6, width=32)
LISTS = st.lists(FLOATS, min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(LISTS, st.integers(1, 8))
def test_cosine_error_bound(values, bits):
    x = torch.tensor(values)
    quantizer = Cosine(bits, clip=0)
    quantized = quantizer.quantize(x)
    x_hat = quantizer.dequantize(quantized).double()
    if quantized.norm == 0:
        assert not x_hat.any()
        return
    step = (math.pi - 2 * quantized.bound) / (2**bits - 1)
    theta, theta_hat = (torch.arccos((y.double() / quantized.norm).clamp(-1, 1)) for y in (x, x_hat))
    bound = 2 * quantized.norm * math.sin(step / 4) * torch.sin((theta + theta_hat) / 2)
    assert ((x_hat - x).abs() <= bound + 1e-6 * quantized.norm).all()


@settings(max_examples=200, deadline=None)
@given(LISTS, st.integers(1, 8), st.sampled_from(["symmetric", "minmax"]))
def test_uniform_error_bound(values, bits, range_):
    x = torch.tensor(values)
    quantizer = Uniform(bits, clip=0, range=range_)
    low, high = quantizer.quantize(x).floats
    error = (quantizer.roundtrip(x) - x).abs().max()
    assert error <= (high - low) / 2 / (2**bits - 1) + 1e-6 * max(abs(low), abs(high))


@settings(max_examples=100, deadline=None)
@given(LISTS, st.integers(1, 8), st.sampled_from([0.0, 0.01, 0.3]), st.sampled_from(range(3)))
def test_values_are_levels_within_the_range(values, bits, clip, which):
    x = torch.tensor(values)
    quantizer = QUANTIZERS[which](bits, clip)
    x_hat = quantizer.roundtrip(x)
    assert x_hat.dtype == torch.float32
    assert len(x_hat.unique()) <= 2**bits
    assert x_hat.abs().max() <= x.abs().max() * (1 + 1e-5) + 1e-6 * x.norm()


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_negation_mirrors(make, bits):
    x = tensor(501)
    torch.testing.assert_close(make(bits, 0.01).roundtrip(-x), -make(bits, 0.01).roundtrip(x), rtol=1e-5, atol=1e-6)


def test_clip_cuts_the_largest_share_to_the_next_magnitude():
    x = torch.arange(1.0, 201) * torch.tensor([1.0, -1.0]).repeat(100)
    for clip, largest in ((0, 200), (0.004, 200), (0.005, 199), (0.01, 198), (0.1, 180)):
        for quantizer in (Cosine(8, clip), Uniform(8, clip), Uniform(8, clip, range="minmax")):
            assert quantizer.roundtrip(x).abs().max() == pytest.approx(largest, rel=1e-5)


def test_one_bit_cosine_is_the_sign_times_the_clipped_largest():
    x = tensor(1000)
    largest = x.abs().sort(descending=True).values[10]
    torch.testing.assert_close(Cosine(1, 0.01).roundtrip(x), x.sign() * largest, rtol=1e-4, atol=0)


def test_code_zero_is_the_largest_positive_value_of_cosine():
    codes = Cosine(3, 0).quantize(torch.tensor([5.0, 0.0, -5.0])).codes
    assert codes.tolist()[0] == 0
    assert codes.tolist()[2] == 7


def test_a_large_tensor_makes_cosine_and_symmetric_uniform_the_same():
    x = tensor(65_536)
    difference = (Cosine(4).roundtrip(x) - Uniform(4).roundtrip(x)).norm()
    error = (Cosine(4).roundtrip(x) - x).norm()
    assert difference < 0.1 * error


# Inputs of every kind


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_give_the_codes_of_their_values(make, dtype):
    x = tensor().to(dtype)
    assert torch.equal(make(4, 0.01).quantize(x).codes, make(4, 0.01).quantize(x.float()).codes)
    assert make(4, 0.01).roundtrip(x).dtype == torch.float32
    tiny = x.double() * 1e-30 if dtype == torch.float64 else x  # far below what float32 arithmetic could square
    assert torch.equal(make(4, 0.01).quantize(tiny).codes, make(4, 0.01).quantize(x).codes)


@pytest.mark.parametrize("make", QUANTIZERS)
def test_layout_and_gradient_do_not_matter(make):
    x = tensor(600).reshape(20, 30)
    expected = make(4, 0.01).roundtrip(x)
    assert torch.equal(make(4, 0.01).roundtrip(x.t()), expected.t())
    assert torch.equal(make(4, 0.01).roundtrip(x.clone().requires_grad_()), expected)
    strided = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(make(4, 0.01).roundtrip(strided), expected)


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_empty_zero_constant_and_single(make, bits):
    quantizer = make(bits, 0.01)
    assert quantizer.roundtrip(torch.empty(0, 3)).shape == (0, 3)
    assert not quantizer.roundtrip(torch.zeros(300)).any()
    for value in (3.0, -3.0, 1e-30, 1e30):
        for n in (1, 2, 300):
            x = torch.full((n,), value)
            torch.testing.assert_close(quantizer.roundtrip(x), x, rtol=1e-5, atol=0)
    assert quantizer.roundtrip(torch.tensor(2.5)).shape == ()


def test_more_zeros_than_the_clip_leaves_decode_to_zeros():
    x = torch.zeros(1000)
    x[:5] = 1
    for make in QUANTIZERS:
        assert not make(2, 0.01).roundtrip(x).any()
        assert make(2, 0).roundtrip(x).any()


@pytest.mark.parametrize("make", QUANTIZERS)
def test_extreme_magnitudes(make):
    for scale in (1e-38, 1e36):
        x = tensor(100) * scale
        torch.testing.assert_close(
            make(8, 0).roundtrip(x) / scale, make(8, 0).roundtrip(tensor(100)), rtol=1e-3, atol=1e-2
        )


def test_same_seed_same_codes_and_the_generator_is_used():
    x = tensor()
    for make in (Cosine, Uniform):
        quantizer = make(2, 0.01, "stochastic")
        first, second, other = (quantizer.quantize(x, generator(seed)).codes for seed in (7, 7, 8))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def test_transmitted_floats_are_float32():
    x = tensor().double() * math.pi
    for make in QUANTIZERS:
        for value in make(2, 0.01).quantize(x).floats:
            assert np.float32(value) == value


def test_dequantize_needs_only_bits_codes_and_floats():
    x = tensor()
    sent = Cosine(3, 0.05, "stochastic").quantize(x, generator())
    assert torch.equal(
        Cosine(3).dequantize(Quantized(sent.codes, 3, sent.floats, "cosine")), Cosine(3, 0.05).dequantize(sent)
    )


# Bad input


@pytest.mark.parametrize("make", QUANTIZERS)
def test_nan_and_infinity_say_how_many_and_where(make):
    x = torch.zeros(4, 5)
    x[2, 3], x[3, 1] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 of 20 entries are NaN or infinite, the first is nan at index \(2, 3\)"):
        make(2, 0.01).quantize(x)


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, "2", None, True, np.int64(9), np.float64(2)])
def test_bits_outside_1_to_8_raise_at_construction(make, bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 8"):
        make(bits, 0.01)


@pytest.mark.parametrize("make", QUANTIZERS)
@pytest.mark.parametrize("clip", [-0.01, 0.5, 1, float("nan"), "0.1", None])
def test_clip_outside_its_range_raises_at_construction(make, clip):
    with pytest.raises(ValueError, match=r"clip must be a number in \[0, 0.5\)"):
        make(2, clip)


def test_unknown_names_list_the_allowed_ones():
    with pytest.raises(ValueError, match="rounding must be one of 'nearest', 'stochastic', got 'up'"):
        Cosine(2, rounding="up")
    with pytest.raises(ValueError, match="range must be one of 'symmetric', 'minmax', got 'all'"):
        Uniform(2, range="all")


def test_numpy_numbers_are_numbers():
    assert Cosine(np.int64(2), np.float32(0.25)) == Cosine(2, 0.25)
    assert type(Cosine(np.int64(2)).bits) is int


def test_codes_of_another_scheme_are_refused():
    with pytest.raises(ValueError, match="made by 'cosine' with 2 bits and cannot be decoded by 'uniform'"):
        Uniform(2).dequantize(Cosine(2).quantize(tensor()))
    with pytest.raises(AttributeError, match="no norm"):
        _ = Uniform(2).quantize(tensor()).norm


@pytest.mark.parametrize("make", QUANTIZERS)
def test_all_exact_zeros_get_the_same_level_next_to_zero(make):
    x = tensor(1000)
    x[::7] = 0
    for bits in (1, 2, 3):
        x_hat = make(bits, 0.01).roundtrip(x)
        assert len(x_hat[x == 0].unique()) == 1
        assert x_hat[x == 0].abs().max() == x_hat.abs().min()


def test_wrong_types_and_missing_generator():
    with pytest.raises(TypeError, match=r"expected what quantize\(x\) returns, a Quantized, got Tensor"):
        Cosine(2).dequantize(torch.ones(3))
    with pytest.raises(ValueError, match=r"clip must be a number in \[0, 0.5\), or 'auto', got array"):
        Cosine(2, clip=np.array([0.1, 0.2]))
    with pytest.raises(TypeError, match=r"expected a torch.Tensor, got list"):
        Cosine(2).quantize([1.0])
    with pytest.raises(TypeError, match=r"got torch.int64"):
        Uniform(2).quantize(torch.arange(3))
    with pytest.raises(ValueError, match="needs generator"):
        Cosine(2, rounding="stochastic").quantize(tensor())
    for wrong in (7, np.random.default_rng(0)):
        with pytest.raises(ValueError, match=r"needs generator=torch.Generator\(...\)"):
            Uniform(2, rounding="stochastic").quantize(torch.zeros(3), wrong)
    with pytest.raises(TypeError, match=r"of 16 to 64 bits, got torch.float8_e4m3fn"):
        Cosine(2).quantize(torch.zeros(3, dtype=torch.float8_e4m3fn))
    for hollow in (
        tensor().to_sparse(),
        torch.empty(3, device="meta"),
        torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    ):
        with pytest.raises(TypeError, match="expected a dense tensor with data"):
            Cosine(2).quantize(hollow)


def test_a_norm_beyond_float32_is_refused():
    with pytest.raises(ValueError, match="beyond the float32"):
        Cosine(2).quantize(torch.full((4,), 3e38))


def test_the_coins_know_nothing_of_the_data():
    """Drawn data and coins of one seed must be strangers: torch makes normal and uniform numbers from the same bits."""
    x = synthetic.gaussian(65_536, 0)
    errors = [mean_nmse(x, Cosine(1, rounding="stochastic"), seed=seed) for seed in range(5)]
    assert errors[0] == pytest.approx(np.mean(errors[1:]), rel=0.02)


def test_a_generator_on_another_device_is_refused():
    with pytest.raises(ValueError, match="the generator is on cpu, the tensor on cuda; they must be on the same"):
        check_generator("stochastic", generator(), torch.device("cuda"))


def test_a_low_end_beyond_float32_is_refused_as_a_high_one_is():
    with pytest.raises(ValueError, match="low -1e\\+39 is beyond the float32"):
        Uniform(2, clip=0).quantize(torch.tensor([-1e39, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", ["mse", "unbiased"])
def test_a_mask_that_keeps_only_zeros_leaves_the_scale_as_it_is(scale):
    x = torch.tensor([0.0, 3.0, 0.0, -1.0])
    for keep in (x == 0, x > 9):
        assert Cosine(2, scale=scale).quantize(x, keep=keep).floats == Cosine(2).quantize(x).floats


@pytest.mark.parametrize("scale", ["mse", "unbiased"])
def test_a_fitted_scale_is_fitted_to_what_a_mask_keeps(scale):
    x = tensor()
    keep = torch.rand(1000, generator=generator(1)) < 0.3
    quantizer = Cosine(2, scale=scale)
    arrived, kept = quantizer.dequantize(quantizer.quantize(x, keep=keep)).double(), x[keep].double()
    wanted = kept if scale == "unbiased" else arrived
    assert float(arrived @ kept) == pytest.approx(float(wanted @ wanted), rel=1e-6)


def test_nmse_is_the_energy_of_the_error_over_that_of_x():
    x, y = tensor(), tensor(seed=1)
    assert nmse(x, x) == 0
    assert nmse(x, torch.zeros(1000)) == 1
    a, b = (z.numpy().astype(np.float64) for z in (x, y))
    exact = np.square(a - b).sum() / np.square(a).sum()
    assert nmse(x, y) == pytest.approx(exact, rel=1e-12)
    assert nmse(1e30 * x, 1e30 * y) == pytest.approx(exact, rel=1e-6), "squares of large float32 are no float32"
    assert nmse(torch.zeros(3), torch.ones(3)) == math.inf
    assert math.isnan(nmse(torch.zeros(3), torch.zeros(3)))


def test_mean_nmse_is_the_mean_of_round_trips_with_fresh_coins():
    x, quantizer, coins = tensor(), Cosine(2, rounding="stochastic"), stream(7, "coins")
    errors = [nmse(x, quantizer.roundtrip(x, coins)) for _ in range(3)]
    assert len(set(errors)) == 3
    assert mean_nmse(x, quantizer, trials=3, seed=7) == pytest.approx(sum(errors) / 3)
    assert mean_nmse(x, Cosine(2), trials=3) == nmse(x, Cosine(2).roundtrip(x))
