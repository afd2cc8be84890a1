"""Tight packing: the length of the formula, nothing lost, the bits where the format says."""

import pytest
import torch

from cosquant_lite.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_tight_and_reversible(bits):
    for n in (*range(20), 1000, 4099):
        codes = torch.randint(2**bits, (n,), dtype=torch.uint8)
        packed = pack(codes, bits)
        assert len(packed) == packed_bytes(n, bits) == -(-n * bits // 8)
        assert torch.equal(unpack(packed, bits, n), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bytes_are_the_codes_written_one_after_the_other(bits):
    codes = torch.randint(2**bits, (13,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    digits = "".join(f"{code:0{bits}b}" for code in codes.tolist())
    digits += "0" * (-len(digits) % 8)
    assert bytes(pack(codes, bits).tolist()) == int(digits, 2).to_bytes(len(digits) // 8)


def test_packing_by_hand():
    packed = pack(torch.tensor([[1, 2, 3], [0, 2, 0]], dtype=torch.uint8), 2)
    assert packed.tolist() == [0b01101100, 0b10000000]
