"""Results in, matplotlib Figure out: what several notebooks draw the same way."""

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

STYLE_FILE = Path(__file__).with_name("cosquant.mplstyle")

BLUE, ORANGE, GREEN, PINK, RED, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"
GREY = "#8A8A8A"  # committed reference runs and guide lines

# One look per scheme in every notebook: colour, marker and line style say the same thing.
COSINE = {"color": BLUE, "marker": "o", "linestyle": "-"}
SYMMETRIC = {"color": ORANGE, "marker": "s", "linestyle": "--", "markerfacecolor": "none", "markersize": 7}
MINMAX = {"color": GREEN, "marker": "^", "linestyle": ":"}


def use_style() -> None:
    """Switch matplotlib to the project's look."""
    plt.style.use(STYLE_FILE)


def stamp(fig: Figure, source: str) -> None:
    """Write below the figure what data it shows, so that it cannot be taken for something else."""
    source = fill(source, int(17 * fig.get_figwidth()))
    fig.supxlabel(source, x=0.995, ha="right", fontsize=7.5, color="#555555")


def staircase(ax: Axes, x: Tensor, x_hat: Tensor, **look) -> None:
    """What comes out of a quantizer against what goes in, with the diagonal (no error) in grey."""
    order = x.argsort()
    ax.plot(x[order], x[order], color=GREY, linewidth=1, marker="", linestyle="-")
    ax.plot(x[order], x_hat[order], **{**look, "marker": "", "drawstyle": "steps-mid"})


def bits_axis(ax: Axes, bits: list[int], error: str = "normalised mean squared error") -> None:
    """Label an error-against-bits plot: linear bits, logarithmic error."""
    ax.set(xlabel="bits per entry", ylabel=error, xticks=bits, yscale="log")
