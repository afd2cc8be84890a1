"""Frames: what goes in comes out, lengths by formula, damage is noticed."""

import struct

import pytest
import torch

from cosquant_lite import wire
from cosquant_lite.quantize import Cosine, Uniform

STATE = {
    "conv.weight": torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
    "conv.bias": torch.randn(7, generator=torch.Generator().manual_seed(1)),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "batches": torch.tensor(123456789),
    "mask": torch.tensor([True, False]),
}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [Cosine, Uniform])
def test_decode_gives_what_the_quantizer_gives(make, bits):
    state = wire.decode(wire.encode(STATE, make(bits)))
    assert list(state) == list(STATE)
    for name, x in STATE.items():
        expected = make(bits).roundtrip(x) if x.is_floating_point() else x
        assert torch.equal(state[name], expected)
        assert state[name].shape == x.shape


def test_none_is_lossless_in_every_dtype():
    state = {**STATE, **{str(dtype): torch.ones(3).to(dtype) for dtype in wire.RAW_DTYPES}}
    back = wire.decode(wire.encode(state, None))
    assert all(torch.equal(back[name], x) and back[name].dtype == x.dtype for name, x in state.items())


@pytest.mark.parametrize("bits", [None, *range(1, 9)])
def test_length_is_the_formula(bits):
    for state in ({}, STATE, {"ä": torch.randn(1)}):
        assert len(wire.encode(state, bits and Cosine(bits))) == wire.frame_bytes(state, bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_tight_and_reversible(bits):
    for n in range(0, 20):
        codes = torch.randint(2**bits, (n,), dtype=torch.uint8)
        packed = wire.pack(codes, bits)
        assert len(packed) == -(-n * bits // 8)
        assert torch.equal(wire.unpack(packed, bits, n), codes)


def test_packing_by_hand():
    assert wire.pack(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2) == bytes([0b01101100, 0b10000000])


def test_same_tensors_and_generator_give_the_same_bytes():
    stochastic = Cosine(2, rounding="stochastic")
    first, second, other = (
        wire.encode(STATE, stochastic, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_every_flipped_bit_and_every_cut_is_noticed():
    blob = wire.encode({"x": STATE["conv.bias"]}, Cosine(3))
    for i in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises(wire.WireError):
            wire.decode(bytes(damaged))
    for length in range(len(blob)):
        with pytest.raises(wire.WireError):
            wire.decode(blob[:length])


def with_checksum(body: bytes) -> bytes:
    return body + struct.pack("<Q", wire.xxhash.xxh3_64_intdigest(body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"CQLT\x02" + bytes(8), "version 2"),
        (b"CQLT\x01" + struct.pack("<I", 1), "ends early"),
        (b"CQLT\x01" + struct.pack("<I", 0) + b"more", "4 bytes left over"),
        (b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB1I", 1, 2, 1, 2**32 - 1), "ends early"),
        (
            b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB4I", 0, 0, 4, *[2**32 - 1] * 3, 0),
            "malformed",
        ),
        (b"CQLT\x01" + struct.pack("<I", 2) + 2 * (b"\x01a" + struct.pack("<BBBB", 0, 5, 0, 7)), "a tensor name twice"),
        (
            b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB2fB", 1, 2, 0, float("nan"), 0, 0),
            "floats are",
        ),
        (b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB", 9, 2, 0), "unknown scheme 9"),
        (b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB", 1, 9, 0), "9 bits"),
        (b"CQLT\x01" + struct.pack("<I", 1) + b"\x01a" + struct.pack("<BBB", 0, 200, 0), "malformed"),
        (b"CQLT\x01" + struct.pack("<I", 1) + b"\x01\xff" + struct.pack("<BBB", 0, 0, 0), "malformed"),
    ],
)
def test_a_frame_that_lies_with_a_right_checksum(body, message):
    with pytest.raises(wire.WireError, match=message):
        wire.decode(with_checksum(body))


@pytest.mark.parametrize(
    ("state", "quantizer", "error", "named"),
    [
        ([torch.ones(2)], None, TypeError, "expected a mapping from names to tensors, got list"),
        ({"a": torch.ones(2)}, "cosine:2", TypeError, "got 'cosine:2'; parse_link reads strings"),
        (
            {"a": [1.0]},
            Cosine(2),
            TypeError,
            "tensor 'a': expected a string as name and a torch.Tensor, got str and list",
        ),
        ({1: torch.ones(2)}, None, TypeError, "tensor 1: expected a string"),
        ({"\ud800": torch.ones(2)}, None, ValueError, "surrogates not allowed"),
        ({"n" * 256: torch.ones(2)}, None, ValueError, "at most 255 bytes"),
    ],
)
def test_what_is_no_state_is_named(state, quantizer, error, named):
    with pytest.raises(error, match=named):
        wire.encode(state, quantizer)


def test_decode_takes_any_bytes_and_nothing_else():
    blob = wire.encode(STATE, Cosine(2))
    for kind in (bytearray, memoryview):
        assert torch.equal(wire.decode(kind(blob))["conv.bias"], wire.decode(blob)["conv.bias"])
    with pytest.raises(TypeError, match="expected the bytes of a frame, got NoneType"):
        wire.decode(None)


def test_a_tensor_that_cannot_be_sent_is_named():
    with pytest.raises(ValueError, match="tensor 'w': 1 of 2 entries are NaN"):
        wire.encode({"w": torch.tensor([1.0, float("nan")])}, Cosine(2))
    with pytest.raises(TypeError, match=r"tensor .z.: cannot send torch\.complex64"):
        wire.encode({"z": torch.zeros(2, dtype=torch.complex64)}, None)
