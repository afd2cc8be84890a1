"""QSGD, NUQSGD, TernGrad, Lloyd-Max, EDEN and top-k: formulas, known errors, and real frames."""

import math

import numpy as np
import pytest
import torch
from fuzz_wire import with_checksum
from spec_decoder import decode as second_decoder

from cosquant_lite import sparse, wire
from cosquant_lite.codebook import NUQSGD, QSGD, Eden, LloydMax, TernGrad, gaussian_levels
from cosquant_lite.link import encode, parse_link, send, send_with_memory
from cosquant_lite.metrics import nmse
from cosquant_lite.quantize import Cosine

UNBIASED = [QSGD(2), QSGD(4), QSGD(3, norm="max"), TernGrad(), NUQSGD(2), NUQSGD(4)]
ALL = [*UNBIASED, LloydMax(1), LloydMax(3), Eden(1), Eden(2, scale="mse")]


def gaussian(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("quantizer", UNBIASED, ids=str)
def test_stochastic_codebooks_are_unbiased(quantizer):
    """The mean of many messages is x, within five standard errors that the spread of the messages gives."""
    x, draws = gaussian(50), coins()
    seen = torch.stack([quantizer.roundtrip(x, draws) for _ in range(4000)]).double()
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - x).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize(("bits", "s"), [(2, 1), (3, 3), (4, 7)])
def test_qsgd_has_its_formula_and_its_error_bound(bits, s):
    """Lemma 3.1 of Alistarh et al.: E |q - x|^2 <= min(n / s^2, sqrt(n) / s) |x|^2."""
    x, n = gaussian(400), 400
    norm = float(x.double().norm())
    assert set(np.round(np.array(QSGD(bits).floats(x.double())) * s / norm, 5)) == set(range(-s, s + 1))
    draws = coins()
    mean = np.mean([nmse(x, QSGD(bits).roundtrip(x, draws)) for _ in range(300)])
    assert mean <= min(n / s**2, math.sqrt(n) / s)
    u = np.abs(x.double().numpy()) / norm * s  # exact: the variance of rounding u is u's fraction times the rest
    exact = ((u % 1) * (1 - u % 1)).sum() / s**2
    assert mean == pytest.approx(exact, rel=0.05)


