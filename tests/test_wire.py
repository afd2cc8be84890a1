"""Frames: what goes in comes out, as the format says, at the length of the formula; damage is noticed."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction

import decode_memory
import numpy as np
import pytest
import spec_decoder
import torch
from fuzz_wire import fuzz, valid_frames, with_checksum

from cosquant_lite import wire
from cosquant_lite.bench import _peak_memory
from cosquant_lite.quantize import Cosine, Uniform

STATE = {
    "conv.weight": torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
    "conv.bias": torch.randn(7, generator=torch.Generator().manual_seed(1)),
    "large": torch.randn(100, 70, generator=torch.Generator().manual_seed(2)),
    "half": torch.randn(9, generator=torch.Generator().manual_seed(3)).half(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "batches": torch.tensor(123456789),
    "flags": torch.tensor([True, False]),
}
STAGES = ("none", "deflate", "ans", "auto")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("entropy", STAGES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [Cosine, Uniform])
def test_decode_gives_what_the_quantizer_gives(make, bits, entropy):
    state = wire.decode(wire.encode(STATE, make(bits), entropy=entropy))
    assert list(state) == list(STATE)
    for name, x in STATE.items():
        expected = make(bits).roundtrip(x).to(x.dtype) if x.is_floating_point() else x
        assert torch.equal(state[name], expected)
        assert (state[name].shape, state[name].dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("entropy", STAGES)
def test_none_is_lossless_in_every_dtype(entropy):
    state = {**STATE, **{str(dtype): torch.ones(3).to(dtype) for dtype in wire.DTYPES}}
    state["not a number"] = torch.tensor([float("nan"), float("inf"), -0.0])
    back = wire.decode(wire.encode(state, None, entropy=entropy))
    for name, x in state.items():
        assert back[name].dtype == x.dtype
        assert back[name].flatten().view(torch.uint8).tolist() == x.flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "needs gradients"])
def test_memory_layout_does_not_matter(layout):
    x = torch.randn(8, 6, 20, 20, generator=generator())
    other = {
        "transposed": lambda: x.transpose(0, 3).contiguous().transpose(0, 3),
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "needs gradients": lambda: x.clone().requires_grad_(),
    }[layout]()
    for quantizer in (None, Cosine(3)):
        assert wire.encode({"x": other}, quantizer) == wire.encode({"x": x}, quantizer)
        masked = [wire.encode({"x": y}, quantizer, mask=0.3, generator=generator()) for y in (x, other)]
        assert masked[0] == masked[1]


def test_a_rotation_costs_eight_bytes():
    for bits, kind in ((1, "hadamard"), (3, "hadamard"), (2, "channels")):
        blob = wire.encode(STATE, Cosine(bits), rotate=kind, generator=generator())
        assert len(blob) == wire.frame_bytes(STATE, bits, rotated=True) == wire.frame_bytes(STATE, bits) + 8
        assert wire.inspect(blob).rotation[0] == kind
    assert wire.inspect(wire.encode(STATE, Cosine(1))).rotation is None


@pytest.mark.parametrize("mask", [1.0, 0.7, 0.01])
@pytest.mark.parametrize("bits", [None, *range(1, 9)])
def test_length_is_the_formula(bits, mask):
    for state in ({}, STATE, {"ä" * 100: torch.randn(1)}, {str(i): torch.randn(2, 3, 1) for i in range(200)}):
        blob = wire.encode(state, bits and Cosine(bits), mask=mask, generator=generator())
        frame = wire.inspect(blob)
        assert (frame.mask is None) == (mask == 1)
        assert len(blob) == wire.frame_bytes(state, bits, mask=frame.mask)
        assert len(blob) == frame.header + sum(part.header + len(part.payload) for part in frame.parts)


@pytest.mark.parametrize("entropy", STAGES)
@pytest.mark.parametrize("shape", [(), (10,), (64, 1024), (64, 64, 3, 3), (32, 32, 3, 3, 3), (512, 512, 3, 3)])
def test_overhead_is_at_most_64_bytes_a_message_and_32_a_tensor(shape, entropy):
    frame = wire.inspect(
        wire.encode({"": torch.randn(shape)}, Cosine(8), mask=0.9, entropy=entropy, generator=generator())
    )
    assert frame.header <= 35
    assert frame.parts[0].header <= 32


def test_the_test_vector_of_the_docstring():
    state = {"w": torch.tensor([1, -2, 3, 0.5]), "n": torch.tensor(7)}
    in_docstring = "".join(re.findall(r"^    ((?:[0-9a-f]{2} ?)+)$", wire.__doc__, re.MULTILINE))
    blob = wire.encode(state, Cosine(bits=2, clip=0))
    assert blob == bytes.fromhex(in_docstring)
    assert spec_decoder.decode(blob)["n"] == ((), [7])


@pytest.mark.parametrize("blob", valid_frames(), ids=lambda blob: f"{len(blob)} bytes")
def test_a_decoder_written_from_the_docstrings_alone_reads_the_same(blob):
    ours, theirs = wire.decode(blob), spec_decoder.decode(blob)
    assert list(ours) == list(theirs)
    for name, x in ours.items():
        shape, values = theirs[name]
        assert tuple(x.shape) == shape
        assert (
            x.flatten().tolist()
            == torch.tensor(values, dtype=torch.float64 if x.is_floating_point() else None).to(x.dtype).tolist()
        )


def test_same_tensors_and_generator_give_the_same_bytes():
    stochastic = Cosine(2, rounding="stochastic")
    for options in ({}, {"mask": 0.5}, {"mask": 0.5, "entropy": "auto"}):
        first, second, other = (wire.encode(STATE, stochastic, generator=generator(s), **options) for s in (1, 1, 2))
        assert first == second != other


@pytest.mark.parametrize("quantizer", [None, Cosine(4), Uniform(8, clip=0)])
def test_a_mask_keeps_the_mean(quantizer):
    x = torch.randn(3000, generator=generator())
    full = wire.decode(wire.encode({"x": x}, quantizer))["x"]
    draws = generator(1)
    sent = torch.stack(
        [wire.decode(wire.encode({"x": x}, quantizer, mask=0.2, generator=draws))["x"] for _ in range(400)]
    )
    assert ((sent == 0) | torch.isclose(sent * 0.2, full)).all()  # 0, or what the unmasked tensor gives, over p
    assert abs((sent != 0).float().mean() - 0.2) < 0.002
    error = (sent.mean(0) - full) / full.abs() / (0.8 / 0.2 / 400) ** 0.5  # in standard deviations
    assert error.abs().max() < 6
    assert abs(error.square().mean() - 1) < 0.2


def test_masks_of_tensors_and_messages_differ():
    x = torch.ones(1000)
    draws = generator()
    first, second = (wire.decode(wire.encode({"a": x, "b": x}, None, mask=0.5, generator=draws)) for _ in range(2))
    for left, right in ((first["a"], first["b"]), (first["a"], second["a"])):
        assert 400 < (left != right).sum() < 600


def test_every_flipped_bit_and_every_cut_is_noticed():
    for entropy, mask in (("none", 1.0), ("ans", 0.5)):
        blob = wire.encode({"x": STATE["conv.bias"]}, Cosine(3), entropy=entropy, mask=mask, generator=generator())
        for i in range(8 * len(blob)):
            damaged = bytearray(blob)
            damaged[i // 8] ^= 1 << i % 8
            with pytest.raises(wire.WireError):
                wire.decode(bytes(damaged))
        for length in range(len(blob)):
            with pytest.raises(wire.WireError):
                wire.decode(blob[:length])
        with pytest.raises(wire.WireError, match="checksum"):
            wire.decode(blob + b"\0")


def test_a_hundred_thousand_mutated_frames():
    said = fuzz(100_000, seed=0)
    assert sum(said.values()) == 100_000
    assert len(said) > 30  # it reached many different checks
    assert said["decoded: the lie was a valid frame"] < 10_000


def head(*, version=2, masked=b"\0", count=1) -> bytes:
    return b"CQLT" + bytes([version]) + masked + bytes([count])


RAW = b"\x01a\0\0"  # a tensor "a", float32, raw


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (head(version=3), "frame version 3; this package reads version 2"),
        (head(version=1), "frame version 1; this package reads version 2"),
        (head(), "frame ends early: 1 bytes needed at byte 7, 0 there"),
        (head()[:-1] + b"\x81\x00" + RAW + b"\0\0\4abcd", "a number at byte 6 has a needless last byte 0"),
        (head() + b"\x01a\0\1\2" + struct.pack("<2f", 1, 1) + b"\0\1\3\1\xff", "last byte is not filled with zeros"),
        (head(count=0) + b"more", "4 bytes are left over after the 0 tensors"),
        (head(masked=b"\5"), "whether there is a mask or a rotation is 5"),
        (head(masked=b"\1" + struct.pack("<dQ", 1.5, 0)), "probability 1.5"),
        (head(masked=b"\1" + struct.pack("<dQ", float("nan"), 0)), "probability nan"),
        (head()[:-1] + b"\xff" * 9, "a number at byte 6 is longer than 9 bytes"),
        (head() + b"\x01a\0\1\2" + struct.pack("<2f", 1, 1) + b"\0\1\xff\xff\xff\xff\x0f\0", "declares 17,179,870,204"),
        (head() + RAW + b"\0\4" + b"\xff\xff\xff\xff\x0f" * 4 + b"\0", "tensor 'a': absurd shape"),
        (head() + RAW + b"\0\0\5abcde", "tensor 'a': 5 bytes of codes, but 4 codes of 8 bits are 4"),
        (head(count=2) + 2 * (RAW + b"\0\0\4abcd"), "two tensors are called 'a'"),
        (head() + b"\x01a\0\1\2" + struct.pack("<2f", float("nan"), 0) + b"\0\0\1\0", r"floats \[nan"),
        (head() + b"\x01a\0\1\2" + struct.pack("<2f", float("inf"), 0) + b"\0\0\1\0", r"floats \[inf"),
        (
            head() + b"\x01a\2\2\1" + struct.pack("<2f", 0, 1e6) + b"\0\0\1\0",
            r"largest value at the receiver, .* is 1e\+06 and beyond torch.float16",
        ),
        (head() + b"\x01a\0\x09", "unknown scheme 9"),
        (head() + b"\x01a\3\1", "unknown scheme 1 for torch.int64"),
        (head() + b"\x01a\0\1\x09" + bytes(8), "9 bits"),
        (head() + b"\x01a\xc8\0", "unknown dtype 200"),
        (head() + RAW + b"\7\0", "unknown lossless stage 7"),
        (head() + b"\x01\xff\0\0", "name is no UTF-8"),
        (head() + b"\x01a\6\0\0\1\1\1\2", "a truth value is neither 0 nor 1"),
        (head() + RAW + b"\1\0\4abcd", "DEFLATE"),
        (head() + RAW + b"\2\0\4abcd", "ANS"),
        (head() + RAW + b"\2\0\0", "the table of 256 frequencies is cut short"),
        (
            head() + b"\x01a\6\0\2\1\3\x21" + int("010" + "1" * 255 + "000001", 2).to_bytes(33),
            "the table of 256 frequencies is not filled up with zeros",
        ),
        (head() + RAW + b"\2\1\0\1\xff", "tensor 'a': ANS: 1 bytes, but there are no codes"),
        (
            head(masked=b"\2" + bytes(8)) + b"\x01a\0\2\1" + struct.pack("<2f", 3e38, 3e38) + b"\0\1\x02\1\0",
            "a value after the rotation is beyond torch.float32",
        ),
        (head(masked=b"\1" + struct.pack("<dQ", 1.0, 0)), "probability 1.0"),
        (head(masked=b"\1" + struct.pack("<dQ", 0.0, 0)), "probability 0.0"),
        (head() + b"\x01a\0\1\0" + bytes(8) + b"\0\0\0", "0 bits; allowed are 1 to 8"),
        (head() + RAW + b"\0\2\0" + wire._number(2**49) + b"\0", "tensor 'a': absurd shape"),
        (head() + RAW + b"\1\0\x0a" + b"\1\4\0\xfb\xffabcd\0", "does not end after the 4 bytes"),
    ],
)
def test_a_frame_that_lies_with_a_right_checksum(body, message):
    with pytest.raises(wire.WireError, match=message):
        wire.decode(with_checksum(body))


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("scheme", [1, 2])
@pytest.mark.parametrize("floats", [(LARGEST, LARGEST), (-LARGEST, LARGEST), (LARGEST, -LARGEST), (LARGEST, 0.0)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_floats_at_the_end_of_float32_decode_to_finite_values(scheme, floats, bits):
    codes, count = bytes(range(256)) * bits, 8 * 256  # every code
    part = b"\x01a\0" + bytes([scheme, bits]) + struct.pack("<2f", *floats) + b"\0\1"
    blob = with_checksum(head() + part + wire._number(count) + wire._number(len(codes)) + codes)
    assert wire.decode(blob)["a"].isfinite().all()


def bomb() -> bytes:
    """A DEFLATE stream of 400 KB that says it is ten float32 and would expand to 400 MB."""
    coder = zlib.compressobj(wbits=-15)
    stream = b"".join(coder.compress(bytes(2**20)) for _ in range(400)) + coder.flush()
    return with_checksum(head() + RAW + b"\1\1\x0a" + wire._number(len(stream)) + stream)


def endless(n: int) -> bytes:
    """An ANS stream of no word, which is any number of the same symbol, for n truth values."""
    roots = int("010" + "1" * 255 + "0" * 6, 2).to_bytes(33)  # 1, and then no change
    return with_checksum(head() + b"\x01a\6\0\2\1" + wire._number(n) + wire._number(len(roots)) + roots)


def peak(work) -> int:
    """Bytes by which the process grows at most; whoever allocates them."""
    grown = _peak_memory(work)
    return pytest.skip("this system does not tell the peak memory of a process") if grown is None else grown


def test_what_would_expand_without_limit_is_stopped():
    frame, refused = bomb(), []

    def decode():
        with pytest.raises(wire.WireError, match="does not end after the 40 bytes"):
            wire.decode(frame)
        with pytest.raises(wire.WireError, match="declares 536,871,936 bytes"):
            wire.decode(endless(2**29), limit=2**20)
        refused.append(True)

    decode()
    start = time.perf_counter()
    assert peak(decode) < 2**23
    assert time.perf_counter() - start < 5
    assert len(refused) == 2
    assert not wire.decode(endless(1000))["a"].any()  # within the limit it is what it says


@pytest.fixture(scope="module")
def decoding():
    """The peak of each of `decode_memory.CASES`."""
    script = [sys.executable, decode_memory.__file__]
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}
    done = subprocess.run(script, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return dict(zip(decode_memory.CASES, json.loads(done.stdout)))


@pytest.mark.parametrize("case", decode_memory.CASES, ids=" ".join)
def test_decoding_takes_at_most_four_times_what_the_frame_declares(case, decoding):
    if decoding[case] is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert decode_memory.NBYTES / 2 < decoding[case] < 4 * decode_memory.NBYTES + 2**24


def test_a_crowd_of_empty_tensors_is_stopped_by_the_limit():
    tensors = b"".join(b"\x03" + f"{i:03x}".encode() + b"\0\0\0\1\0\0" for i in range(4096))
    blob = with_checksum(b"CQLT\2\0" + wire._number(4096) + tensors)
    assert len(wire.decode(blob)) == 4096
    with pytest.raises(wire.WireError, match="declares 100,352 bytes of tensors or more, 1,024 for each"):
        wire.decode(blob, limit=100_000)
    with pytest.raises(wire.WireError, match="ends early"):
        wire.decode(with_checksum(b"CQLT\2\0" + wire._number(2**60) + tensors))


def test_the_limit_is_exact_and_the_callers():
    blob = wire.encode({"a": torch.ones(1000), "b": torch.ones(24, dtype=torch.float64)}, Cosine(1))
    assert wire.decode(blob, limit=4192 + 2048)["a"].numel() == 1000
    with pytest.raises(wire.WireError, match=r"declares 6,240 bytes of tensors or more, .* limit=6,239"):
        wire.decode(blob, limit=6239)


@pytest.mark.parametrize(
    ("state", "options", "error", "named"),
    [
        ([torch.ones(2)], {}, TypeError, "expected a mapping from names to tensors, got list"),
        ({"a": torch.ones(2)}, {"quantizer": "cosine:2"}, TypeError, "got 'cosine:2'; parse_link reads strings"),
        ({"a": [1.0]}, {}, TypeError, "tensor 'a': expected a string as name and a torch.Tensor, got str and list"),
        ({1: torch.ones(2)}, {}, TypeError, "tensor 1: expected a string"),
        ({"\ud800": torch.ones(2)}, {}, ValueError, "surrogates not allowed"),
        ({"w": torch.tensor([1.0, float("nan")])}, {}, ValueError, "tensor 'w': 1 of 2 entries are NaN"),
        ({"z": torch.zeros(2, dtype=torch.complex64)}, {}, TypeError, r"tensor .z.: cannot send torch\.complex64"),
        ({"s": torch.eye(2).to_sparse()}, {"quantizer": None}, TypeError, "tensor 's': cannot send .*sparse_coo"),
        (
            {"a": torch.ones(2)},
            {"entropy": "zip"},
            ValueError,
            "entropy must be one of 'none', 'deflate', 'ans', 'auto'",
        ),
        ({"a": torch.ones(2)}, {"mask": 0}, ValueError, r"mask must be a number in \(0, 1\]"),
        ({"a": torch.ones(2)}, {"mask": 0.5}, ValueError, "a random mask or rotation needs generator="),
        ({"a": torch.ones(2)}, {"rotate": "hadamard"}, ValueError, "a random mask or rotation needs generator="),
        (
            {"a": torch.ones(2)},
            {"rotate": "full"},
            ValueError,
            "rotate must be one of 'none', 'hadamard', 'channels', got 'full'",
        ),
        ({"a": torch.ones(2)}, {"rotate": "hadamard", "mask": 0.5}, ValueError, "goes neither with .* nor with a mask"),
        ({"a": torch.ones(2)}, {"rotate": "hadamard", "quantizer": None}, ValueError, "goes neither with tensors that"),
        (
            {"a": torch.tensor([1.0, float("nan")])},
            {"rotate": "hadamard", "generator": generator()},
            ValueError,
            r"tensor 'a': 1 of 2 entries are NaN or infinite, the first is nan at index \(1,\)",
        ),
        (
            {"a": torch.full((4096,), 6.5e4).half()},
            {"quantizer": Cosine(2), "rotate": "hadamard", "generator": generator()},
            ValueError,
            r"a value after the rotation is beyond torch\.float16",
        ),
        (
            {"a": torch.tensor([6e4]).half()},
            {"mask": 0.5, "generator": generator()},
            ValueError,
            r"divided by the mask's p if there is one, is 1\.2e\+05 and beyond torch\.float16",
        ),
        (
            {"a": torch.full((9,), 6e4).half()},
            {"quantizer": None, "mask": 0.5, "generator": generator()},
            ValueError,
            r"by the mask's 0\.5, is 1\.2e\+05 and beyond torch\.float16",
        ),
        ({"m": torch.empty(2, device="meta")}, {"quantizer": None}, TypeError, "tensor 'm': cannot send .* on meta"),
        ({"e": torch.empty(0, 2**48)}, {}, ValueError, "tensor 'e': a shape has at most 64 dimensions"),
        (
            {"a": torch.tensor([6.5e4, *50 * [4.3e4]]).half()},  # fitted to the many, the largest level is beyond
            {"quantizer": Uniform(2, clip=0, scale="unbiased")},
            ValueError,
            r"tensor 'a': .*beyond torch\.float16",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(state, options, error, named):
    with pytest.raises(error, match=named):
        wire.encode(state, **{"quantizer": Cosine(2), **options})


def test_decode_takes_any_bytes_and_nothing_else():
    blob = wire.encode(STATE, Cosine(2))
    spread = memoryview(bytes(byte for pair in zip(blob, blob) for byte in pair))[::2]
    for kind in (bytearray(blob), memoryview(blob), spread):
        assert torch.equal(wire.decode(kind)["conv.bias"], wire.decode(blob)["conv.bias"])
    with pytest.raises(TypeError, match="expected the bytes of a frame, got NoneType"):
        wire.decode(None)
    for short in (b"abc", b"", memoryview(b"")):
        with pytest.raises(wire.WireError, match="not a cosquant frame"):
            wire.decode(short)


def test_the_callers_mistakes_are_not_called_damage():
    blob = wire.encode(STATE, Cosine(2))
    for device, error in (("nonsense", RuntimeError), ("meta", ValueError)):
        with pytest.raises(error) as caught:
            wire.decode(blob, device=device)
        assert not isinstance(caught.value, wire.WireError)
    for limit in (math.nan, None):
        with pytest.raises(ValueError, match="limit must be a number of bytes") as caught:
            wire.decode(blob, limit=limit)
        assert not isinstance(caught.value, wire.WireError)


def test_a_mask_that_is_nearly_one_is_one():
    almost = Fraction(2**60 - 1, 2**60)
    assert wire.encode(STATE, None, mask=almost) == wire.encode(STATE, None)


def test_values_that_the_mask_makes_infinite_are_refused():
    blob = bytearray(wire.encode({"a": torch.ones(64)}, None, mask=0.9, generator=generator()))
    at = bytes(blob).index(struct.pack("<f", 1))
    blob[at : at + 4] = struct.pack("<f", 3.3e38)
    with pytest.raises(
        wire.WireError, match=r"tensor 'a': the largest value, divided by the mask's 0\.9, is 3\.67e\+38"
    ):
        wire.decode(with_checksum(bytes(blob[:-8])))


def test_a_long_name_does_not_make_a_long_message():
    blob = bytearray(wire.encode({"n" * 2**16: torch.ones(1)}, None))
    blob[blob.index(b"n\0\0") + 1] = 99  # its dtype
    with pytest.raises(wire.WireError, match="unknown dtype 99") as caught:
        wire.decode(with_checksum(bytes(blob[:-8])))
    assert len(str(caught.value)) < 200


def test_settings_of_torch_do_not_change_the_bytes():
    draw = {"quantizer": Cosine(2, rounding="stochastic"), "mask": 0.5}
    expected = wire.encode(STATE, generator=generator(), **draw)
    try:
        torch.set_default_dtype(torch.float64)
        assert wire.encode(STATE, generator=generator(), **draw) == expected
        assert wire.decode(expected)["conv.bias"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_negated_views_and_numpy_numbers_are_sent_as_what_they_are():
    negated = torch._neg_view(STATE["conv.bias"])
    assert torch.equal(wire.decode(wire.encode({"x": negated}, None))["x"], -STATE["conv.bias"])
    assert wire.inspect(wire.encode(STATE, None, mask=np.float32(0.5), generator=generator())).mask.p == 0.5


def test_decoded_tensors_own_their_memory():
    blob = bytearray(wire.encode(STATE, None))
    state = wire.decode(blob)
    before = {name: x.clone() for name, x in state.items()}
    blob[:] = bytes(len(blob))
    assert all(torch.equal(state[name], x) for name, x in before.items())
    state["conv.bias"].add_(1)  # writable


@pytest.mark.parametrize("quantizer", [None, Cosine(4)])
def test_values_are_divided_by_the_mask_s_p_in_float64(quantizer):
    """Other last bits come of float32 arithmetic or of a p rounded to it."""
    x = torch.randn(3000, generator=generator())
    arrived = wire.decode(wire.encode({"x": x}, quantizer, mask=0.3, generator=generator()))["x"]
    if quantizer is None:
        exact = x.double()
    else:
        found = quantizer.quantize(x)
        exact = quantizer.value(found.codes.double(), found.floats)
    travels = arrived != 0
    assert 800 < travels.sum() < 1000
    assert torch.equal(arrived[travels], (exact / 0.3).float()[travels])


def test_raw_infinities_travel_under_a_mask():
    x = torch.tensor([math.inf, -math.inf, 1.0, 2.0]).repeat(50)
    arrived = wire.decode(wire.encode({"x": x}, None, mask=0.5, generator=generator()))["x"]
    travels = arrived != 0
    assert 80 < travels.sum() < 120
    assert torch.equal(arrived[travels], 2 * x[travels])


def test_seeds_of_masks_and_rotations_fill_their_eight_bytes():
    """Of 2**32 seeds two would be the same among 100,000 messages."""
    draws = generator()
    frames = [
        wire.inspect(wire.encode({"x": torch.ones(1)}, Cosine(1), generator=draws, **how))
        for how in ({"mask": 0.5}, {"rotate": "hadamard"}) * 20
    ]
    seeds = [frame.mask.seed if frame.mask else frame.rotation[1] for frame in frames]
    assert 2**61 < max(seeds) < 2**63
