"""How fast and how small: this codec, a plain memory copy and whichever peers are installed, side by side in one run.

Speeds are GB of float32 input a second, a memory copy (`numpy.copyto`) counted the same way. Every repetition measures
the copy, the encoder and the decoder one after the other, so that a busy moment of the machine meets all three. As in
`timeit` the fastest repetition counts (the slower ones measure the machine's other work); the JSON has the medians too.
Encoding ends with the codes in memory as they are stored (for this codec and hivemind: one string of bytes).
"""

import contextlib
import ctypes
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cosquant_lite import plots, runs, wire
from cosquant_lite.metrics import nmse
from cosquant_lite.packing import pack, unpack
from cosquant_lite.quantize import Cosine, Quantized, Uniform

SLOW = 1.0  # seconds: what takes longer is measured once
Codec = tuple[Callable[[Tensor], object], Callable[[object], Tensor], Callable[[object], int]]  # encode, decode, bytes


def bench(entries: int, repeat: int, out: Path) -> dict:
    """Measure everything on a Gaussian tensor of so many entries; prints a table, writes bench.json, .png and .svg."""
    if entries < 1 or repeat < 1:
        raise ValueError(f"entries and repeat must be at least 1, got {entries} and {repeat}")
    x = torch.randn(entries, generator=torch.Generator().manual_seed(0))
    codecs, rows = {**_ours(), **_peers()}, []
    print(f"{entries:,} float32 ({4 * entries / 2**20:,.0f} MiB), Gaussian, seed 0; {torch.get_num_threads()} threads")
    print(HEAD)
    progress = tqdm(codecs.items(), unit="codec", leave=False, disable=not sys.stderr.isatty())
    for name, make in progress:
        progress.set_postfix_str(name)
        rows.append({"name": name, **_measure(make, x, repeat)})
        progress.write(_line(rows[-1]))
    result = {
        "entries": entries,
        "repeat": repeat,
        "threads": torch.get_num_threads(),
        "source": f"{entries:,} Gaussian float32, seed 0",
        "processor": processor(),
        "command": runs.command_line(),
        **runs.provenance(),
        "rows": rows,
    }
    runs.write_json(out / "bench.json", result)
    plots.use_style()
    for form in ("png", "svg"):
        runs.write_atomic(out / f"bench.{form}", plots.render(figure(result), form))
    plt.close("all")
    print(f"written to {out}: bench.json, bench.png, bench.svg")
    return result


def figure(result: dict) -> Figure:
    """Speeds of all codecs that ran, encoding and decoding, with the memory copy as a line."""
    rows = [row for row in result["rows"] if not row["error"]]
    labels = [f"{row['name']}  ({row['bits']:.2f}; {row['nmse']:.2g})" for row in rows]
    fig, ax = plt.subplots(figsize=(7.6, 0.8 + 0.24 * len(rows)))
    copy = max(row["copy"] for row in rows)
    ax.axvline(copy, color=plots.GREY, label=f"memory copy, {copy:.1f} GB/s")
    looks = {
        "encode": {"color": plots.BLUE, "marker": "o", "markersize": 5},
        "decode": {"color": plots.ORANGE, "marker": "s", "markersize": 7, "markerfacecolor": "none"},
    }
    for what, look in looks.items():
        ax.plot([row[what] or np.nan for row in rows], labels, linestyle="", label=what, **look)
    ax.set(xscale="log", xlabel="GB of float32 a second\n(in brackets: bits stored per weight; normalised error)")
    ax.invert_yaxis()
    ax.legend(loc="upper left")
    plots.stamp(
        fig, f"{result['source']}; {result['threads']} threads; fastest of up to {result['repeat']} repetitions"
    )
    return fig


def _ours() -> dict[str, Callable[[], Codec]]:
    """This codec at each bit width with and without the clip, other settings, and the definition in plain torch."""
    codecs = {"float32 frame": lambda: _frame(None)}
    for bits in range(1, 9):
        for clip in (0, 0.01):
            codecs[f"cosine {bits}, {_clip(clip)}"] = lambda bits=bits, clip=clip: _frame(Cosine(bits, clip))
    for bits in (2, 4):
        for entropy in ("deflate", "ans"):
            codecs[f"cosine {bits}, clip 1 %, {entropy}"] = lambda b=bits, e=entropy: _frame(Cosine(b), entropy=e)
    codecs["uniform 4, clip 1 %"] = lambda: _frame(Uniform(4))
    codecs["cosine 4, clip 1 %, stochastic"] = lambda: _frame(Cosine(4, rounding="stochastic"))
    codecs["cosine 4, clip 1 %, mask 5 %"] = lambda: _frame(Cosine(4), mask=0.05)
    for clip in (0, 0.01):
        codecs[f"torch definition 4, {_clip(clip)}"] = lambda clip=clip: _definition(Cosine(4, clip))
    return codecs


def _clip(clip: float) -> str:
    return f"clip {clip:.0%}".replace("%", " %") if clip else "no clip"


def _frame(quantizer: Cosine | Uniform | None, **options) -> Codec:
    generator = torch.Generator().manual_seed(1)
    return (
        lambda x: wire.encode({"x": x}, quantizer, generator=generator, **options),
        lambda blob: wire.decode(blob, limit=sys.maxsize)["x"],
        len,
    )


