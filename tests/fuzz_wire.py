"""Damaged and lying frames for `wire.decode`: each must be a WireError, or tensors within the limit.

`python tests/fuzz_wire.py 1000000 1` tries a million with seed 1 and prints what the decoder said (`make fuzz`).
"""

import random
import re
import struct
import sys
from collections import Counter

import torch
import xxhash
from tqdm import tqdm

from cosquant_lite import wire
from cosquant_lite.codebook import QSGD
from cosquant_lite.quantize import Cosine, Uniform

VARYING = r"\(.*?\)|0x\w+|b?'.*?'|b\".*?\"|[-\d.,]+(e[-+]?\d+)?"  # numbers, bytes, names and shapes in a message
LIMIT = 2**16  # bytes of tensors; a lying frame may declare no more


def valid_frames() -> list[bytes]:
    """Frames of every scheme, lossless stage and dtype, with a mask, a rotation, the largest entries or none of these; some
    large enough to be compiled."""
    random_numbers = torch.Generator().manual_seed(0)
    state = {
        "w": torch.randn(3, 7, generator=random_numbers),
        "half": torch.randn(5, generator=random_numbers).half(),
        "empty": torch.empty(0, 2),
        "n": torch.tensor(-5),
        "flags": torch.tensor([True, False, True]),
    }
    state |= {str(dtype): torch.tensor([1, 0, 1]).to(dtype) for dtype in wire.DTYPES}
    large = {"large": torch.randn(1027, generator=random_numbers)}
    quantizers = (None, Cosine(1), Cosine(3), Uniform(8), Cosine(2, rounding="stochastic"), QSGD(3))
    return [
        wire.encode(tensors, quantizer, entropy=entropy, generator=random_numbers, **extra)
        for quantizer in quantizers
        for tensors in (state, large)
        for entropy in ("none", "deflate", "ans")
        for extra in ({}, {"mask": 0.5}, {"rotate": "hadamard"}, {"rotate": "channels"}, {"top": 0.3})
        if (quantizer or "rotate" not in extra) and (entropy != "none" or "top" not in extra)
    ]


def with_checksum(body: bytes) -> bytes:
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


EXTREME = (b"\xff" * 8, b"\0" * 4, b"\x80" * 9, b"\xff\xff\xff\x7f")
MUTATIONS = (
    lambda head, tail, other, choose: head,  # cut
    lambda head, tail, other, choose: head + bytes([tail[0] ^ 1 << choose.randrange(8)]) + tail[1:],  # a bit
    lambda head, tail, other, choose: head + choose.randbytes(1) + tail[1:],  # a byte
    lambda head, tail, other, choose: head + choose.choice(EXTREME) + tail,
    lambda head, tail, other, choose: head + choose.randbytes(choose.randrange(9)) + tail,  # something put in
    lambda head, tail, other, choose: head + tail[choose.randrange(1, 9) :],  # something left out
    lambda head, tail, other, choose: head + other[choose.randrange(len(other)) :],  # half of another frame
    lambda head, tail, other, choose: head[:6] + choose.randbytes(len(head)),  # noise
)


def mutate(frame: bytes, other: bytes, choose: random.Random) -> bytes:
    """One to three random changes at random places."""
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        if frame:
            at = choose.randrange(len(frame))
            frame = choose.choice(MUTATIONS)(frame[:at], frame[at:], other, choose)
    return frame


def fuzz(count: int, seed: int) -> Counter:
    """Decode `count` mutated frames, half of them with a right checksum; returns what was said, without numbers."""
    choose, frames, said = random.Random(seed), valid_frames(), Counter()
    for _ in tqdm(range(count), unit="frame", unit_scale=True, disable=not sys.stderr.isatty()):
        frame = choose.choice(frames)
        lying = choose.random() < 0.5
        damaged = mutate(frame[:-8] if lying else frame, choose.choice(frames), choose)
        damaged = with_checksum(damaged) if lying else damaged
        try:
            state = wire.decode(damaged, limit=LIMIT)
        except wire.WireError as error:
            said[re.sub(VARYING, "#", str(error))[:60]] += 1
            continue
        assert lying or damaged in frames, f"damage was not noticed: {damaged.hex()}"
        assert sum(x.numel() * x.itemsize for x in state.values()) <= LIMIT, f"beyond the limit: {damaged.hex()}"
        said["decoded: the lie was a valid frame"] += 1
    return said


if __name__ == "__main__":
    count, seed = (int(argument) for argument in sys.argv[1:3])
    for message, times in fuzz(count, seed).most_common():
        print(f"{times:9,}  {message}")
