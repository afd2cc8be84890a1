"""A second decoder, written from the docstrings of wire.py, entropy.py, mask.py and rotation.py alone, as in another language.

Plain Python numbers, no torch, no numpy, no cosquant_lite: what it reads, anyone can read.
"""

import math
import struct
import zlib

DTYPES = ["f", "d", "e", "q", "i", "B", "?", "bfloat16", "h", "b"]  # struct's letters


def decode(frame: bytes) -> dict:
    """{name: (shape, list of values)} of a frame."""
    at = 0

    def take(n):
        nonlocal at
        at += n
        return frame[at - n : at]

    def number():
        value, i = 0, 0
        while True:
            byte = take(1)[0]
            value |= (byte & 127) << 7 * i
            i += 1
            if byte < 128:
                return value

    assert take(4) == b"CQLT"
    assert take(1) == b"\x02"
    extra = take(1)[0]
    p, seed = (
        struct.unpack("<dQ", take(16))
        if extra == 1
        else (1.0, struct.unpack("<Q", take(8))[0] if extra in (2, 4) else 0)
    )
    tensors, owner = {}, None
    for index in range(number()):
        name = take(number()).decode()
        dtype, scheme = DTYPES[take(1)[0]], take(1)[0]
        bits = take(1)[0] if scheme else 8
        count = {0: 0, 1: 2, 2: 2, 3: 2**bits}[scheme]
        floats = struct.unpack(f"<{count}f", take(4 * count))
        stage, ndim = take(2)
        shape = tuple(number() for _ in range(ndim))
        payload = take(number())
        n = math.prod(shape)
        masked = p < 1 and dtype in ("f", "d", "e", "bfloat16")
        keep = kept(n, p, seed, index) if masked else [True] * n
        size = 2 if dtype == "bfloat16" else struct.calcsize("<" + dtype)
        count = sum(keep) * (1 if scheme else size)  # codes, or bytes
        codes = {0: unpack, 1: inflate, 2: ans}[stage](payload, bits, count)
        values = [value(scheme, code, 2**bits, floats) for code in codes] if scheme else raw(bytes(codes), dtype)
        if masked:
            values = [v / p for v in values]
        if scheme:
            values = [struct.unpack("<f", struct.pack("<f", v))[0] for v in values]  # rounded to float32
        if extra == 2 and scheme:
            values = unrotate(values, seed, index)
        if extra == 4 and scheme:
            values = unrotate_channels(values, shape, seed, index)
        if masked:
            sent = iter(values)
            values = [next(sent) if k else 0.0 for k in keep]
        assert len(values) == n
        if extra == 3 and owner:  # these are the positions of the tensor before
            assert (name, dtype) == (owner + "/positions", "?")
            sent = iter(tensors[owner][1])
            tensors[owner], owner = (shape, [next(sent) if k else 0.0 for k in values]), None
            continue
        owner = name if dtype in ("f", "d", "e", "bfloat16") and n else None
        tensors[name] = (shape, values)
    assert at == len(frame) - 8  # the checksum is left
    return tensors


def value(scheme, code, levels, floats):
    if scheme == 3:
        return floats[code]
    first, second = floats
    if scheme == 2:
        return first + code * (second - first) / (levels - 1)
    if first == 0 or second >= math.pi / 2:
        return 0.0
    return first * math.cos(second + code * (math.pi - 2 * second) / (levels - 1))


def raw(data, dtype):
    if dtype == "bfloat16":  # the upper half of a float32
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(dtype)}{dtype}", data))


def unpack(payload, bits, n):
    digits = "".join(f"{byte:08b}" for byte in payload)
    assert len(digits) == -(-n * bits // 8) * 8
    assert "1" not in digits[n * bits :]
    return [int(digits[i * bits : (i + 1) * bits], 2) for i in range(n)]


def inflate(payload, bits, n):
    return unpack(zlib.decompress(payload, wbits=-15), bits, n)


def ans(payload, bits, n):
    if n == 0:
        return []
    digits, at, root, roots = "".join(f"{byte:08b}" for byte in payload), 0, 0, []
    for _ in range(2**bits):
        zeros = digits.index("1", at) - at
        z = int(digits[at + zeros : at + 2 * zeros + 1], 2) - 1
        root += (z + 1) // 2 if z % 2 else -(z // 2)
        roots.append(root)
        at += 2 * zeros + 1
    start = -(-at // 8)
    assert "1" not in digits[at : 8 * start]
    words = list(struct.unpack(f"<{(len(payload) - start) // 4}I", payload[start:]))
    m, total = 2**24 - 2**bits, sum(r * r for r in roots)
    f = [1 + r * r * m // total for r in roots]
    f[f.index(max(f))] += 2**24 - sum(f)
    c = [sum(f[:s]) for s in range(2**bits)]
    state, codes = 0, []
    while words and state < 2**32:
        state = state << 32 | words.pop()
    for _ in range(n):
        q = state % 2**24
        s = max(s for s in range(2**bits) if c[s] <= q)
        codes.append(s)
        state = (state >> 24) * f[s] + q - c[s]
        if state < 2**32 and words:
            state = state << 32 | words.pop()
    assert state == 0
    assert not words
    return codes


def unrotate(values, seed, tensor):
    values, n = list(values), 2**16
    while n > max(len(values), 1):
        n //= 2
    starts = list(range(0, len(values) - n + 1, n))
    if len(values) % n:
        starts.append(len(values) - n)
    signs = kept(n * len(starts), 0.5, seed, tensor)
    for i in reversed(range(len(starts))):
        start, stays = starts[i], signs[i * n : (i + 1) * n]
        x = turned(values[start : start + n])
        values[start : start + n] = [v if stay else -v for v, stay in zip(x, stays)]
    return values


def unrotate_channels(values, shape, seed, tensor):
    if not values:
        return values
    values = [v if stay else -v for v, stay in zip(values, kept(len(values), 0.5, seed, tensor))]
    rows, n = shape[0] if shape else 1, 2**16
    while n > rows:
        n //= 2
    columns = len(values) // rows
    starts = list(range(0, rows - n + 1, n)) + ([rows - n] if rows % n else [])
    for start in reversed(starts):
        for column in range(columns):
            places = [(start + i) * columns + column for i in range(n)]
            for place, v in zip(places, turned([values[place] for place in places])):
                values[place] = v
    return values


def turned(x):
    n, h = len(x), 1
    while h < n:
        x = [x[j] + x[j + h] if not j & h else x[j - h] - x[j] for j in range(n)]
        h *= 2
    return [struct.unpack("<f", struct.pack("<f", v / math.sqrt(n)))[0] for v in x]


def kept(n, p, seed, tensor):
    outputs, counter = [], 0
    while len(outputs) < n:
        counter += 1
        outputs += philox4x64([counter, 0, 0, 0], [seed, tensor])
    return [output < math.floor(p * 2**64) for output in outputs[:n]]


def philox4x64(x, key):
    """Ten rounds of Philox (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011)."""
    low = 2**64 - 1
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [b >> 64 ^ x[1] ^ key[0], b & low, a >> 64 ^ x[3] ^ key[1], a & low]
        key = [key[0] + 0x9E3779B97F4A7C15 & low, key[1] + 0xBB67AE8584CAA73B & low]
    return x
