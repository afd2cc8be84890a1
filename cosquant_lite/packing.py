"""Small whole numbers as few bits as they need, tightly: the first code in the highest bits of the first byte.

A code may cross a byte border; the last byte is filled with zeros. Eight codes of `bits` bits are exactly `bits`
bytes, so eight at a time go through one 64-bit word. Plain torch, on whatever device the codes are.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(n: int, bits: int) -> int:
    """How many bytes n codes take."""
    return -(-n * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes of any shape as `bits` bits each: a flat uint8 tensor of `packed_bytes(n, bits)` bytes."""
    n = codes.numel()
    if bits == 8:
        return codes.flatten()
    eights = pad(codes.flatten(), (0, -n % 8)).view(-1, 8)
    words = (eights.long() << _shifts(8, bits, codes.device)).sum(1, keepdim=True)
    in_bytes = (words >> _shifts(bits, 8, codes.device) & 255).to(torch.uint8)
    return in_bytes.flatten()[: packed_bytes(n, bits)]


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes that `pack` wrote, flat uint8."""
    if bits == 8:
        return packed[:n]
    eights = pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    words = (eights.long() << _shifts(bits, 8, packed.device)).sum(1, keepdim=True)
    codes = (words >> _shifts(8, bits, packed.device) & 2**bits - 1).to(torch.uint8)
    return codes.flatten()[:n]


def _shifts(count: int, width: int, device: torch.device) -> Tensor:
    """How far each of `count` fields of `width` bits lies from the end of a word, the first one farthest."""
    return width * torch.arange(count - 1, -1, -1, device=device)
