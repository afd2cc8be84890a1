"""Results in, matplotlib Figure out: what several notebooks draw the same way."""

import io
import math
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
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
    source = fill(source, int(18 * fig.get_figwidth()))
    fig.supxlabel(source, x=0.995, ha="right", fontsize=7.5, color="#555555")


def render(fig: Figure, form: str, **options) -> bytes:
    """The figure as "png" or "svg", the same bytes each time."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    fig.savefig(buffer, format=form, metadata=metadata, **options)
    return buffer.getvalue()


def lines(panels: dict, xlabel: str, ylabel: str, size=None, columns=None, legend=-1, level=None, **axes) -> Figure:
    """Panels of lines with shared axes: panels[title][label] = (x, y, look), where look is a dict for `plot`.

    legend: the panel that has it, or "top" for one above all. level: draw a grey horizontal there. axes: for `ax.set`.
    """
    columns = columns or len(panels)
    rows = math.ceil(len(panels) / columns)
    fig, grid = plt.subplots(
        rows, columns, figsize=size or (8.6 if columns > 1 else 7.2, 3.6), sharex=True, sharey=True
    )
    flat = np.ravel(grid)
    for i, (title, curves) in enumerate(panels.items()):
        if level is not None:
            flat[i].axhline(level, color=GREY, linewidth=1)
        for label, (x, y, look) in curves.items():
            flat[i].plot(x, y, label=label, **look)
        bottom, left = i >= len(panels) - columns, i % columns == 0
        flat[i].set(title=title, xlabel=xlabel if bottom else "", ylabel=ylabel if left else "", **axes)
    if legend == "top":
        fig.legend(*flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    else:
        flat[legend].legend()
    return fig


def staircase(ax: Axes, x: Tensor, x_hat: Tensor, **look) -> None:
    """What comes out of a quantizer against what goes in, with the diagonal (no error) in grey."""
    order = x.argsort()
    ax.plot(x[order], x[order], color=GREY, linewidth=1, marker="", linestyle="-")
    ax.plot(x[order], x_hat[order], **{**look, "marker": "", "drawstyle": "steps-mid"})


def cosine_map(bound: float, bits: int) -> Figure:
    """The cosine with evenly spaced angles between the bounds (radians), and its inverse."""
    angles = torch.linspace(bound, math.pi - bound, 2**bits)
    curve = torch.linspace(0, math.pi, 200)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
    left.plot(curve.rad2deg(), curve.cos(), marker="", color=BLUE)
    left.plot(angles.rad2deg(), angles.cos(), "o", linestyle="", color=BLUE, label=f"{2**bits} levels ({bits} bits)")
    left.hlines(angles.cos(), 0, angles.rad2deg(), color=GREY, linewidth=0.6)
    left.vlines(angles.rad2deg(), -1, angles.cos(), color=GREY, linewidth=0.6)
    left.set(xlabel="angle theta, degrees", ylabel="value / norm = cos(theta)", xticks=range(0, 181, 45))
    left.legend()
    right.plot(curve.cos(), curve.rad2deg(), marker="", color=BLUE)
    for sign in (-1, 1):
        right.axvspan(*sorted((sign * math.cos(bound), sign)), color=GREY, alpha=0.3, linewidth=0)
    right.set(xlabel="value / norm", ylabel="angle theta, degrees", yticks=range(0, 181, 45))
    note = {"fontsize": 8, "arrowprops": {"arrowstyle": "->"}}
    right.annotate("beyond the bound:\nno level here", ((1 + math.cos(bound)) / 2, 100), (0.05, 120), **note)
    return fig


def angle_histogram(ax: Axes, theta: Tensor, bounds: dict[str, float], low: float, high: float) -> None:
    """Angles in degrees from low to high, with each labelled bound drawn on both sides of 90 degrees."""
    ax.hist(theta.numpy(), bins=np.linspace(low, high, 81), color=SKY)
    for (label, bound), line in zip(bounds.items(), ("-", "--", ":")):
        ax.axvline(bound, color=RED, linestyle=line, label=f"{label}: {bound:.1f}°")
        ax.axvline(180 - bound, color=RED, linestyle=line)
    ax.set(xlabel="angle, degrees", ylabel="entries per bin", xticks=np.linspace(low, high, 5))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    ax.legend(fontsize=8, loc="upper center", ncols=2)


def level_rows(ax: Axes, x: Tensor, rows: dict[str, tuple[Tensor, dict]]) -> None:
    """Where levels lie on a line, one labelled row of (levels, look) above the other, with the data below."""
    ax.plot(x, [0] * len(x), "|", color=BLACK, markersize=8)
    for height, (levels, look) in enumerate(rows.values(), 1):
        ax.plot(levels, [height] * len(levels), **{**look, "linestyle": ""})
    ax.set(ylim=(-0.5, len(rows) + 0.5), yticks=range(len(rows) + 1), yticklabels=["data", *rows])


def errors_and_bounds(ax: Axes, size: Tensor, errors: dict, bounds: dict[str, Tensor]) -> None:
    """Errors as dots and bounds as lines against relative size; errors[label] = (values, look)."""
    order = size.argsort()
    for label, (error, look) in errors.items():
        ax.plot(size, error, **{**look, "linestyle": "", "markersize": 3}, alpha=0.6, rasterized=True, label=label)
    for (label, bound), color, line in zip(bounds.items(), (BLACK, RED), ("-", "--")):
        ax.plot(size[order], bound[order], marker="", color=color, linestyle=line, label=label)
    ax.set(xlabel="|v| / largest |v|", ylabel="|error| / (half a uniform step)")
    ax.label_outer()


def brain(ax: Axes, image: Tensor, label: Tensor | None = None, title: str = "") -> None:
    """One axial slice, (x, y) from left and posterior: grey, with the outline and hatching of each label code."""
    ax.imshow(image.T, cmap="gray", interpolation="nearest")
    for code, (color, hatch) in enumerate(zip((SKY, ORANGE, RED), ("//", "..", "xx")), 1):
        if label is not None and (label == code).any():
            part = (label == code).T.float()
            ax.contourf(part, [0.5, 1.5], colors="none", hatches=[hatch])
            ax.collections[-1].set_edgecolor(color)
            ax.contour(part, [0.5], colors=color, linewidths=1.2)
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(visible=False)


def label_key(fig: Figure, names: tuple[str, ...]) -> None:
    """What the outlines of `brain` mean, above the panels; names: of the label codes 1 to 3."""
    patches = [
        Patch(facecolor="none", edgecolor=color, hatch=hatch, label=name)
        for name, color, hatch in zip(names, (SKY, ORANGE, RED), ("//", "..", "xx"))
    ]
    fig.legend(handles=patches, loc="outside upper center", ncols=3)


def curvature(panels: dict[str, dict[str, tuple]], about: str = "at all three rounds") -> Figure:
    """Largest entry over norm, m / norm, against entries: panels[title][label] = (all n, all m / norm, look).

    The right-hand scale is what that means for the cosine: edge step / centre step = sqrt(1 - (m / norm)^2).
    """
    fig = lines(panels, "entries n", f"m / norm, {about}", xscale="log", yscale="log", ylim=(0.005, 0.99))
    n = np.array([10.0, 1e5])
    for ax in fig.axes:
        ax.plot(n, 2.58 / np.sqrt(n), color=GREY, linewidth=1, marker="", linestyle="-", zorder=0)
    finer = ax.secondary_yaxis(
        "right",
        functions=(lambda p: 100 * (1 - np.sqrt(1 - np.clip(p, 0, 1) ** 2)), lambda f: np.sqrt(1 - (1 - f / 100) ** 2)),
    )
    finer.set(ylabel="edge step finer than centre step by, %", yscale="log")
    fig.axes[0].annotate("2.58 / √n", (20, 0.1), fontsize=8, color="#555555")
    return fig


def ratio_dots(
    rows: list[str], groups: dict[str, tuple[list[list[float]], str]], columns: list[str], xlabel: str
) -> Figure:
    """Ratios around 1, a row for each name: groups[label] = (for each row a ratio of each of `columns`, colour)."""
    fig, ax = plt.subplots(figsize=(7.2, 5))
    ax.axvline(1, color=GREY, linewidth=1)
    for shift, (label, (ratios, color)) in zip((-0.25, 0, 0.25), groups.items()):
        ax.plot([], [], color=color, linestyle="-", linewidth=4, marker="", label=label)
        for column, marker in zip(zip(*ratios), "os^"):
            height = [row + shift for row in range(len(rows))]
            ax.plot(column, height, linestyle="", color=color, marker=marker, markersize=5, alpha=0.8)
    for column, marker in zip(columns, "os^"):
        ax.plot([], [], color=GREY, linestyle="", marker=marker, label=column)
    ax.set(yticks=range(len(rows)), yticklabels=rows, xlabel=xlabel)
    ax.invert_yaxis()
    ax.legend()
    return fig


def ladder(heights: dict[str, float], xlabel: str) -> Figure:
    """Labelled horizontal bars from top to bottom, with their numbers."""
    fig, ax = plt.subplots(figsize=(7.2, 0.5 + 0.5 * len(heights)))
    bars = ax.barh(list(heights), heights.values(), color=[GREY, SKY, GREEN, ORANGE, BLUE])
    ax.bar_label(bars, [f"{height:.3f}" for height in heights.values()], padding=4)
    ax.set(xlabel=xlabel, xlim=(0, 1.12 * max(heights.values())))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return fig


def level_histogram(x: Tensor, levels: dict[float, str], xlabel: str) -> Figure:
    """Histogram of x on a logarithmic scale with labelled levels."""
    fig, ax = plt.subplots(figsize=(7.2, 3))
    ax.hist(x.numpy(), bins=201, color=SKY, log=True)
    for level, label in levels.items():
        ax.axvline(level, color=RED, linestyle="--")
        ax.annotate(label, (level, len(x) / 8), fontsize=8, rotation=90, ha="right", va="top")
    ax.set(xlabel=xlabel, ylabel="entries per bin")
    return fig
