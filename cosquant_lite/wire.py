"""Named tensors to one self-describing, checksummed byte string, and back.

Frame, version 2. All is little-endian; a *number* is an unsigned LEB128 (7 bits a byte, lowest first, the top bit set
on all bytes but the last) of at most 9 bytes.

    magic      4 bytes  b"CQLT"
    version    u8       2
    extra      u8       0; 1: masked; 2: rotated, "hadamard"; 3: only the largest entries travel; 4: rotated, "channels"
      keep     f64      only if masked: the probability p with which an entry of a floating-point tensor travels
      seed     u64      only if masked or rotated: which entries travel, or which signs flip; cosquant_lite/mask.py and
                        cosquant_lite/rotation.py say how
    count      number   of tensors
    then per tensor
      name     number of bytes, then that many bytes of UTF-8
      dtype    u8       index into DTYPES: what the tensor is, and becomes again
      scheme   u8       0 raw, 1 cosine, 2 uniform, 3 table
      bits     u8       only if not raw: 1 to 8
      floats   f32      only if not raw, two: (norm, bound) or (low, high); table: 2**bits, what each code stands for
      stage    u8       the lossless stage: 0 none, 1 deflate, 2 ans; cosquant_lite/entropy.py says how to undo it
      ndim     u8, then that many numbers: the shape
      payload  number of bytes, then that many bytes. Without their lossless stage, raw: the values of the entries
               that travel; else their codes, `bits` bits each, the first one in the highest bits of the first byte,
               the last byte filled with zeros. Entries are in row-major order.
    checksum   u64      XXH3-64 of everything before it

What a code c of scheme 1 or 2 stands for, with L = 2**bits, in float64 arithmetic: cosine: norm cos(bound + c (pi - 2
bound) / (L - 1)), and 0 if norm = 0 or bound >= pi / 2. uniform: low + c (high - low) / (L - 1). table: float c. In a
masked frame it is divided by p; then it is rounded to float32, and then to the tensor's dtype. Raw values of
floating-point tensors in a masked frame are divided by p in float64 and rounded to their dtype. Entries that do not
travel are 0; tensors that are not floating-point are never masked. In a rotated frame the values of scheme 1 to 3,
rounded to float32, are the rotated ones: the rotation is undone, and what that gives is rounded to the tensor's dtype.

In a frame of which only the largest entries travel, a floating-point tensor that has entries is two of the tensors
above: those of its entries that travel, flat, and right after it truth values of its name and "/positions", of its
shape, which say where they belong. Elsewhere it is 0.

A decoder refuses what no encoder writes: a number with a needless last byte 0, fill bits that are not 0, two tensors of
one name, a shape of more than 64 dimensions or whose product, zeros left out, is 2**48 or more, floats that are not
finite, values that become so by what is done to them here, entries without their positions.

A frame costs at most 19 bytes, 35 with a mask, 27 with a rotation, and per tensor 15 bytes, one for each 7 bits of a
dimension, of the payload's length and of the name's length, and the name; a table costs 4 L - 8 bytes more. There is no
pickle in it, and the same tensors and generator state give the same bytes. Test vector (tests/test_wire.py decodes it):
{"w": float32 [1, -2, 3, 0.5], "n": int64 7}, Cosine(bits=2, clip=0), is

    43 51 4c 54 02 00 02 01 77 00 01 02 3e 98 71 40 ee f9 26 3f 00 01 04 01 61 01
    6e 03 00 00 00 08 07 00 00 00 00 00 00 00 0c 79 09 8c b6 11 5e 61
"""

import math
import numbers
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from cosquant_lite import entropy as lossless
from cosquant_lite import kernels, rotation, sparse
from cosquant_lite.codebook import Codebook
from cosquant_lite.mask import Mask, spread, take
from cosquant_lite.packing import packed_bytes
from cosquant_lite.quantize import Cosine, ScalarQuantizer, Uniform, check_choice, check_tensor

