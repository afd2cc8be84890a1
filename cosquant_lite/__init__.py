"""cosquant-lite: cosine quantization for federated learning, with real bytes and measured errors.

import cosquant_lite as cq
x_hat = cq.Cosine(bits=2).roundtrip(x)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ below does the same, on first use
    from cosquant_lite.comparators import Sign
    from cosquant_lite.federated import FedConfig, History, run
    from cosquant_lite.link import parse_link
    from cosquant_lite.quantize import Cosine, Quantized, Uniform
    from cosquant_lite.wire import WireError, decode, encode

__version__ = "0.1.0"

_HOME = {
    "Cosine": "quantize", "Uniform": "quantize", "Quantized": "quantize", "Sign": "comparators",
    "encode": "wire", "decode": "wire", "WireError": "wire",
    "parse_link": "link",
    "FedConfig": "federated", "History": "federated", "run": "federated",
}  # fmt: skip
__all__ = [
    "Cosine",
    "FedConfig",
    "History",
    "Quantized",
    "Sign",
    "Uniform",
    "WireError",
    "decode",
    "encode",
    "parse_link",
    "run",
]


def __getattr__(name: str):
    """Import torch only when a name that needs it is used: `--help` and an up-to-date `reproduce` answer at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