def _definition(quantizer: Cosine) -> Codec:
    """quantize.py and packing.py as they are written, without the frame."""

    def encode(x: Tensor) -> tuple:
        quantized = quantizer.quantize(x)
        return pack(quantized.codes, quantizer.bits), quantized.floats, len(x)

    def decode(message: tuple) -> Tensor:
        packed, floats, n = message
        return quantizer.dequantize(Quantized(unpack(packed, quantizer.bits, n), quantizer.bits, floats, "cosine"))

    return encode, decode, lambda message: len(message[0]) + 8


def _peers() -> dict[str, Callable[[], Codec]]:
    """Other public codecs, at their own settings; requirements-bench.txt installs them."""
    codecs = {f"openfl EDEN {bits}": lambda bits=bits: _eden(bits) for bits in (1, 4, 8)}
    return {
        **codecs,
        "hivemind uniform 8": _hivemind,
        "bitsandbytes blockwise 8": lambda: _bitsandbytes("quantize_blockwise", "dequantize_blockwise"),
        "bitsandbytes nf4": lambda: _bitsandbytes("quantize_nf4", "dequantize_nf4"),
        "fedlab QSGD 2": _fedlab,
    }


def _eden(bits: int) -> Codec:
    from openfl.pipelines.eden_pipeline import EdenTransformer

    eden = EdenTransformer(n_bits=bits)
    return (
        lambda x: eden.forward(x.numpy()),
        lambda message: torch.from_numpy(np.asarray(eden.backward(*message))),
        lambda message: len(message[0]) + 4 * len(message[1]["int_to_float"]),
    )


def _hivemind() -> Codec:
    from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
    from hivemind.proto.runtime_pb2 import CompressionType, Tensor

    return (
        lambda x: serialize_torch_tensor(x, CompressionType.UNIFORM_8BIT).SerializeToString(),
        lambda blob: deserialize_torch_tensor(Tensor.FromString(blob)),
        len,
    )


def _bitsandbytes(encode: str, decode: str) -> Codec:
    from bitsandbytes import functional

    return (
        getattr(functional, encode),
        lambda message: getattr(functional, decode)(*message),
        lambda message: message[0].nbytes + message[1].absmax.nbytes,
    )


def _fedlab() -> Codec:
    from fedlab.contrib.compressor.quantization import QSGDCompressor

    qsgd = QSGDCompressor(2)
    return qsgd.compress, qsgd.decompress, lambda message: sum(part.nbytes for part in message)


def _measure(make: Callable[[], Codec], x: Tensor, repeat: int) -> dict:
    """Speeds in GB/s, bits per weight, normalised error and peak extra memory of one codec; "error" says why not."""
    row = dict.fromkeys(("encode", "decode", "copy", "bits", "nmse", "memory")) | {"error": ""}
    target, times = np.empty_like(x.numpy()), {"copy": [], "encode": [], "decode": []}
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encode, decode, size = make()
            encode(x[:1_000_000])  # compiles and imports what it needs
            first = _seconds(lambda: encode(x[:1_000_000]))[0] * max(len(x) / 1e6, 1)
            for _ in range(repeat if first < SLOW else 1):
                times["copy"].append(_seconds(lambda: np.copyto(target, x.numpy()))[0])
                seconds, message = _seconds(lambda: encode(x))
                times["encode"].append(seconds)
                seconds, received = _seconds(lambda message=message: decode(message))
                times["decode"].append(seconds)
            row |= {"bits": 8 * size(message) / len(x), "nmse": nmse(x, received.flatten())}
            if first < SLOW and (peak := _peak_memory(lambda: encode(x))) is not None:
                row["memory"] = peak / x.nbytes
    except ImportError as error:
        row["error"] = f"not installed ({error.name or error})"
    except Exception as error:  # a peer may fail in any way; the row says how, and the others go on
        row["error"] = f"{type(error).__name__}: {error}"
    if row["bits"] is not None:
        row |= {what: 1e-9 * x.nbytes / min(taken) for what, taken in times.items()}
        row["medians"] = {what: 1e-9 * x.nbytes / median(taken) for what, taken in times.items()}
    return row


def _seconds(work: Callable[[], object]) -> tuple[float, object]:
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def _peak_memory(work: Callable[[], object]) -> int | None:
    """Bytes by which the process grows at most while it works; None where the system does not tell (not Linux)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def kilobytes(field: str) -> int:
        return int(status.read_text().split(field + ":")[1].split()[0])

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what was freed must not hide what is asked for next
    if trim is None:
        return None
    trim(0)
    reset.write_text("5")  # the high-water mark falls to what is in use
    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)


def processor() -> str:
    """What the machine says it computes with."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


HEAD = f"{'':32}{'encode':>16}{'decode':>16}{'bits per':>10}{'normalised':>12}{'extra':>8}\n" + (
    f"{'':32}{'GB/s   of copy':>16}{'GB/s   of copy':>16}{'weight':>10}{'error':>12}{'memory':>8}"
)


def _line(row: dict) -> str:
    if row["error"]:
        return f"{row['name']:32}{row['error']}"

    def speed(what: str) -> str:
        return f"{row[what]:8.3f}{row[what] / row['copy']:8.1%}"

    memory = f"{row['memory']:7.2f}x" if row["memory"] is not None else ""
    return f"{row['name']:32}{speed('encode')}{speed('decode')}{row['bits']:10.3f}{row['nmse']:12.2e}{memory}"