MAGIC, VERSION = b"CQLT", 2
SCHEMES = ("raw", "cosine", "uniform", "table")  # a frame stores the index
QUANTIZERS = {"cosine": Cosine, "uniform": Uniform, "table": Codebook}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.bfloat16, torch.int16, torch.int8]  # fmt: skip
TURNS = {"hadamard": 2, "channels": 4}  # what the frame says of each kind of rotation
LIMIT = 2**30  # bytes of tensors that `decode` makes unless told otherwise
EACH = 2**10  # what a tensor counts for towards the limit beside its bytes: what it costs to have it at all
LARGEST, DIMENSIONS = 2**48, 64  # entries, empty dimensions counted as one; torch has no more dimensions
PIECE = 2**18  # entries that are divided by p at a time: it bounds the memory


class WireError(ValueError):
    """A frame that cannot be decoded; the message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Part:
    """One tensor of a frame, not decoded yet. bits: of a code, 8 if raw. header: bytes it takes beside its payload."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    scheme: str
    bits: int
    floats: tuple[float, ...]
    stage: str
    payload: memoryview
    header: int

    @property
    def numel(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Frame:
    """What a frame says about itself. mask: None if there is none. rotation: its kind and seed, None if there is none.

    largest: whether only the largest entries travel, with their positions. header: bytes beside the parts'.
    """

    mask: Mask | None
    rotation: tuple[str, int] | None
    largest: bool
    parts: list[Part]
    header: int


def encode(
    state: Mapping[str, Tensor],
    quantizer: ScalarQuantizer | None,
    *,
    entropy: str = "none",
    mask: float = 1.0,
    rotate: str = "none",
    top: float = 1.0,
    generator: torch.Generator | None = None,
) -> bytes:
    """One frame for a named set of tensors.

    Floating-point tensors are quantized; all others, and everything if quantizer is None, travel as they are.
    entropy: the lossless stage, "none", "deflate", "ans" or "auto", the shortest of them for each tensor.
    mask: the probability p in (0, 1] with which an entry of a floating-point tensor travels; the others arrive as 0,
    and these divided by p. rotate: "none", "hadamard" or "channels" (rotation.py): tensors are rotated before they are
    quantized, and back after. top: the share in (0, 1] of the entries of each floating-point tensor, those of largest
    magnitude, that travel with their positions; it needs a lossless stage. generator: for stochastic rounding and for
    the seed of the mask or the rotation. ValueError and TypeError name the tensor or the option that cannot be sent.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"expected a mapping from names to tensors, got {type(state).__name__}")
    if not isinstance(quantizer, (ScalarQuantizer, type(None))):
        raise TypeError(
            f"expected a Cosine, a Uniform, a Sign or None as quantizer, got {quantizer!r}; parse_link reads strings"
        )
    check_options(quantizer, entropy, mask, rotate, top)
    masked = Mask(float(mask), _draw_seed(generator)) if float(mask) < 1 else None
    turn = (rotate, _draw_seed(generator)) if rotate != "none" else None
    if float(top) < 1:
        for name, x in state.items():  # before entries are left out, so that an error counts as the tensor does
            with _naming(name):
                _check_tensor(name, x)
                if quantizer is not None and x.is_floating_point():
                    check_tensor(x)
        state = sparse.keep_largest(state, float(top))
    extra = 1 if masked else TURNS[rotate] if turn else 3 if float(top) < 1 else 0
    parts = [struct.pack("<4sBB", MAGIC, VERSION, extra)]
    if masked:
        parts.append(struct.pack("<dQ", masked.p, masked.seed))
    if turn:
        parts.append(struct.pack("<Q", turn[1]))
    parts.append(_number(len(state)))
    for index, (name, x) in enumerate(state.items()):
        with _naming(name):
            parts += _encode_tensor(name, x, quantizer, entropy, masked, turn, index, generator)
    checksum = xxhash.xxh3_64()
    for part in parts:
        checksum.update(part)
    return b"".join([*parts, struct.pack("<Q", checksum.intdigest())])


def decode(blob: bytes, *, limit: float = LIMIT, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a frame, each in its own dtype.

    limit: how many bytes of tensors the frame may declare, each tensor counted with 1,024 on top; tensors and working
    memory together are at most four times that and 16 MiB. Within the limit a small frame can declare much, and
    decoding takes the time that so many entries take. device: where quantized tensors are unpacked and everything ends up.
    WireError on any damage, and above the limit.
    """
    device = torch.device(device)
    if device.type == "meta":
        raise ValueError("device 'meta' holds no data")
    return unframe(inspect(blob, limit=limit), device)


def unframe(frame: Frame, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a frame that was inspected. WireError on damage in the payloads."""
    device = torch.device(device)
    state = {part.name: _decode_tensor(part, frame, index, device) for index, part in enumerate(frame.parts)}
    try:
        return sparse.spread_out(state) if frame.largest else state
    except ValueError as error:
        raise WireError(str(error)) from None


def inspect(blob: bytes, *, limit: float = math.inf) -> Frame:
    """What a frame holds and what each part of it costs, without decoding the payloads. WireError on any damage.

    limit: as in `decode`.
    """
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected the bytes of a frame, got {type(blob).__name__}")
    if not isinstance(limit, numbers.Real) or math.isnan(limit):
        raise ValueError(f"limit must be a number of bytes, or math.inf for none, got {limit!r}")
    blob = memoryview(blob)
    blob = blob.cast("B") if blob.c_contiguous and blob.nbytes else memoryview(bytes(blob))
    if len(blob) < 15 or blob[:4] != MAGIC:
        raise WireError(
            f"not a cosquant frame: {len(blob)} bytes starting with {bytes(blob[:4])!r}, expected {MAGIC!r}"
        )
    if blob[4] != VERSION:
        raise WireError(f"frame version {blob[4]}; this package reads version {VERSION}")
    if xxhash.xxh3_64_intdigest(blob[:-8]) != struct.unpack("<Q", blob[-8:])[0]:
        raise WireError("checksum mismatch: the frame was damaged or cut short")
    read = _Reader(blob[:-8], start=5)
    mask, turn, largest = _read_extra(read)
    count = read.number()
    header, declared, parts, before = read.at + 8, 0, {}, None
    for _ in range(count):
        part = _read_part(read)
        if part.name in parts:
            raise WireError(f"two tensors are called {_shown(part.name)}")
        declared += part.nbytes + EACH
        if largest and before and part.name == before.name + sparse.POSITIONS:
            declared += part.numel * before.dtype.itemsize  # what the entries are spread over
        if declared > limit:
            raise WireError(
                f"the frame declares {declared:,} bytes of tensors or more, {EACH:,} for each tensor included; "
                f"limit={limit:,} allows no more than that"
            )
        parts[part.name] = before = part
    if read.at != len(read.blob):
        raise WireError(f"{len(read.blob) - read.at} bytes are left over after the {count} tensors of the frame")
    return Frame(mask, turn, largest, list(parts.values()), header)


def frame_bytes(
    state: Mapping[str, Tensor],
    bits: int | None,
    *,
    mask: Mask | None = None,
    rotated: bool = False,
    table: bool = False,
) -> int:
    """The length of `encode(state, ...)` without a lossless stage, by formula.

    bits: of each entry of float tensors, None for as they are. mask, rotated: as in the frame. table: of a codebook.
    """
    side = 1 + 4 * (2**bits if table else 2) if bits is not None else 0
    total = 6 + (16 if mask else 8 if rotated else 0) + len(_number(len(state))) + 8
    for index, (name, x) in enumerate(state.items()):
        floating = x.is_floating_point()
        n = int(mask.kept(x.numel(), index).count_nonzero()) if floating and mask else x.numel()
        quantized = floating and bits is not None
        payload = packed_bytes(n, bits) if quantized else n * x.element_size()
        numbers = sum(len(_number(value)) for value in (len(name.encode()), *x.shape, payload))
        total += len(name.encode()) + 4 + (side if quantized else 0) + numbers + payload
    return total


def check_options(quantizer: ScalarQuantizer | None, entropy: str, mask: float, rotate: str, top: float) -> None:
    """ValueError if there is no such lossless stage, probability, rotation or share, or if they do not go together."""
    check_choice("entropy", entropy, lossless.CHOICES)
    check_choice("rotate", rotate, rotation.CHOICES)
    for name, share in (("mask", mask), ("top", top)):
        if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 < float(share) <= 1:
            raise ValueError(f"{name} must be a number in (0, 1], the share of entries that travel, got {share!r}")
    if rotate != "none" and (quantizer is None or mask < 1):
        raise ValueError(
            f"rotate={rotate!r} spreads entries for a quantizer, and needs all of them back: it goes neither with "
            "tensors that are not quantized nor with a mask"
        )
    if top < 1 and (mask < 1 or rotate != "none" or entropy == "none"):
        raise ValueError(
            "top goes without a mask and a rotation, and with entropy=ans, deflate or auto: positions cost a byte each"
        )


def _draw_seed(generator: torch.Generator | None) -> int:
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"a random mask or rotation needs generator=torch.Generator(...), so that a seed fixes it; got {generator!r}"
        )
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


@contextmanager
def _naming(tensor: str) -> Iterator[None]:
    """Put the tensor's name before what is wrong with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"tensor {tensor!r}: {error}") from None


def _encode_tensor(
    name: str, x: Tensor, quantizer, entropy: str, mask: Mask | None, turn: tuple | None, index: int, generator
) -> list[bytes | memoryview]:
    _check_tensor(name, x)
    x = x.detach().resolve_neg()
    keep = mask.kept(x.numel(), index).to(x.device) if mask and x.is_floating_point() else None
    p = mask.p if mask else 1.0
    if quantizer is not None and x.is_floating_point():
        floats, packed = kernels.quantize_packed(_turned(x, turn, index), quantizer, generator, keep)
        if turn is not None:  # only the values themselves tell what becomes of them
            table = _table(quantizer, floats, p, torch.float32)
            values = kernels.dequantize_packed(packed, table, quantizer.bits, x.numel())
            _turned_back(values, x.shape, turn, index, x.dtype)
        elif p < 1 or x.dtype != torch.float32:
            _table(quantizer, floats, p, x.dtype)  # may raise
        bits, n = quantizer.bits, x.numel() if keep is None else int(np.count_nonzero(keep.cpu().numpy()))
        how = struct.pack(f"<BB{len(floats)}f", SCHEMES.index(quantizer.scheme), bits, *floats)
    else:
        sent = x.flatten() if keep is None else take(x, keep)
        if keep is not None:
            _check_quotients(sent, p)
        packed = sent.contiguous().view(torch.uint8)
        bits, n, how = 8, len(packed), bytes([0])
    stage, payload = lossless.compress(packed.cpu(), bits, n, entropy)
    label, dtype = name.encode(), bytes([DTYPES.index(x.dtype)])
    stage_and_shape = bytes([lossless.STAGES.index(stage), x.ndim]) + b"".join(map(_number, x.shape))
    return [_number(len(label)), label, dtype, how, stage_and_shape, _number(len(payload)), payload]


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(name, str) or not isinstance(x, Tensor):
        raise TypeError(
            f"expected a string as name and a torch.Tensor, got {type(name).__name__} and {type(x).__name__}"
        )
    if x.dtype not in DTYPES or x.layout != torch.strided or x.is_meta or x.is_nested:
        kind = "nested" if x.is_nested else f"{x.layout} on {x.device}"
        raise TypeError(f"cannot send {x.dtype}, {kind}; allowed: dense {', '.join(map(str, DTYPES))}")
    if x.ndim > DIMENSIONS or _extent(x.shape) >= LARGEST:
        raise ValueError(f"a shape has at most 64 dimensions and less than 2**48 entries, got {tuple(x.shape)}")


def _extent(shape: tuple[int, ...]) -> int:
    """Entries, empty dimensions counted as one: an empty tensor of absurd shape is absurd too."""
    return math.prod(max(size, 1) for size in shape)


def _check_quotients(values: Tensor, p: float) -> None:
    """Raw values are divided by p at the receiver: finite ones must stay finite."""
    finite = values[values.isfinite()]
    largest = float(finite.abs().max()) / p if len(finite) else 0.0
    if largest > torch.finfo(values.dtype).max:
        raise ValueError(f"the largest value, divided by the mask's {p}, is {largest:.3g} and beyond {values.dtype}")


def _turned(x: Tensor, turn: tuple | None, index: int) -> Tensor:
    """x rotated, if it is to be."""
    if turn is None:
        return x
    check_tensor(x)  # here an error can still say where in x it is
    return rotation.rotate(x, *turn, index)


def _turned_back(values: Tensor, shape: tuple, turn: tuple, index: int, dtype: torch.dtype) -> Tensor:
    """Rotated values in the tensor's own frame of reference and dtype. ValueError if it cannot hold them."""
    values = rotation.unrotate(values, shape, *turn, index)
    if len(values) and not torch.stack(values.aminmax()).to(dtype).isfinite().all():
        raise ValueError(f"a value after the rotation is beyond {dtype}")
    return values.to(dtype)


def _table(quantizer: ScalarQuantizer, floats: tuple[float, float], p: float, dtype: torch.dtype) -> Tensor:
    """What each code stands for at the receiver. ValueError if that is beyond the dtype."""
    if p == 1 and dtype == torch.float32:  # as finite as the floats
        return quantizer.table(floats)
    exact = quantizer.value(torch.arange(quantizer.levels, dtype=torch.float64, device="cpu"), floats) / p
    table = exact.float().to(dtype)
    if not table.isfinite().all():
        raise ValueError(
            f"the largest value at the receiver, divided by the mask's p if there is one, is {exact.abs().max():.3g} and beyond {dtype}"
        )
    return table


def _decode_tensor(part: Part, frame: Frame, index: int, device: torch.device) -> Tensor:
    mask = frame.mask
    keep = mask.kept(part.numel, index) if mask and part.dtype.is_floating_point else None
    n = part.numel if keep is None else int(np.count_nonzero(keep.numpy()))
    try:
        values = _raw(part, n) if part.scheme == "raw" else _dequantized(part, n, frame, index, device)
        if keep is not None and part.scheme == "raw":
            for piece in values.split(PIECE):
                _check_quotients(piece, mask.p)
                piece.copy_(piece.double() / mask.p)
    except ValueError as error:
        raise WireError(f"tensor {_shown(part.name)}: {error}") from None
    if keep is not None:
        values = spread(values, keep.to(values.device))
    return values.to(device).view(part.shape)


def _raw(part: Part, n: int) -> Tensor:
    """The n values that travel of a tensor that was not quantized."""
    size = n * part.dtype.itemsize
    of_ans = part.stage == "ans"
    plain = lossless.decode_ans(part.payload, 8, size) if of_ans else lossless.expand(part.stage, part.payload, 8, size)
    if part.dtype == torch.bool and n and plain.max() > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    return plain.view(part.dtype)


def _dequantized(part: Part, n: int, frame: Frame, index: int, device: torch.device) -> Tensor:
    """The n values that travel of a quantized tensor, divided by the mask's p, or rotated back."""
    turned, p = frame.rotation is not None, frame.mask.p if frame.mask else 1.0
    table = _table(QUANTIZERS[part.scheme](part.bits), part.floats, p, torch.float32 if turned else part.dtype)
    if part.stage == "ans":
        values = kernels.look_up(lossless.decode_ans(part.payload, part.bits, n), table).to(device)
    else:  # no name for the codes: they would stay in memory while the rotation is undone
        values = kernels.dequantize_packed(
            lossless.expand(part.stage, part.payload, part.bits, n).to(device), table, part.bits, n
        )
    if turned:
        values = _turned_back(values, part.shape, frame.rotation, index, part.dtype)
    return values


def _read_extra(read: "_Reader") -> tuple[Mask | None, tuple[str, int] | None, bool]:
    """The mask, the rotation, and whether positions follow: at most one of them."""
    (extra,) = read.fields("B")
    if extra > 4:
        raise WireError(f"the byte that says whether there is a mask or a rotation is {extra}; allowed are 0 to 4")
    for kind, number in TURNS.items():
        if extra == number:
            return None, (kind, read.fields("Q")[0]), False
    if extra != 1:
        return None, None, extra == 3
    p, seed = read.fields("dQ")
    if not 0 < p < 1:
        raise WireError(f"the mask keeps an entry with probability {p}, which is not between 0 and 1")
    return Mask(p, seed), None, False


def _shown(name: str) -> str:
    """A name for a message: whoever sent it may have made it long."""
    return repr(name if len(name) <= 80 else name[:80] + "...")


def _read_part(read: "_Reader") -> Part:
    start = read.at
    label = read.take(read.number())
    try:
        name = bytes(label).decode()
    except UnicodeDecodeError as error:
        raise WireError(f"a tensor's name is no UTF-8: {error}") from None
    dtype, scheme = read.fields("BB")
    if dtype >= len(DTYPES):
        raise WireError(f"tensor {_shown(name)}: unknown dtype {dtype}, this version knows 0 to {len(DTYPES) - 1}")
    if scheme >= len(SCHEMES) or (scheme and not DTYPES[dtype].is_floating_point):
        raise WireError(f"tensor {_shown(name)}: unknown scheme {scheme} for {DTYPES[dtype]}")
    (bits,) = read.fields("B") if scheme else (8,)
    if not 1 <= bits <= 8:
        raise WireError(f"tensor {_shown(name)}: {bits} bits; allowed are 1 to 8")
    floats = read.fields(f"{2**bits if SCHEMES[scheme] == 'table' else 2}f") if scheme else ()
    if not all(map(math.isfinite, floats)):
        raise WireError(f"tensor {_shown(name)}: the floats {list(floats)}; allowed are finite ones")
    stage, ndim = read.fields("BB")
    if stage >= len(lossless.STAGES):
        raise WireError(f"tensor {_shown(name)}: unknown lossless stage {stage}, this version knows 0 to 2")
    shape = tuple(read.number() for _ in range(ndim))
    if ndim > DIMENSIONS or _extent(shape) >= LARGEST:
        raise WireError(f"tensor {_shown(name)}: absurd shape {shape}")
    payload = read.take(read.number())
    header = read.at - start - len(payload)
    return Part(
        name, DTYPES[dtype], shape, SCHEMES[scheme], bits, tuple(floats), lossless.STAGES[stage], payload, header
    )


def _number(value: int) -> bytes:
    """Unsigned LEB128."""
    out = b""
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


class _Reader:
    """A position in a byte string that refuses to read past its end."""

    def __init__(self, blob: memoryview, start: int):
        self.blob, self.at = blob, start

    def take(self, n: int) -> memoryview:
        if self.at + n > len(self.blob):
            raise WireError(f"frame ends early: {n} bytes needed at byte {self.at}, {len(self.blob) - self.at} there")
        self.at += n
        return self.blob[self.at - n : self.at]

    def fields(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def number(self) -> int:
        value = 0
        for i in range(9):
            (byte,) = self.take(1)
            value |= (byte & 127) << 7 * i
            if byte < 128 and (byte or i == 0):
                return value
            if byte == 0:
                raise WireError(f"a number at byte {self.at - 1 - i} has a needless last byte 0")
        raise WireError(f"a number at byte {self.at - 9} is longer than 9 bytes")
