"""The lossless stage: packed codes to fewer bytes and back, by libraries.

`none`     the bytes as they are.
`deflate`  raw DEFLATE (RFC 1951) by zlib: level 6, or its Huffman code without the search for repeats, the shorter
           of the two. DEFLATE is the paper's choice.
`ans`      asymmetric numeral systems by constriction, with one frequency per symbol: order-0 entropy coding.
`auto`     tries all three and keeps the shortest, if it saves at least 1/64 of `none`; a frame never says "auto".

The symbols of `ans` are the codes, or the bytes of a tensor that is not quantized (bits = 8 then). Its bytes:

1. A root r_s >= 0 for each symbol s = 0 .. 2**bits - 1. Its difference d from the root before it (0 at first) becomes
   z = 2 d - 1 if d > 0, else -2 d, and is written as z + 1 in binary after as many zeros as that has digits less one
   (Exp-Golomb code). Highest bit first, filled up with zeros to whole bytes.
2. The weight of s is r_s**2, W their sum, m = 2**24 - 2**bits. The frequency of s is f_s = 1 + floor(r_s**2 m / W),
   and what is missing to 2**24 goes to the first of the largest. c_s is the sum of the frequencies before s.
3. 32-bit words, little-endian. A decoder sets its 64-bit state to 0, takes words from the end, state =
   (state << 32) | word, until state >= 2**32 or none is left, and then for each symbol in order:
       q = state mod 2**24;  s is the symbol with c_s <= q < c_s + f_s
       state = (state >> 24) f_s + q - c_s;  if state < 2**32 and a word is left: state = (state << 32) | word
   At the end the state is 0 and no word is left.

Roots and not frequencies are sent because that is where an error of one costs the same everywhere. The payload of
`ans` is within 0.5 % of the order-0 entropy plus the table, which is at most a byte for three symbols of the alphabet
and 12 more. A decoder refuses roots with 40 or more zeros before them, and a last word of 0, which no encoder writes.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from cosquant_lite.packing import pack, packed_bytes, unpack

STAGES = ("none", "deflate", "ans")  # a frame stores the index
CHOICES = (*STAGES, "auto")
WORTH = 1 / 64  # the saving below which `auto` keeps the bytes as they are: they decode faster
ROOT, DEAD_ZONE = 0.7, 0.75  # the encoder's choice of roots; measured, see the test of the entropy
TOTAL = 2**24  # the sum of the frequencies
PIECE = 2**18  # symbols that are coded at a time: it bounds the memory


def compress(packed: Tensor, bits: int, n: int, entropy: str) -> tuple[str, bytes | memoryview]:
    """The stage that was used and the bytes of n packed codes after it.

    packed: flat uint8 on the CPU, as from `packing.pack`. entropy: one of CHOICES.
    """
    plain = packed.numpy().data
    if entropy == "none" or n == 0:
        return "none", plain
    if entropy != "auto":
        return entropy, _deflate(plain) if entropy == "deflate" else _ans(packed, bits, n)
    deflated = _deflate(plain)
    coded = _ans(packed, bits, n)
    stage, best = ("deflate", deflated) if len(deflated) <= len(coded) else ("ans", coded)
    return (stage, best) if len(best) <= (1 - WORTH) * len(plain) else ("none", plain)


def expand(stage: str, payload: bytes | memoryview, bits: int, n: int) -> Tensor:
    """The n packed codes that `compress` was given. ValueError if the payload is anything else."""
    if stage == "ans":
        codes = decode_ans(payload, bits, n)
        pieces = [pack(codes[start:stop], bits) for start, stop in _pieces(n)]
        return torch.cat(pieces) if pieces else codes
    packed = _tensor(payload) if stage == "none" else _inflate(payload, packed_bytes(n, bits))
    if len(packed) != packed_bytes(n, bits):
        raise ValueError(f"{len(packed)} bytes of codes, but {n} codes of {bits} bits are {packed_bytes(n, bits)}")
    if n * bits % 8 and packed[-1] & 2 ** (-n * bits % 8) - 1:
        raise ValueError("the last byte is not filled with zeros")
    return packed


def decode_ans(payload: bytes | memoryview, bits: int, n: int) -> Tensor:
    """The n codes of an ANS payload, flat uint8. ValueError if it is anything else."""
    if n == 0 and len(payload):
        raise ValueError(f"ANS: {len(payload)} bytes, but there are no codes that the shape asks for")
    if n == 0:
        return _tensor(payload)
    roots, start = _read_roots(payload, 2**bits)
    if (len(payload) - start) % 4:
        raise ValueError(f"ANS: {len(payload) - start} bytes are no whole number of 32-bit words")
    coder, model = _coder(np.frombuffer(payload, "<u4", offset=start).astype(np.uint32)), _model(roots)
    codes = np.empty(n, np.uint8)
    for start, stop in _pieces(n):
        codes[start:stop] = coder.decode(model, stop - start)
    if not coder.is_empty():
        raise ValueError(f"ANS: something is left after the {n} codes that the shape asks for")
    return torch.from_numpy(codes)


def _tensor(plain: bytes | memoryview) -> Tensor:
    if len(plain) == 0:  # numpy gives an empty array no stride, and then torch cannot view it in another dtype
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.from_numpy(np.frombuffer(plain, np.uint8).copy())


def order0_bytes(codes: Tensor) -> float:
    """The order-0 entropy of the codes in bytes: what no coder with one fixed frequency a symbol can go below."""
    counts = codes.flatten().bincount().double()
    counts = counts[counts > 0]
    return float((counts * (counts.sum() / counts).log2()).sum()) / 8


def _deflate(plain: memoryview) -> bytes:
    best = None
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        coder = zlib.compressobj(level=6, wbits=-zlib.MAX_WBITS, strategy=strategy)
        stream = coder.compress(plain) + coder.flush()
        best = stream if best is None or len(stream) < len(best) else best
    return best


def _inflate(payload: bytes | memoryview, size: int) -> Tensor:
    """Never makes more than size + 1 bytes, whatever the payload would expand to."""
    coder = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        plain = coder.decompress(payload, size + 1)
    except zlib.error as error:
        raise ValueError(f"DEFLATE: {error}") from None
    if len(plain) > size or not coder.eof or coder.unused_data:
        raise ValueError(f"DEFLATE: the payload does not end after the {size} bytes that the shape asks for")
    return _tensor(plain)


def _ans(packed: Tensor, bits: int, n: int) -> bytes:
    counts = sum(np.bincount(_symbols(packed, bits, *piece), minlength=2**bits) for piece in _pieces(n))
    roots = _roots(counts.tolist())
    coder, model = _coder(), _model(roots)
    for piece in reversed(_pieces(n)):  # a stack: what is coded last is decoded first
        coder.encode_reverse(_symbols(packed, bits, *piece), model)
    words = coder.get_compressed().astype("<u4", copy=False)
    del coder
    return b"".join([_write_roots(roots), words.data])


def _pieces(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + PIECE, n)) for start in range(0, n, PIECE)]


def _symbols(packed: Tensor, bits: int, start: int, stop: int) -> np.ndarray:
    """Codes start to stop as the int32 that the coder wants."""
    return unpack(packed[start * bits // 8 : packed_bytes(stop, bits)], bits, stop - start).int().numpy()


def _coder(words: np.ndarray | None = None):
    from constriction import stream  # imported when needed: only `ans` and `auto` use it

    return stream.stack.AnsCoder() if words is None else stream.stack.AnsCoder(words)


def _model(roots: list[int]):
    from constriction import stream

    # constriction scales the weights to 2**24 less their number, rounds down and adds one to each
    return stream.model.Categorical(np.array(_frequencies(roots), np.float64) - 1, perfect=False)


def _frequencies(roots: list[int]) -> list[int]:
    weights, free = [root * root for root in roots], TOTAL - len(roots)
    total = sum(weights)
    frequencies = [1 + weight * free // total for weight in weights]
    frequencies[frequencies.index(max(frequencies))] += TOTAL - sum(frequencies)
    return frequencies


def _roots(counts: list[int]) -> list[int]:
    """A multiple of each count's square root; one that differs little from its neighbour is not worth its bits."""
    roots, last = [], 0
    for count in counts:
        exact = ROOT * count**0.5
        if abs(exact - last) > DEAD_ZONE or (count > 0) != (last > 0):
            last = max(round(exact), 1) if count else 0
        roots.append(last)
    return roots


