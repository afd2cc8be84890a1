"""Named tensors to one self-describing, checksummed byte string, and back.

Frame, version 1, little-endian:

    magic    4 bytes  b"CQLT"
    version  u8       1
    count    u32      number of tensors
    then per tensor
        name     u8 length, then UTF-8
        scheme   u8   0 raw, 1 cosine, 2 uniform
        kind     u8   raw: index into RAW_DTYPES; otherwise bits, 1 to 8
        ndim     u8, then ndim times u32: the shape
        floats   only if not raw: two f32, (norm, bound) or (low, high)
        payload  raw: the values; otherwise the codes, `bits` bits each, first code in the highest bits of the first
                 byte, the last byte filled with zeros. Its length follows from the fields before it.
    checksum u64      XXH3-64 of everything before it

There is no pickle in it, and the same tensors and generator state give the same bytes.
"""

import math
import struct
from collections.abc import Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor

from cosquant_lite.quantize import Cosine, Quantized, Uniform

MAGIC, VERSION = b"CQLT", 1
SCHEMES = {"cosine": 1, "uniform": 2}
QUANTIZERS = {1: Cosine, 2: Uniform}
RAW_DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
              torch.bfloat16, torch.int16, torch.int8]  # fmt: skip


class WireError(ValueError):
    """A frame that cannot be decoded; the message says what is wrong with it."""


def encode(
    state: Mapping[str, Tensor], quantizer: Cosine | Uniform | None, *, generator: torch.Generator | None = None
) -> bytes:
    """One frame for a named set of tensors.

    Floating-point tensors are quantized; all others, and everything if quantizer is None, travel as they are.
    generator: for stochastic rounding. ValueError and TypeError name the tensor that cannot be sent.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"expected a mapping from names to tensors, got {type(state).__name__}")
    if not isinstance(quantizer, (Cosine, Uniform, type(None))):
        raise TypeError(
            f"expected a Cosine, a Uniform or None as quantizer, got {quantizer!r}; parse_link reads strings"
        )
    parts = [MAGIC, struct.pack("<BI", VERSION, len(state))]
    for name, x in state.items():
        try:
            parts += _encode_tensor(name, x, quantizer, generator)
        except TypeError as error:
            raise TypeError(f"tensor {name!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
    body = b"".join(parts)
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def decode(blob: bytes) -> dict[str, Tensor]:
    """The tensors of a frame: quantized ones as float32, raw ones in their own dtype. WireError on any damage."""
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected the bytes of a frame, got {type(blob).__name__}")
    blob = bytes(blob)
    if len(blob) < 17 or blob[:4] != MAGIC:
        raise WireError(f"not a cosquant frame: {len(blob)} bytes starting with {blob[:4]!r}, expected {MAGIC!r}")
    if blob[4] != VERSION:
        raise WireError(f"frame version {blob[4]}; this package reads version {VERSION}")
    if xxhash.xxh3_64_intdigest(blob[:-8]) != struct.unpack("<Q", blob[-8:])[0]:
        raise WireError("checksum mismatch: the frame was damaged or cut short")
    read = _Reader(blob[:-8], start=5)
    try:
        (count,) = read.fields("I")
        state = dict(_decode_tensor(read) for _ in range(count))
    except (struct.error, IndexError, UnicodeDecodeError, RuntimeError, OverflowError) as error:
        raise WireError(f"malformed frame: {error}") from None
    if read.at != len(read.blob) or len(state) != count:
        raise WireError(f"frame has {len(read.blob) - read.at} bytes left over or a tensor name twice")
    return state


def frame_bytes(state: Mapping[str, Tensor], bits: int | None) -> int:
    """The length of `encode(state, ...)` by formula: `bits` per entry of float tensors, None for float32 as it is."""
    total = 4 + 5 + 8
    for name, x in state.items():
        quantized = bits is not None and x.is_floating_point()
        payload = math.ceil(x.numel() * bits / 8) + 8 if quantized else x.numel() * x.element_size()
        total += 1 + len(name.encode()) + 3 + 4 * x.ndim + payload
    return total


def pack(codes: Tensor, bits: int) -> bytes:
    """uint8 codes as `bits` bits each, tightly, highest bit first."""
    planes = np.unpackbits(codes.flatten().cpu().numpy()[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(planes).tobytes()


def unpack(payload: bytes, bits: int, n: int) -> Tensor:
    """The n codes that `pack` wrote."""
    planes = np.unpackbits(np.frombuffer(payload, np.uint8), count=n * bits).reshape(n, bits)
    return torch.from_numpy(np.packbits(planes, axis=1)[:, 0] >> (8 - bits))


def _encode_tensor(name: str, x: Tensor, quantizer, generator) -> list[bytes]:
    if not isinstance(name, str) or not isinstance(x, Tensor):
        raise TypeError(
            f"expected a string as name and a torch.Tensor, got {type(name).__name__} and {type(x).__name__}"
        )
    quantizer = quantizer if x.is_floating_point() else None
    label = name.encode()
    if len(label) > 255 or x.ndim > 255:
        raise ValueError(f"a name has at most 255 bytes and a shape 255 dimensions, got {len(label)} and {x.ndim}")
    if quantizer is None:
        if x.dtype not in RAW_DTYPES:
            raise TypeError(f"cannot send {x.dtype} as it is; allowed: {', '.join(map(str, RAW_DTYPES))}")
        scheme, kind, floats = 0, RAW_DTYPES.index(x.dtype), b""
        payload = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        quantized = quantizer.quantize(x, generator)
        scheme, kind = SCHEMES[quantized.scheme], quantized.bits
        floats, payload = struct.pack("<2f", *quantized.floats), pack(quantized.codes, quantized.bits)
    shape = struct.pack(f"<BBB{x.ndim}I", scheme, kind, x.ndim, *x.shape)
    return [bytes([len(label)]), label, shape, floats, payload]


def _decode_tensor(read: "_Reader") -> tuple[str, Tensor]:
    (length,) = read.fields("B")
    name = read.take(length).decode()
    scheme, kind, ndim = read.fields("BBB")
    shape = read.fields(f"{ndim}I")
    n = math.prod(shape)
    if scheme == 0:
        dtype = RAW_DTYPES[kind]
        return name, torch.frombuffer(bytearray(read.take(n * dtype.itemsize)), dtype=dtype).reshape(shape) if n else (
            torch.empty(shape, dtype=dtype)
        )
    if scheme not in QUANTIZERS or not 1 <= kind <= 8:
        raise WireError(f"tensor {name!r}: unknown scheme {scheme} with {kind} bits")
    floats = read.fields("2f")
    if not all(map(math.isfinite, floats)):
        raise WireError(f"tensor {name!r}: the transmitted floats are {floats}")
    codes = unpack(read.take(math.ceil(n * kind / 8)), kind, n).reshape(shape)
    quantizer = QUANTIZERS[scheme](bits=kind)
    return name, quantizer.dequantize(Quantized(codes, kind, floats, type(quantizer).__name__.lower()))


class _Reader:
    """A position in a byte string that refuses to read past its end."""

    def __init__(self, blob: bytes, start: int):
        self.blob, self.at = blob, start

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.blob):
            raise WireError(f"frame ends early: {n} bytes needed at byte {self.at}, {len(self.blob) - self.at} there")
        self.at += n
        return self.blob[self.at - n : self.at]

    def fields(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
