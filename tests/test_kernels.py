"""The fast path gives what the definition gives, whatever the input and the number of threads."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch

from cosquant_lite import kernels, quantize
from cosquant_lite.packing import unpack
from cosquant_lite.quantize import Cosine, Uniform

N = 300_003  # several chunks, a remainder, and more than is sorted
INPUTS = {
    "gaussian": lambda g: torch.randn(N, generator=g),
    "heavy tails": lambda g: torch.randn(N, generator=g) / torch.rand(N, generator=g),
    "one dominant entry": lambda g: torch.cat([torch.tensor([-100.0]), 1e-3 * torch.randn(N - 1, generator=g)]),
    "half zeros": lambda g: torch.randn(N, generator=g) * (torch.rand(N, generator=g) < 0.5),
    "all negative": lambda g: -torch.rand(N, generator=g) - 1,
    "tiny": lambda g: 1e-36 * torch.randn(N, generator=g),
    "huge": lambda g: 1e34 * torch.randn(N, generator=g),
    "few values": lambda g: torch.randint(-3, 4, (N,), generator=g).float(),
    "constant": lambda g: torch.full((N,), -2.5),
    "zeros": lambda g: torch.zeros(N),
    "float16": lambda g: torch.randn(N, generator=g).half(),
    "bfloat16": lambda g: torch.randn(N, generator=g).bfloat16(),
    "over many decades": lambda g: torch.randn(N, generator=g) * torch.exp(60 * torch.rand(N, generator=g) - 50),
    "just large enough": lambda g: torch.randn(kernels.SMALL, generator=g),
    "sorted, half zeros": lambda g: torch.randn(100_000, generator=g) * (torch.rand(100_000, generator=g) < 0.5),
    "sorted, some almost zero": lambda g: (
        torch.randn(100_000, generator=g) * 1e-17 ** torch.randint(2, (100_000,), generator=g)
    ),
    "small": lambda g: torch.randn(1001, generator=g),
    "few": lambda g: torch.randn(7, generator=g),
    "one": lambda g: torch.randn(1, generator=g),
}
QUANTIZERS = {
    f"{make.__name__}, {clip}, {options}": lambda bits, make=make, clip=clip, options=options: make(
        bits, clip, **options
    )
    for clip in (0, 0.01, 0.49)
    for make, options in ((Cosine, {}), (Uniform, {}), (Uniform, {"range": "minmax"}))
}


@pytest.mark.parametrize("clip", [0, 0.01, 0.49])
@pytest.mark.parametrize("name", INPUTS)
def test_statistics_are_those_of_the_definition(name, clip):
    x = INPUTS[name](torch.Generator().manual_seed(0)).float()
    exact, fast = quantize.statistics(x.double(), clip), kernels.statistics(x, clip)
    assert fast[1:] == exact[1:]
    assert fast[0] == pytest.approx(exact[0], rel=1e-12)


@pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("name", INPUTS)
def test_codes_are_those_of_the_definition(name, make):
    x = INPUTS[name](torch.Generator().manual_seed(1))
    assert kernels._is_fast(x)  # or the test would compare the definition with itself
    for bits in range(1, 9):
        exact = make(bits).quantize(x)
        floats, packed = kernels.quantize_packed(x, make(bits))
        assert floats == exact.floats
        assert torch.equal(unpack(packed, bits, len(x)), exact.codes)
        decoded = kernels.dequantize_packed(packed, make(bits).table(floats), bits, len(x))
        assert torch.equal(decoded, make(bits).dequantize(exact))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("make", [Cosine, Uniform])
def test_codes_at_the_borders_are_those_of_the_definition(make, bits):
    """The floats just below, at and just above every border, which random entries hardly ever are; and tiny ones."""
    quantizer = make(bits, clip=0)
    x = torch.randn(kernels.SMALL, generator=torch.Generator().manual_seed(2))
    floats = quantizer.side_info(*kernels.statistics(x, 0))
    edges = kernels.borders(quantizer, floats)
    near = [edges]
    for end in (-np.inf, np.inf):
        for _ in range(3):
            near.append(np.nextafter(near[-1], np.float32(end)))
    tiny = np.float32(2.0) ** np.arange(-149, 10, dtype=np.float32)
    points = torch.from_numpy(np.concatenate([*near, tiny, -tiny, [0.0, -0.0]]).astype(np.float32))
    exact = quantizer.codes(points, floats)
    assert len(exact.unique()) == quantizer.levels
    assert torch.equal(unpack(kernels._nearest(points.numpy(), quantizer, floats), bits, len(points)), exact)


@pytest.mark.parametrize("quantizer", [Cosine(3), Uniform(3)], ids=str)
def test_zeros_have_the_right_code_where_denormals_are_read_as_zero(quantizer):
    x = INPUTS["sorted, half zeros"](torch.Generator().manual_seed(3))
    exact = quantizer.quantize(x).codes
    try:
        torch.set_flush_denormal(True)
        _, packed = kernels.quantize_packed(x, quantizer)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(unpack(packed, quantizer.bits, len(x)), exact)


@pytest.mark.filterwarnings("error")
def test_the_largest_floats_and_the_next_ones_have_their_codes():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([largest, np.nextafter(np.float32(largest), np.float32(0))]).repeat(kernels.SMALL)
    for bits in range(1, 9):
        quantizer = Uniform(bits, clip=0, range="minmax")
        _, packed = kernels.quantize_packed(x, quantizer)
        assert torch.equal(unpack(packed, bits, len(x)), quantizer.quantize(x).codes)


@pytest.mark.parametrize("norm", [1.0, 7.3e-5, 2e-36, 3e34])
@pytest.mark.parametrize("largest", [1.0, 0.3, 1e-2, 1e-5, 3e-8])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("make", [Cosine, Uniform])
def test_borders_are_where_a_search_through_all_floats_finds_them(make, bits, largest, norm):
    """Whatever the scale of the tensor, and however small a part of its norm the levels span."""
    quantizer = make(bits)
    floats = quantizer.side_info(norm, largest * norm, -2 * norm, 2 * norm)

    def above(x: np.ndarray, between: float) -> np.ndarray:
        codes = quantizer.codes(torch.from_numpy(x), floats).numpy()
        return codes > between if make is Uniform else codes < between

    ends = np.float32(-3e38), np.float32(3e38)
    found = [kernels._search(partial(above, between=i + 0.5), *ends) for i in range(quantizer.levels - 1)]
    assert np.array_equal(kernels.borders(quantizer, floats), np.sort(found))


@pytest.mark.parametrize("quantizer", [Cosine(3, rounding="stochastic"), Uniform(4, rounding="stochastic")], ids=str)
def test_stochastic_rounding_uses_the_same_random_numbers(quantizer):
    x = INPUTS["gaussian"](torch.Generator().manual_seed(3))
    exact = quantizer.quantize(x, torch.Generator().manual_seed(4))
    floats, packed = kernels.quantize_packed(x, quantizer, torch.Generator().manual_seed(4))
    assert floats == exact.floats
    assert torch.equal(unpack(packed, quantizer.bits, N), exact.codes)


@pytest.mark.parametrize(
    "quantizer", [Cosine(3), Uniform(5, range="minmax"), Cosine(2, rounding="stochastic")], ids=str
)
@pytest.mark.parametrize("share", [0.3, 0.0])
def test_a_mask_leaves_the_side_information_alone(quantizer, share):
    x = INPUTS["heavy tails"](torch.Generator().manual_seed(5))
    keep = torch.rand(N, generator=torch.Generator().manual_seed(6)) < share
    exact = quantizer.quantize(x, torch.Generator().manual_seed(4), keep=keep)
    floats, packed = kernels.quantize_packed(x, quantizer, torch.Generator().manual_seed(4), keep)
    assert floats == exact.floats == quantizer.quantize(x, torch.Generator().manual_seed(4)).floats
    assert torch.equal(unpack(packed, quantizer.bits, int(keep.sum())), exact.codes)


def test_the_result_does_not_depend_on_the_number_of_threads():
    x = torch.randn(4_000_001, generator=torch.Generator().manual_seed(7))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            floats, packed = kernels.quantize_packed(x, Cosine(3))
            decoded = kernels.dequantize_packed(packed, Cosine(3).table(floats), 3, len(x))
            results.append((kernels.statistics(x, 0.01), floats, packed.numpy().tobytes(), decoded.numpy().tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert results[1:] == results[:1] * 3


def test_the_kth_largest_is_the_same_sorted_and_counted(monkeypatch):
    x = INPUTS["over many decades"](torch.Generator().manual_seed(9))
    for sorted_up_to in (0, 10**9):
        monkeypatch.setattr(kernels, "SORTED", sorted_up_to)
        for clip in (0.0001, 0.01, 0.49):
            assert kernels.statistics(x, clip)[1] == quantize.statistics(x.double(), clip)[1]


@pytest.mark.parametrize("shape", [(600, 500), (500, 600)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_large_tensor_with_a_bad_entry_is_refused_as_a_small_one_is(bad, shape):
    x = torch.zeros(shape)
    x[300, 40] = bad
    with pytest.raises(ValueError, match=r"1 of 300000 entries are NaN or infinite, .* at index \(300, 40\)"):
        kernels.quantize_packed(x, Cosine(2))
    with pytest.raises(ValueError, match="rounding='stochastic' needs generator"):
        kernels.quantize_packed(torch.zeros(N), Cosine(2, rounding="stochastic"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [Cosine, Uniform])
def test_cuda_codes_are_those_of_the_cpu(make):
    x = INPUTS["gaussian"](torch.Generator().manual_seed(8))
    for bits in range(1, 9):
        floats, packed = kernels.quantize_packed(x.cuda(), make(bits))
        assert packed.is_cuda
        exact = make(bits).quantize(x)
        assert floats == pytest.approx(exact.floats, rel=1e-6)
        wrong = (unpack(packed, bits, N).cpu() != exact.codes).float().mean()
        assert wrong < 1e-4  # the last bit of the norm moves every border a little
        values = kernels.dequantize_packed(packed, make(bits).table(floats), bits, N)
        assert values.is_cuda


def test_neither_a_fitted_scale_nor_an_automatic_clip_depends_on_the_number_of_threads():
    x = torch.randn(4_000_001, generator=torch.Generator().manual_seed(7)) + 0.1
    quantizer = Cosine(3, clip="auto", scale="mse")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            floats, packed = kernels.quantize_packed(x, quantizer)
            sums, counts = kernels._by_code(x, packed, 3)
            magnitudes = kernels._magnitudes(x)
            results.append((floats, packed.numpy().tobytes(), sums.tolist(), counts.tolist(), magnitudes.tolist()))
    finally:
        torch.set_num_threads(threads)
    assert results[1:] == results[:1] * 2
    assert counts.sum() == len(x)


@pytest.mark.parametrize("error", [OSError, EOFError, pickle.UnpicklingError])
def test_compiled_code_that_cannot_be_kept_or_read_is_compiled_again(monkeypatch, error):
    """A full disk, or half a file in the cache."""

    def broken(function):
        def call(*arguments):
            raise error

        return call

    real = kernels.numba.njit
    real(lambda: 0)()  # the first compilation of a process imports modules that use njit themselves
    monkeypatch.setattr(kernels.numba, "njit", lambda **options: broken if "cache" in options else real(**options))
    add = kernels._kernel(lambda a, b: a + b)
    assert add(2, 3) == 5
    assert add(2.5, 3) == 5.5


def test_without_a_folder_for_compiled_code_it_is_compiled_in_every_process(monkeypatch):
    def nowhere(function):
        raise RuntimeError("cannot cache function: no locator available")

    real = kernels.numba.njit
    real(lambda: 0)()
    monkeypatch.setattr(kernels.numba, "njit", lambda **options: nowhere if "cache" in options else real(**options))
    assert kernels._kernel(lambda a, b: a + b)(2, 3) == 5


@pytest.mark.parametrize("quantizer", [Cosine(2, scale="unbiased"), Uniform(2, scale="mse")], ids=str)
def test_a_fitted_scale_is_fitted_to_what_the_mask_keeps(quantizer):
    x = INPUTS["gaussian"](torch.Generator().manual_seed(5))
    keep = torch.rand(N, generator=torch.Generator().manual_seed(6)) < 0.3
    exact = quantizer.quantize(x, keep=keep).floats
    assert kernels.quantize_packed(x, quantizer, keep=keep)[0] == pytest.approx(exact, rel=3e-7)
    arrived = quantizer.dequantize(quantizer.quantize(x, keep=keep)).double()
    along, kept = float(arrived @ x[keep].double()), x[keep] if quantizer.scale == "unbiased" else arrived
    assert along == pytest.approx(float(kept.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("n", [3, 2**16, 2**17 + 5])
def test_look_up_names_every_entry(n):
    codes = (torch.arange(n) % 251).to(torch.uint8)
    table = torch.linspace(-1, 1, 256)
    assert torch.equal(kernels.look_up(codes, table), table[codes.int()])


@pytest.mark.parametrize("bits", [2, 8])
def test_codes_of_a_range_from_below_to_zero_are_those_of_the_definition(bits):
    """Where the larger end is the low one, and entries lie on the borders themselves."""
    x = -torch.arange(kernels.SMALL).remainder(511).float() / 2
    quantizer = Uniform(bits, clip=0, range="minmax")
    _, packed = kernels.quantize_packed(x, quantizer)
    assert torch.equal(unpack(packed, bits, len(x)), quantizer.quantize(x).codes)


def test_codes_are_those_of_the_definition_where_three_borders_share_a_cell():
    """Near the ends of a cosine that spans the whole norm."""
    quantizer, floats = Cosine(8, clip=0), (1.0, 0.0)
    points = torch.cat([torch.linspace(-1, -0.99, kernels.SMALL), torch.linspace(0.99, 1, kernels.SMALL)])
    packed = kernels._nearest(points.numpy(), quantizer, floats)
    assert torch.equal(unpack(packed, 8, len(points)), quantizer.codes(points, floats))
