"""What CosSGD is compared with, on the same interface and in the same frames.

    link                                                               what it is called in the literature
    uniform:2,clip=0,rounding=stochastic,range=minmax                  linear with unbiased rounding (Suresh et al. 2017)
    uniform:2,clip=0,rounding=stochastic,range=minmax,rotate=hadamard  the same after a rotation (Suresh et al. 2017)
    uniform:2                                                          ours: only the cosine's curve is taken away
    sign,scale=one                                                     signSGD (Bernstein et al. 2018); its step size
                                                                       is FedConfig's server_lr
    sign                                                               sign with mean magnitude (Karimireddy et al.
                                                                       2019); with up_feedback=True: EF-signSGD

"Sign" and "signSGD" are those papers' compressors, here of the update that E local epochs made, not of one gradient;
the error-feedback memory is a client's own, and waits while the client is not drawn.

Suresh, Yu, Kumar, McMahan: Distributed mean estimation with limited communication, ICML 2017.
Bernstein, Wang, Azizzadenesheli, Anandkumar: signSGD: compressed optimisation for non-convex problems, ICML 2018. Its
server takes the majority of the clients' signs; here it takes their mean, as federated averaging does.
Karimireddy, Rebjock, Stich, Jaggi: Error feedback fixes signSGD and other gradient compression schemes, ICML 2019.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cosquant_lite.quantize import ScalarQuantizer, Uniform, as_float32, check_choice, total

SCALES = ("mean", "one")


@dataclass(frozen=True)
class Sign(ScalarQuantizer):
    """One bit an entry: x_hat = scale * sign(x), with sign(0) = -1.

    scale: "mean" is the mean of |x|, the scale of the smallest error; "one" is 1, whatever x is.
    Transmitted: (-scale, scale). It travels as a uniform quantizer with one bit, which has just these two levels.
    """

    scale: str = "mean"
    bits: ClassVar[int] = 1
    rounding: ClassVar[str] = "nearest"
    scheme: ClassVar[str] = "uniform"

    def __post_init__(self):
        check_choice("scale", self.scale, SCALES)

    def floats(self, x: Tensor) -> tuple[float, float]:
        """(-scale, scale)."""
        mean = total(x.abs()).item() / x.numel() if x.numel() else 0.0
        scale = as_float32(mean if self.scale == "mean" else 1.0, "scale")
        return -scale, scale

    def position(self, x: Tensor, floats: tuple[float, float]) -> Tensor:
        """u: 1 where x is positive, else 0."""
        return (x > 0).to(torch.float64)

    value = Uniform.value