def _write_roots(roots: list[int]) -> bytes:
    digits = ""
    for last, root in zip([0, *roots], roots):
        number = f"{(2 * (root - last) - 1 if root > last else 2 * (last - root)) + 1:b}"
        digits += "0" * (len(number) - 1) + number
    digits += "0" * (-len(digits) % 8)
    return int(digits, 2).to_bytes(len(digits) // 8)


def _read_roots(payload: bytes | memoryview, count: int) -> tuple[list[int], int]:
    """The roots, and at which byte the words begin."""
    head = payload[: 10 * count]  # 80 bits a root are more than any tensor's counts need
    digits, at, roots = f"{int.from_bytes(head):0{8 * len(head)}b}" if head else "", 0, [0]
    for _ in range(count):
        zeros = digits.find("1", at) - at
        if not 0 <= zeros < 40 or at + 2 * zeros + 1 > len(digits):
            raise ValueError(f"ANS: the table of {count} frequencies is cut short or wrong at bit {at}")
        z = int(digits[at + zeros : at + 2 * zeros + 1], 2) - 1
        roots.append(roots[-1] + (z + 1) // 2 if z % 2 else roots[-1] - z // 2)
        at += 2 * zeros + 1
    if "1" in digits[at : -(-at // 8) * 8]:
        raise ValueError(f"ANS: the table of {count} frequencies is not filled up with zeros")
    if min(roots) < 0 or max(roots) == 0:
        raise ValueError("ANS: the table of frequencies has a negative root, or none above zero")
    return roots[1:], -(-at // 8)
