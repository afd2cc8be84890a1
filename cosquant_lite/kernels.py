"""The fast path from a tensor to packed codes and back, on all cores; same codes as `quantize.py`.

Float64, other devices than the CPU and the comparators go through the definition itself in one piece. A float32 tensor
on the CPU takes two or three passes, compiled by numba (codes of small tensors and of stochastic rounding are made by
the definition, a chunk at a time):

1. the sum of squares, the extremes and, with a clip, the clipped maximum by counting: floats of one sign are ordered
   like the whole numbers that their bits spell, so a count of the upper 15 bits and then one of the lower 16 bits finds
   the k-th largest of any number of entries exactly;
2. codes and packing at once. A code changes only at levels - 1 borders on the axis of x. The definition's own inverse
   says where they are, and the definition decides where a float32 lies within rounding of one, so nothing of its
   formula is written again here. A table over equal cells then tells for each entry how many borders lie below its
   cell, and one or two comparisons do the rest.

The result does not depend on the number of threads (`torch.get_num_threads()`). Given the same two floats, the codes
are the definition's for every float32. The norm is summed in another order, so its float32 can differ by one unit if
the exact norm lies within float64 rounding of the middle between two: none of the tests' inputs does.

Like torch itself these functions may hang in a child that was forked after they had run; start processes by `spawn`.
"""

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from cosquant_lite import clipping, quantize
from cosquant_lite.mask import take
from cosquant_lite.packing import pack, packed_bytes, unpack
from cosquant_lite.quantize import Cosine, ScalarQuantizer, Uniform

SMALL = 2**14  # entries below which the definition makes codes as fast
PER_THREAD = 2**20  # entries; starting a thread for fewer costs more than it gives
SORTED = 2**18  # entries up to which sorting in part is faster than counting
CHUNK = 2**16  # entries summed by themselves, so that sums do not depend on the number of threads
BLOCK = 1024  # entries that are looked at together, in the first cache
CELLS = 4096  # of the table over the axis of x
ROUNDING = 3e-14  # of the norm, or of the larger end: more than ten times the largest error of a border in float64


def quantize_packed(
    x: Tensor, quantizer: ScalarQuantizer, generator: torch.Generator | None = None, keep: Tensor | None = None
) -> tuple[tuple[float, float], Tensor]:
    """The transmitted floats and the packed codes, flat uint8 on x's device.

    keep: flat, boolean: which entries get codes. Other arguments, and errors, as in `Cosine.quantize`.
    """
    if not (_is_fast(x) and isinstance(quantizer, (Cosine, Uniform))):
        quantized = quantizer.quantize(x, generator, keep=keep)
        return quantized.floats, pack(quantized.codes, quantizer.bits)
    quantize.check_generator(quantizer.rounding, generator, x.device)
    flat = x.detach().float().contiguous().flatten()
    clip = clipping.best(_magnitudes(flat), quantizer) if quantizer.clip == "auto" else quantizer.clip
    found = statistics(flat, clip)
    if not math.isfinite(found[0]):
        quantize.check_tensor(x)  # raises, and says where the NaN or infinity is
    floats = quantizer.side_info(*found)
    kept = flat if keep is None else take(flat, keep)
    if quantizer.rounding == "nearest" and len(kept) >= SMALL:
        packed = _nearest(kept.numpy(), quantizer, floats)
    else:
        pieces = kept.split(CHUNK) if len(kept) > CHUNK else [kept]
        parts = [_packed(quantizer.codes(piece, floats, generator), quantizer.bits) for piece in pieces]
        packed = torch.cat(parts) if len(parts) > 1 else parts[0]
    if quantizer.scale == "norm":
        return floats, packed
    squared = found[0] ** 2 if keep is None else statistics(kept, 0)[0] ** 2
    return quantizer.rescaled(floats, *_by_code(kept, packed, quantizer.bits), squared), packed


