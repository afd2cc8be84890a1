"""How far a quantized tensor is from the exact one."""

from torch import Tensor

from cosquant_lite.streams import generator


def nmse(x: Tensor, x_hat: Tensor) -> float:
    """Normalised mean squared error ||x_hat - x||^2 / ||x||^2: 0 is exact, 1 is as bad as sending zeros.

    If x is all zeros: NaN if x_hat is, too, else infinity.
    """
    x = x.double()
    return ((x_hat.double() - x).square().sum() / x.square().sum()).item()


def mean_nmse(x: Tensor, quantizer, trials: int = 1, seed: int = 0) -> float:
    """nmse averaged over `trials` round trips with fresh stochastic rounding (one is enough for nearest)."""
    coins = generator(seed, "coins")  # not those that drew x: torch makes both from the same random bits
    trials = trials if quantizer.rounding == "stochastic" else 1
    return sum(nmse(x, quantizer.roundtrip(x, coins)) for _ in range(trials)) / trials
