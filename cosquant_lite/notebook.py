"""What every notebook's first and last lines use: start(), then run.show(), run.record() and run.finish().

Under `reproduce` the output folder is a parameter; a notebook run by hand writes to build/interactive/.
"""

import io
import math
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from cosquant_lite import datasets, plots, report, runs

BY_HAND = Path(__file__).resolve().parents[1] / "build" / "interactive"


def start(name: str, profile: str, seed: int, data: str, out: str, uses: str = "update") -> "Run":
    """Begin a notebook: check its parameters, set the plot style, say what will be used.

    uses: "update" (a captured client update), "cifar10" or "brats": what `data` chooses between real and embedded.
    ValueError or FileNotFoundError for a parameter that cannot be met.
    """
    runs.check_choice("profile", profile, runs.PROFILES)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    plots.use_style()
    run = Run(name, profile, seed, datasets.resolve(uses, data), Path(out) if out else BY_HAND)
    print(f"{run.name}: profile {run.profile}, seed {run.seed}, data {run.data}")
    return run


class Run:
    """One execution of one notebook: its settings, and what it has shown and recorded so far."""

    def __init__(self, name: str, profile: str, seed: int, data: str, out: Path):
        self.name, self.profile, self.seed, self.data, self.out = name, profile, seed, data, out
        self.figures: list[dict] = []
        self.values: list[dict] = []
        self.provenance = runs.provenance()

    def pick(self, quick, full):
        """The first argument in the quick profile, the second in the full one."""
        return quick if self.profile == "quick" else full

    def show(self, fig: Figure, name: str, alt: str, source: str) -> None:
        """Show a figure inline and save it as figures/NN-name.png and .svg.

        alt: what a reader who cannot see it needs to know. source: the data it shows, stamped below it.
        """
        stem = f"{self.name[:2]}-{name}"
        self.figures = [figure for figure in self.figures if figure["name"] != stem]  # the cell may be run again
        plots.stamp(fig, source)
        runs.write_atomic(self.out / "figures" / f"{stem}.png", plots.render(fig, "png"))
        runs.write_atomic(self.out / "figures" / f"{stem}.svg", plots.render(fig, "svg"))
        self.figures.append({"name": stem, "alt": alt, "source": source})
        self._write()
        inline = _small_png(fig)
        plt.close(fig)
        display({"image/png": inline, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)

    def record(self, key: str, value: float, figure: str = "") -> float:
        """Keep a headline number under `key`, beside the figure it belongs to; returns it. NaN is refused."""
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: not a number to record")
        stem = f"{self.name[:2]}-{figure}" if figure else ""
        if stem and all(shown["name"] != stem for shown in self.figures):
            raise ValueError(
                f"no figure {figure!r} was shown; there are {[shown['name'][3:] for shown in self.figures]}"
            )
        self.values = [old for old in self.values if old["key"] != key]
        self.values.append({"key": key, "value": value, "figure": stem})
        self._write()
        return value

    def finish(self) -> None:
        """Print what was recorded."""
        width = max((len(old["key"]) for old in self.values), default=0)
        for old in self.values:
            print(f"{old['key']:<{width}}  {report.number(old['value'])}")
        print(f"{len(self.figures)} figures and {len(self.values)} numbers recorded")

    def _write(self) -> None:
        about = {"notebook": self.name, "profile": self.profile, "seed": self.seed, "data": self.data}
        content = {**about, "figures": self.figures, "values": self.values, "provenance": self.provenance}
        runs.write_json(self.out / "records" / f"{self.name}.json", content)


def _small_png(fig: Figure) -> bytes:
    """The figure at screen resolution with a palette: a third of the size, so that notebooks stay small in git."""
    full, small = io.BytesIO(plots.render(fig, "png", dpi="figure")), io.BytesIO()
    Image.open(full).convert("RGB").quantize(128).save(small, "png", optimize=True)
    return small.getvalue()