def test_terngrad_keeps_the_sign_with_probability_magnitude_over_the_largest():
    x = torch.tensor([1.0, -0.5, 0.25, 0.0])
    draws = coins()
    seen = torch.stack([TernGrad().roundtrip(x, draws) for _ in range(4000)])
    assert set(seen.unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close((seen != 0).double().mean(0), x.abs().double(), rtol=0, atol=0.03)
    assert ((seen == 0) | (seen.sign() == x.sign())).all()


def test_nuqsgd_levels_are_powers_of_two():
    x = gaussian(100)
    levels = np.array(NUQSGD(4).floats(x.double())) / float(x.double().norm())
    assert sorted(set(np.abs(levels).round(6))) == [0, *(round(2.0**-k, 6) for k in range(6, -1, -1))]


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_reaches_the_textbook_s_error_on_a_gaussian(bits, error):
    """Max 1960, table I."""
    x = gaussian(400_000)
    assert nmse(x, LloydMax(bits).roundtrip(x)) == pytest.approx(error, rel=0.02)
    levels = torch.tensor(gaussian_levels(bits), dtype=torch.float64)
    cuts = torch.cat([torch.tensor([-40.0]), (levels[1:] + levels[:-1]) / 2, torch.tensor([40.0])])
    moments = torch.special.ndtr(cuts).diff() @ levels.square()
    assert 1 - float(moments) == pytest.approx(error, rel=2e-3), (
        "at the optimum E q^2 = E x q, so the error is 1 - E q^2"
    )


@pytest.mark.parametrize("bits", [7, 8])
def test_many_levels_for_a_gaussian_are_the_best_ones(bits):
    """Panter and Dite 1951: the error of L fine levels approaches sqrt(3) pi / (2 L^2), here from below."""
    levels = torch.tensor(gaussian_levels(bits), dtype=torch.float64)
    x = torch.special.ndtri((torch.arange(2**20, dtype=torch.float64) + 0.5) / 2**20)
    error = (x - levels[torch.searchsorted((levels[1:] + levels[:-1]) / 2, x)]).square().mean()
    assert float(error) == pytest.approx(math.sqrt(3) * math.pi / 2 / 4**bits, rel=0.02)


def test_many_levels_reach_the_tails():
    """A Laplacian of unit variance with L fine levels: 9 / (2 L^2), by Panter and Dite's formula."""
    x = torch.distributions.Laplace(0.0, 0.5**0.5).icdf(torch.rand(100_000, generator=coins()).clamp(1e-6, 1 - 1e-6))
    assert nmse(x, LloydMax(6).roundtrip(x)) < 4.5 / 2**12


def test_lloyd_max_is_no_worse_than_any_shifted_levels():
    x = gaussian(3_000) ** 3
    best = nmse(x, LloydMax(2).roundtrip(x))
    levels = torch.tensor(LloydMax(2).floats(x.double()))
    for factor in (0.9, 0.97, 1.03, 1.1):
        moved = (levels * factor)[(x[:, None] - levels * factor).abs().argmin(1)]
        assert best <= nmse(x, moved)


def test_lloyd_max_leaves_no_level_where_nothing_is():
    """As many values as levels arrive as they are, an outlier takes one level and not most of them."""
    few = torch.tensor([0, 0, 0, 1, 1, 5, 5, 5, 100.0])
    assert torch.equal(LloydMax(2).roundtrip(few), few)
    nearly_all = gaussian(300) ** 5
    assert nmse(nearly_all, LloydMax(8).roundtrip(nearly_all)) < 1e-12
    clusters = (10 * torch.arange(8) + 0.01 * gaussian(400).view(50, 8)).flatten()
    assert nmse(clusters, LloydMax(3).roundtrip(clusters)) < 1e-6
    rest, outlier = gaussian(1000), torch.tensor([5000.0])
    arrived = LloydMax(4).roundtrip(torch.cat([rest, outlier]))
    assert arrived[-1] == outlier
    assert nmse(rest, arrived[:-1]) < 0.03454, "15 levels do better than the best eight on a Gaussian alone"


@pytest.mark.parametrize(("bits", "error"), [(1, math.pi / 2 - 1), (2, 1 / (1 - 0.1175) - 1)])
def test_eden_s_error_on_rotated_vectors(bits, error):
    """Unbiased: 1 / (1 - D) - 1 with D the Lloyd-Max error; for one bit, DRIVE, pi / 2 - 1. With scale mse it is D."""
    x = torch.distributions.Exponential(1.0).icdf(torch.rand(2**14, generator=coins()) * 0.999)
    for scale, expected in (("unbiased", error), ("mse", error / (1 + error))):
        link = parse_link(f"eden:{bits},scale={scale},rotate=hadamard")
        assert nmse(x, send({"x": x}, link, coins()).state["x"]) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("n", [1000, 2**15 - 3])
def test_eden_is_unbiased_for_any_length(n):
    x, link, draws, trials = gaussian(n), parse_link("eden:1,rotate=hadamard"), coins(), 60
    mean = sum(send({"x": x}, link, draws).state["x"] for _ in range(trials)) / trials
    assert nmse(x, mean) < 1.5 * (math.pi / 2 - 1) / trials


@pytest.mark.parametrize("quantizer", ALL, ids=str)
def test_frames_are_read_by_the_second_decoder_and_have_the_stated_length(quantizer):
    state = {"w": gaussian(300).view(30, 10), "b": torch.zeros(3), "e": torch.zeros(0), "n": torch.tensor(4)}
    blob = wire.encode(state, quantizer, generator=coins())
    assert len(blob) == wire.frame_bytes(state, quantizer.bits, table=True)
    ours, theirs = wire.decode(blob), second_decoder(blob)
    for name, x in ours.items():
        assert theirs[name] == (tuple(x.shape), x.flatten().tolist())
    assert torch.equal(ours["b"], torch.zeros(3))


@pytest.mark.parametrize("quantizer", ALL, ids=str)
def test_a_constant_and_a_single_entry_survive(quantizer):
    for x in (torch.tensor([2.0]), torch.full((9,), -3.0), torch.tensor([0.0, 0.0, 5.0])):
        assert quantizer.roundtrip(x, coins()).isfinite().all()


def test_damaged_tables_are_refused():
    blob = bytearray(wire.encode({"w": gaussian(20)}, LloydMax(2)))
    at = blob.index(b"w") + 4
    blob[at : at + 4] = np.float32(np.nan).tobytes()
    import xxhash

    blob[-8:] = xxhash.xxh3_64_intdigest(bytes(blob[:-8])).to_bytes(8, "little")
    with pytest.raises(wire.WireError, match="tensor 'w': the floats"):
        wire.decode(bytes(blob))


def test_top_k_keeps_the_largest_entries_and_counts_their_places():
    state = {"w": gaussian(100_000).view(1000, 100), "b": torch.tensor([0.5, -3.0]), "n": torch.tensor(7)}
    link = parse_link("none,top=0.01,entropy=ans")
    blob = encode(state, link)
    arrived = wire.decode(blob)
    assert int((arrived["w"] != 0).sum()) == 1000
    kept = arrived["w"] != 0
    assert state["w"][kept].abs().min() >= state["w"][~kept].abs().max()
    assert torch.equal(arrived["w"][kept], state["w"][kept])
    assert arrived["b"].tolist() == [0.0, -3.0]
    assert arrived["n"] == 7
    entropy = -(0.01 * math.log2(0.01) + 0.99 * math.log2(0.99)) * 100_000 / 8
    assert 4000 < len(blob) < 4000 + 1.1 * entropy + 300
    assert torch.equal(send(state, link).state["w"], arrived["w"])


def test_top_k_with_memory_sends_everything_in_time():
    """Error feedback: a constant update arrives whole over rounds, though each message holds a twentieth of it."""
    x, lost, sum_ = {"w": gaussian(400)}, None, torch.zeros(400)
    link = parse_link("none,top=0.05,entropy=ans")
    for _ in range(100):
        delivery, lost = send_with_memory(x, lost, link)
        sum_ += delivery.state["w"]
    assert nmse(100 * x["w"], sum_) < 0.05


def says_largest(state: dict, **options) -> bytes:
    """A frame with these very tensors that says that its entries have positions."""
    blob = bytearray(wire.encode(state, None, **options))
    blob[5] = 3
    return with_checksum(bytes(blob[:-8]))


@pytest.mark.parametrize(("change", "words"), [
    (lambda state: {**state, "w": state["w"][:-1]}, r"tensor 'w': shape \(9,\) for 10 positions"),
    (lambda state: {**state, "w": state["w"].view(2, 5)}, r"tensor 'w': shape \(2, 5\) for 10 positions"),
    (lambda state: {"w": state["w"]}, "tensor 'w' is not followed by the positions"),
    (lambda state: {name: state[name] for name in ("w/positions", "w")}, "tensor 'w' is not followed"),
    (lambda state: {**state, "w/positions": state["w/positions"].to(torch.uint8)}, "tensor 'w' is not followed"),
    (lambda state: {"w": state["w"], "v/positions": state["w/positions"]}, "tensor 'w' is not followed"),
])  # fmt: skip
def test_damage_to_the_places_is_refused(change, words):
    state = sparse.keep_largest({"w": gaussian(100)}, 0.1)
    assert int((wire.decode(says_largest(state))["w"] != 0).sum()) == 10
    with pytest.raises(wire.WireError, match=words):
        wire.decode(says_largest(change(state)))


def test_names_that_look_like_positions_are_names():
    flags = torch.tensor([True, False, True])
    state = {"m": torch.tensor([1, 2]), "m/positions": flags, "empty": torch.empty(0), "empty/positions": flags}
    for link in ("none", "none,top=0.5,entropy=ans"):
        arrived = send(state, parse_link(link)).state
        assert list(arrived) == list(state)
        assert all(torch.equal(arrived[name], x) for name, x in state.items())
    with pytest.raises(ValueError, match="positions of tensor 'w' would have the name of tensor 'w/positions'"):
        wire.encode({"w": gaussian(9), "w/positions": flags}, None, top=0.5, entropy="ans")


@pytest.mark.parametrize(("state", "kind", "words"), [
    ({"w": np.ones(9)}, TypeError, "tensor 'w': expected a string as name and a torch.Tensor, got str and ndarray"),
    ({1: torch.ones(9)}, TypeError, "tensor 1: expected a string as name"),
    ({"w": torch.ones(9).to_sparse()}, TypeError, "tensor 'w': cannot send torch.float32, torch.sparse_coo"),
    ({"w": torch.ones(100).index_fill(0, torch.tensor(95), torch.nan)}, ValueError, r"1 of 100 .* at index \(95,\)"),
])  # fmt: skip
def test_what_cannot_be_sent_is_named_before_entries_are_left_out(state, kind, words):
    with pytest.raises(kind, match=words):
        wire.encode(state, Cosine(2), top=0.1, entropy="ans")


def test_what_entries_are_spread_over_counts_towards_the_limit():
    """An endless run of zeros says where no entry of a float64 tensor is: few bytes that become eight times as many."""
    state = {"a": torch.ones(1, dtype=torch.float64), "a/positions": torch.zeros(2**16, dtype=torch.bool)}
    state["a/positions"][7] = True
    blob = says_largest(state, entropy="ans")
    assert len(blob) < 200
    assert wire.decode(blob, limit=9 * 2**16 + 8 + 2 * wire.EACH)["a"].nbytes == 8 * 2**16
    with pytest.raises(wire.WireError, match="declares"):
        wire.decode(blob, limit=9 * 2**16 + 7 + 2 * wire.EACH)


@pytest.mark.parametrize(("text", "words"), [
    ("qsgd:1", "bits must be a whole number from 2 to 8, got 1"),
    ("qsgd:2,norm=l1", "norm must be one of 'l2', 'max'"),
    ("terngrad:2", "'terngrad' takes no bits"),
    ("eden:2,scale=norm", "scale must be one of 'unbiased', 'mse'"),
    ("lloyd:9", "bits must be a whole number from 1 to 8"),
    ("none,top=0.1", "positions cost a byte each"),
    ("cosine:2,top=0.1,mask=0.5,entropy=ans", "top goes without a mask"),
    ("cosine:2,top=0.1,rotate=hadamard,entropy=ans", "top goes without a mask and a rotation"),
    ("cosine:2,top=0,entropy=ans", r"top must be a number in \(0, 1\]"),
    ("cosine:2,top=x", "top 'x' is not a number"),
])  # fmt: skip
def test_wrong_links_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse_link(text)


def test_of_equal_magnitudes_the_first_ones_travel():
    x = torch.ones(100, 1000)
    x[::2] *= -1
    kept = sparse.keep_largest({"w": x}, 0.003)["w/positions"]
    assert kept[0, :300].all()
    assert kept.sum() == 300


def test_eden_s_levels_are_as_far_apart_as_x_is_long():
    """Not as its entries differ from their mean: a constant arrives as it is."""
    for scale in ("unbiased", "mse"):
        torch.testing.assert_close(Eden(2, scale).roundtrip(torch.ones(1000)), torch.ones(1000))
