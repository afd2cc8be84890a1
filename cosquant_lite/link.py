"""One direction of the traffic, down or up: tensors -> (mask) -> quantize -> bytes -> tensors.

A link is written as a short string: `none` (float32), `cosine:2`, `cosine:2,clip=0.01,rounding=stochastic`,
`uniform:4,range=minmax`, `sign`, `qsgd:2` and the others of `codebook.py`, each also with `mask=0.05` (the share of
entries that travel), `top=0.01` (the share of largest ones) or `rotate=hadamard` (or channels), and `entropy=deflate`
(or ans, auto). Every message becomes a real byte string, and its length is the cost.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cosquant_lite import wire
from cosquant_lite.codebook import NUQSGD, QSGD, Eden, LloydMax, TernGrad
from cosquant_lite.comparators import Sign
from cosquant_lite.quantize import Cosine, ScalarQuantizer, Uniform

BY_NAME = {"none": None, "cosine": Cosine, "uniform": Uniform, "sign": Sign, "qsgd": QSGD, "nuqsgd": NUQSGD,
           "terngrad": TernGrad, "lloyd": LloydMax, "eden": Eden}  # fmt: skip
COMMON = ("mask", "entropy", "rotate", "top")  # options of every link
EXAMPLES = "'none', 'cosine:2', 'cosine:2,clip=0.01,rounding=stochastic', 'uniform:4,range=minmax', 'cosine:2,mask=0.05,entropy=ans', 'sign'"


@dataclass(frozen=True)
class Link:
    """What one direction does to its messages; the fields are arguments of `wire.encode`."""

    quantizer: ScalarQuantizer | None = None
    mask: float = 1.0
    entropy: str = "none"
    rotate: str = "none"
    top: float = 1.0

    def __post_init__(self):
        wire.check_options(self.quantizer, self.entropy, self.mask, self.rotate, self.top)


def parse_link(text: str) -> Link:
    """The link that a string names. ValueError names the bad part and what is allowed."""
    if not isinstance(text, str):
        raise ValueError(f"link must be a string such as {EXAMPLES}, got {text!r}")
    head, *settings = text.split(",")
    name, colon, bits = head.partition(":")
    if name not in BY_NAME:
        raise ValueError(f"link {text!r}: unknown quantizer {name!r}; allowed: {', '.join(BY_NAME)}; e.g. {EXAMPLES}")
    make = BY_NAME[name]
    own = [field.name for field in dataclasses.fields(make)] if make else []
    has_bits = "bits" in own
    if colon and not has_bits:
        raise ValueError(f"link {text!r}: {name!r} takes no bits; e.g. {EXAMPLES}")
    if has_bits and not bits.isdecimal():
        raise ValueError(f"link {text!r}: bits {bits!r} after {name!r}: is not a whole number; e.g. {EXAMPLES}")
    allowed = [key for key in (*own, *COMMON) if key != "bits"]
    options = dict(_setting(text, setting, allowed) for setting in settings)
    if len(options) < len(settings):
        raise ValueError(f"link {text!r}: the same option twice")
    try:
        given = {key: options.pop(key) for key in own if key in options} | ({"bits": int(bits)} if has_bits else {})
        return Link(make(**given) if make else None, **options)
    except ValueError as error:
        raise ValueError(f"link {text!r}: {error}") from None


@dataclass(frozen=True, eq=False)
class Delivery:
    """What the receiver holds after one message, the bytes that the message had, and how many of them were header."""

    state: dict[str, Tensor]
    bytes: int
    header: int


def encode(state: Mapping[str, Tensor], link: Link, generator: torch.Generator | None = None) -> bytes:
    """The frame of one message; `wire.decode` reads it. generator: for stochastic rounding, masks and rotations."""
    if not isinstance(link, Link):
        raise TypeError(f"expected a Link, got {link!r}; parse_link(...) makes one of a string")
    how = {"entropy": link.entropy, "mask": link.mask, "rotate": link.rotate, "top": link.top}
    return wire.encode(state, link.quantizer, generator=generator, **how)


def send(state: Mapping[str, Tensor], link: Link, generator: torch.Generator | None = None) -> Delivery:
    """Encode, count, decode: one message over the link."""
    blob = encode(state, link, generator)
    frame = wire.inspect(blob)
    codes = sum(len(part.payload) for part in frame.parts)
    return Delivery(wire.unframe(frame), len(blob), len(blob) - codes)


def send_with_memory(
    state: Mapping[str, Tensor], lost: Mapping[str, Tensor] | None, link: Link, generator: torch.Generator | None = None
) -> tuple[Delivery, dict[str, Tensor]]:
    """`send` with error feedback: what the last message lost is added to this one (Seide et al. 2014).

    What is lost stays bounded, for updates of bounded length, if a message always loses less than some fixed share
    below 1 of what it holds, |x - x_hat|^2 <= (1 - d) |x|^2 (Karimireddy et al. 2019): `sign` does, two bits and more
    with a clip mostly, one bit of the cosine and a mask do not.
    lost: what this function returned the last time, None at first. Returns the delivery and what it lost.
    """
    lost = lost or {}
    wanted = {name: x + lost[name] if name in lost else x for name, x in state.items()}
    delivery = send(wanted, link, generator)
    return delivery, {name: x - delivery.state[name] for name, x in wanted.items() if x.is_floating_point()}


def _setting(text: str, setting: str, allowed: list[str]) -> tuple[str, str | float]:
    key, equals, value = setting.partition("=")
    if not equals or key not in allowed:
        raise ValueError(
            f"link {text!r}: unknown option {setting!r}; allowed: {', '.join(f'{k}=...' for k in allowed)}"
        )
    if key not in ("clip", "mask", "top") or value == "auto":
        return key, value
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"link {text!r}: {key} {value!r} is not a number") from None