def dequantize_packed(packed: Tensor, table: Tensor, bits: int, n: int) -> Tensor:
    """The n entries of `table` that the packed codes name, flat, in the table's dtype, on the device of `packed`."""
    if packed.device.type != "cpu":
        return table.to(packed.device)[unpack(packed, bits, n).int()]
    values = _words(table)
    out = np.empty(n, values.dtype)  # numpy asks for large pages, torch does not: here a tenth of the time
    source = packed.numpy()

    def look_up(start: int, stop: int) -> None:
        _look_up(source[start * bits // 8 :], bits, values, out[start:stop])

    _in_parts(look_up, n)
    return torch.from_numpy(out).view(table.dtype)


def look_up(codes: Tensor, table: Tensor) -> Tensor:
    """The entries of `table` that uint8 codes on the CPU name, flat, in the table's dtype."""
    values, indices = _words(table), codes.numpy()
    out = np.empty(len(indices), values.dtype)
    for start in range(0, len(out), CHUNK):  # numpy makes each index 8 bytes long
        values.take(indices[start : start + CHUNK], out=out[start : start + CHUNK])
    return torch.from_numpy(out).view(table.dtype)


def _words(table: Tensor) -> np.ndarray:
    """The entries as whole numbers: numpy has no bfloat16."""
    return table.view(getattr(torch, f"uint{8 * table.itemsize}")).numpy()


def statistics(x: Tensor, clip: float) -> tuple[float, float, float, float]:
    """`quantize.statistics` of a flat float32 tensor on the CPU, without a copy or a sort.

    The norm is NaN or infinite just if an entry is: squares of float32 do not overflow a float64.
    """
    values, bits = x.numpy(), x.numpy().view(np.int32)
    cut = math.floor(clip * len(values))
    few = len(values) <= SORTED
    parts = _in_parts(lambda start, stop: _sums(values[start:stop], bits[start:stop], cut > 0 and not few), len(x))
    sums, lows, highs, counts = zip(*parts)
    squared = np.concatenate(sums).sum()
    low, high = min(lows), max(highs)
    largest = max(-low, high)
    if cut and few:
        largest = float(np.partition(np.abs(values), len(values) - 1 - cut)[len(values) - 1 - cut])
    elif cut:
        largest = _kth_largest(bits, cut, sum(counts))
    return math.sqrt(squared), largest, low, high


def _magnitudes(x: Tensor) -> Tensor:
    """`clipping.counts` of a flat float32 tensor on the CPU."""
    values, bits = x.numpy(), x.numpy().view(np.int32)
    parts = _in_parts(lambda start, stop: _sums(values[start:stop], bits[start:stop], True)[3], len(x))
    return torch.from_numpy(sum(parts))


def _by_code(x: Tensor, packed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """For each code the sum of the entries of x that have it, and how many they are."""
    values, source, whole = x.numpy(), packed.numpy(), len(x) - len(x) % 8

    def add(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return _add_by_code(values[start:stop], source[start * bits // 8 :], bits)

    sums, counts = zip(*_in_parts(add, whole))
    rest = unpack(packed[whole * bits // 8 :], bits, len(x) - whole).numpy()
    last = np.bincount(rest, values[whole:], 2**bits), np.bincount(rest, minlength=2**bits)
    return torch.from_numpy(np.concatenate(sums).sum(0) + last[0]), torch.from_numpy(sum(counts) + last[1])


def borders(quantizer: Cosine | Uniform, floats: tuple[float, float], values: np.ndarray | None = None) -> np.ndarray:
    """The levels - 1 borders between codes on the axis of x, ascending: each the smallest float32 above one.

    The inverse formula says where a border is, up to ROUNDING. Only where a float32 lies within that of it, as 0 does
    of the middle border, is the definition asked. values: what will be compared with the borders, if it is known; where
    none of it lies that near, the formula's border does.
    """
    at = quantizer.value(torch.arange(quantizer.levels - 1, dtype=torch.float64, device="cpu") + 0.5, floats).numpy()
    falls = quantizer.scheme == "cosine"  # code 0 is the largest value
    off = ROUNDING * (floats[0] if falls else max(map(abs, floats)))
    edges, below = _from(at), _from(at - off)
    for i in np.flatnonzero(below <= at + off):
        low, high = below[i], _from(at[i] + off)

        def above(x: np.ndarray, i: int = i) -> np.ndarray:
            """Whether the definition puts each of these float32 above the border."""
            codes = quantizer.codes(torch.from_numpy(x), floats).numpy()
            return codes <= i if falls else codes > i

        near = values[(values >= low) & (values <= high)] if values is not None else None
        if near is None or near.any():
            edges[i] = _search(above, low, high)
        elif len(near):  # zeros
            edges[i] = low if above(near[:1]) else high
    return np.sort(edges)


def _from(x: np.ndarray) -> np.ndarray:
    """The smallest float32 not below each x."""
    nearest = np.array(x, np.float32)
    return np.nextafter(nearest, np.float32(np.inf), out=nearest, where=nearest < x)


def _search(above: Callable[[np.ndarray], np.ndarray], low: np.float32, high: np.float32) -> np.float32:
    """The smallest float32 from low to high for which `above` holds. It must hold for high, which is not checked."""
    low, high = (int(_ordered.py_func(end.view(np.int32))) for end in (low, high))
    while high > low:
        keys = np.append(np.arange(low, high, (high - low) // 256 + 1), high).astype(np.int32)
        i = int(above(_ordered.py_func(keys).view(np.float32)).argmax())
        low, high = int(keys[i - 1]) + 1 if i else low, int(keys[i])
    return _ordered.py_func(np.int32(high)).view(np.float32)


def _is_fast(x) -> bool:
    fits = isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return fits and x.device.type == "cpu" and x.layout == torch.strided and x.numel() > 0


def _packed(codes: Tensor, bits: int) -> Tensor:
    """`packing.pack` of uint8 codes on the CPU."""
    out = np.empty(packed_bytes(codes.numel(), bits), np.uint8)
    _pack(codes.flatten().numpy(), bits, out)
    return torch.from_numpy(out)


def _nearest(values: np.ndarray, quantizer: Cosine | Uniform, floats: tuple[float, float]) -> Tensor:
    """Packed codes, rounded to the nearest."""
    bits, table, n = quantizer.bits, quantizer.table(floats).numpy(), len(values)
    whole = n - n % 8
    packed = np.empty(packed_bytes(n, bits), np.uint8)
    if whole < n:
        packed[whole * bits // 8 :] = pack(quantizer.codes(torch.from_numpy(values[whole:]), floats), bits).numpy()
    if table[0] == table[-1]:  # one value for all: code 0
        return torch.from_numpy(np.zeros_like(packed))
    edges = borders(quantizer, floats, values if n <= SORTED else None)
    scale = np.float32((CELLS - 1) / max(float(edges[-1]) - float(edges[0]), 4e-35))
    inside = np.bincount(_cells(edges, edges[0], scale), minlength=CELLS)
    below = (inside.cumsum() - inside).astype(np.uint8)
    crowded = inside.max() > 1
    edges = np.append(edges, np.float32(np.inf))
    flip = np.uint64(quantizer.levels - 1 if table[0] > table[-1] else 0)

    def encode(start: int, stop: int) -> None:
        target = packed[start * bits // 8 :]
        _round_and_pack(values[start:stop], edges, scale, below, edges[below], crowded, flip, bits, target)

    _in_parts(encode, whole)
    return torch.from_numpy(packed)


def _kth_largest(bits: np.ndarray, k: int, upper: np.ndarray) -> float:
    """The (k + 1)-th largest magnitude; upper: how many entries have each value of their upper 15 bits."""
    above = np.cumsum(upper[::-1])[::-1]  # entries at or above each
    top = int(np.flatnonzero(above > k)[-1])
    k -= int(above[top + 1]) if top + 1 < len(above) else 0
    lower = sum(_in_parts(lambda start, stop: _count_lower(bits[start:stop], top), len(bits)))
    above = np.cumsum(lower[::-1])[::-1]
    return float(np.array(top << 16 | int(np.flatnonzero(above > k)[-1]), np.uint32).view(np.float32))


def _in_parts(work: Callable[[int, int], object], n: int) -> list:
    """work(start, stop) for as many parts of n entries as there are threads; the results in order.

    Parts begin at multiples of CHUNK. The kernels do not hold the GIL.
    """
    chunks, workers = -(-n // CHUNK), max(1, min(torch.get_num_threads(), n // PER_THREAD))
    starts = sorted({CHUNK * (chunks * worker // workers) for worker in range(workers)})
    stops = starts[1:] + [n]
    if len(starts) == 1:
        return [work(0, n)]
    with ThreadPoolExecutor(len(starts)) as pool:
        return list(pool.map(work, starts, stops))


def _kernel(function: Callable) -> Callable:
    """Compiled without the GIL, once per machine, or once per process where the compiled code cannot be kept or read."""
    plain = numba.njit(nogil=True)(function)
    try:
        used = [numba.njit(nogil=True, cache=True)(function)]
    except RuntimeError:  # there is no folder that can be written
        return plain

    def call(*arguments):
        try:
            return used[0](*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):  # a full disk, or half a file
            used[0] = plain
            return plain(*arguments)

    return call


@numba.njit(fastmath={"reassoc", "contract"})
def _sum_of_squares(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@numba.njit
def _extremes(bits):
    """The smallest and largest of float32s, given and returned as whole numbers of the same order (see `_ordered`)."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(len(bits)):
        key = _ordered(bits[i])
        low, high = min(low, key), max(high, key)
    return low, high


@numba.njit(inline="always")
def _ordered(bits):
    """The bits of a float32 as an int32 of the same order, and back: those of a negative one count the wrong way."""
    return bits ^ (bits >> np.int32(31) & np.int32(0x7FFFFFFF))


@_kernel
def _sums(values, bits, count):
    """Sums of squares, a chunk each; the smallest and largest value; if asked, how many have each upper 15 bits."""
    sums = np.zeros((len(values) + CHUNK - 1) // CHUNK)
    counts = np.zeros(2**15 if count else 1, np.int64)
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for start in range(0, len(values), BLOCK):
        block = bits[start : start + BLOCK]
        sums[start // CHUNK] += _sum_of_squares(values[start : start + BLOCK])
        least, most = _extremes(block)
        low, high = min(low, least), max(high, most)
        if count:
            for word in block:
                counts[np.uint32(word >> np.int32(16) & np.int32(0x7FFF))] += 1
    extremes = np.array([_ordered(low), _ordered(high)], np.int32).view(np.float32)
    return sums, float(extremes[0]), float(extremes[1]), counts


@_kernel
def _count_lower(bits, top):
    counts = np.zeros(2**16, np.int64)
    for i in range(len(bits)):
        if bits[i] >> np.int32(16) & np.int32(0x7FFF) == top:
            counts[np.uint32(bits[i] & np.int32(0xFFFF))] += 1
    return counts


@numba.njit
def _cells_of(values, low, scale, cells):
    """The cell of the table that each value lies in; it never falls as the value grows, on which all rests."""
    for i in range(len(values)):
        cell = (values[i] - low) * scale
        cell = cell if cell > np.float32(0) else np.float32(0)
        cells[i] = np.int32(cell if cell < np.float32(CELLS - 1) else np.float32(CELLS - 1))


@_kernel
def _cells(values, low, scale):
    cells = np.empty(len(values), np.uint32)
    _cells_of(values, low, scale, cells)
    return cells


@_kernel
def _round_and_pack(values, edges, scale, below, edge, crowded, flip, bits, packed):
    """Packed codes; the number of values is a multiple of 8. Unsigned indices, as numba checks the sign of others."""
    cells, shift, at = np.empty(BLOCK, np.uint32), np.uint64(bits), np.uint64(0)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        _cells_of(block, edges[0], scale, cells)
        for eight in range(0, len(block), 8):
            word = np.uint64(0)
            for i in range(8):
                value = block[np.uint64(eight + i)]
                cell = np.uint64(cells[np.uint64(eight + i)])
                rank = np.uint64(below[cell]) + np.uint64(value >= edge[cell])
                if crowded:
                    while value >= edges[rank]:
                        rank += np.uint64(1)
                word = word << shift | rank ^ flip
            for i in range(bits):
                packed[at] = np.uint8(word >> np.uint64(8 * (bits - 1 - i)))
                at += np.uint64(1)


@_kernel
def _pack(codes, bits, packed):
    """Codes as `bits` bits each, eight at a time; what is missing of the last eight is 0."""
    shift, at, n = np.uint64(bits), 0, len(codes)
    for start in range(0, n, 8):
        word = np.uint64(0)
        for i in range(start, start + 8):
            word = word << shift | (np.uint64(codes[i]) if i < n else np.uint64(0))
        for i in range(min(bits, len(packed) - at)):
            packed[at + i] = np.uint8(word >> np.uint64(8 * (bits - 1 - i)))
        at += bits


@_kernel
def _look_up(packed, bits, values, out):
    """For each packed code its value, eight at a time."""
    mask, shift, at, to = np.uint64(2**bits - 1), np.uint64(bits), np.uint64(0), np.uint64(0)
    for _ in range(len(out) // 8):
        word = np.uint64(0)
        for _ in range(bits):
            word = word << np.uint64(8) | np.uint64(packed[at])
            at += np.uint64(1)
        for i in range(8):
            out[to] = values[word >> shift * np.uint64(7 - i) & mask]
            to += np.uint64(1)
    rest, word = np.uint64(len(out)) - to, np.uint64(0)
    for i in range(bits):
        left = at + np.uint64(i)
        word = word << np.uint64(8) | (np.uint64(packed[left]) if left < np.uint64(len(packed)) else np.uint64(0))
    for i in range(rest):
        out[to + np.uint64(i)] = values[word >> shift * np.uint64(7 - i) & mask]


@_kernel
def _add_by_code(values, packed, bits):
    """Sums of the values of each code, a chunk each, and counts; the number of values is a multiple of 8."""
    sums = np.zeros(((len(values) + CHUNK - 1) // CHUNK, 2**bits))
    counts = np.zeros(2**bits, np.int64)
    mask, shift, at = np.uint64(2**bits - 1), np.uint64(bits), np.uint64(0)
    for eight in range(0, len(values), 8):
        word = np.uint64(0)
        for _ in range(bits):
            word = word << np.uint64(8) | np.uint64(packed[at])
            at += np.uint64(1)
        for i in range(8):
            code = word >> shift * np.uint64(7 - i) & mask
            sums[eight // CHUNK, code] += np.float64(values[eight + i])
            counts[code] += 1
    return sums, counts
