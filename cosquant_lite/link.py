"""One direction of the traffic, down or up: tensors -> quantize -> bytes -> tensors.

A link is written as a short string: `none` (float32), `cosine:2`, `cosine:2,clip=0.01,rounding=stochastic`,
`uniform:4,range=minmax`. Every message becomes a real byte string, and its length is the cost.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from cosquant_lite import wire
from cosquant_lite.quantize import Cosine, Uniform

QUANTIZERS = {"cosine": Cosine, "uniform": Uniform}
EXAMPLES = "'none', 'cosine:2', 'cosine:2,clip=0.01,rounding=stochastic', 'uniform:4,range=minmax'"


def parse_link(text: str) -> Cosine | Uniform | None:
    """The quantizer that a link string names, None for `none`. ValueError names the bad part and what is allowed."""
    if not isinstance(text, str):
        raise ValueError(f"link must be a string such as {EXAMPLES}, got {text!r}")
    if text == "none":
        return None
    head, *settings = text.split(",")
    name, _, bits = head.partition(":")
    if name not in QUANTIZERS:
        raise ValueError(
            f"link {text!r}: unknown quantizer {name!r}; allowed: none, {', '.join(QUANTIZERS)}; e.g. {EXAMPLES}"
        )
    if not bits.isdecimal():
        raise ValueError(f"link {text!r}: bits {bits!r} after {name!r}: is not a whole number; e.g. {EXAMPLES}")
    allowed = [field.name for field in dataclasses.fields(QUANTIZERS[name]) if field.name != "bits"]
    options = dict(_setting(text, setting, allowed) for setting in settings)
    if len(options) < len(settings):
        raise ValueError(f"link {text!r}: the same option twice")
    try:
        return QUANTIZERS[name](bits=int(bits), **options)
    except ValueError as error:
        raise ValueError(f"link {text!r}: {error}") from None


def send(
    state: Mapping[str, Tensor], quantizer: Cosine | Uniform | None, generator: torch.Generator | None = None
) -> tuple[dict[str, Tensor], int]:
    """What the receiver holds after one message, and the bytes that the message had."""
    blob = wire.encode(state, quantizer, generator=generator)
    return wire.decode(blob), len(blob)


def _setting(text: str, setting: str, allowed: list[str]) -> tuple[str, str | float]:
    key, equals, value = setting.partition("=")
    if not equals or key not in allowed:
        raise ValueError(
            f"link {text!r}: unknown option {setting!r}; allowed: {', '.join(f'{k}=...' for k in allowed)}"
        )
    if key != "clip":
        return key, value
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"link {text!r}: clip {value!r} is not a number") from None
