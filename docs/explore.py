"""Figures to explore without a kernel: every combination of bits and clip drawn beforehand, and two sliders.

matplotlib's own `to_jshtml` has one slider and takes its icons from the network.
"""

import base64
import io
import json
from collections.abc import Callable

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

import cosquant_lite as cq
from cosquant_lite import plots
from cosquant_lite.datasets import embedded
from cosquant_lite.metrics import nmse

BITS, CLIPS = (1, 2, 3, 4), (0, 0.001, 0.01, 0.05)
PAGE = """<div class="explore" id="explore-{name}">
<p><strong>Explore.</strong> {text}</p>
<p><label>bits <input type="range" min="0" max="{last_bits}" value="1" aria-label="bits"></label>
<label>clip <input type="range" min="0" max="{last_clip}" value="2" aria-label="clip"></label></p>
<p><img alt="A figure that the sliders choose"></p>
</div>
<script>
(() => {{
  const frames = {frames};
  const box = document.getElementById("explore-{name}");
  const [bits, clip] = box.querySelectorAll("input");
  const names = {names};
  const show = () => {{
    Object.assign(box.querySelector("img"), frames[bits.value][clip.value]);
    bits.setAttribute("aria-valuetext", names[0][bits.value]);
    clip.setAttribute("aria-valuetext", names[1][clip.value]);
  }};
  bits.oninput = clip.oninput = show;
  show();
}})();
</script>
"""


def page(name: str, text: str, draw: Callable[[int, float], tuple[Figure, str]]) -> str:
    """HTML with two sliders. draw: (bits, clip) -> a figure and its alt text."""
    plots.use_style()
    frames = [[frame(*draw(bits, clip)) for clip in CLIPS] for bits in BITS]
    last = {"last_bits": len(BITS) - 1, "last_clip": len(CLIPS) - 1}
    names = json.dumps([[str(bits) for bits in BITS], [f"{clip:.1%}" for clip in CLIPS]])
    return PAGE.format(name=name, text=text, frames=json.dumps(frames), names=names, **last)


def frame(fig: Figure, alt: str) -> dict[str, str]:
    """src and alt of an image."""
    raw, small = io.BytesIO(plots.render(fig, "png", dpi="figure")), io.BytesIO()
    plt.close(fig)
    Image.open(raw).convert("RGB").quantize(32).save(small, "png", optimize=True)
    return {"src": "data:image/png;base64," + base64.b64encode(small.getvalue()).decode(), "alt": alt}


def levels() -> str:
    """Of notebook 02: where the cosine's levels lie in a real layer."""
    update = embedded.client_update("middle", "embedded")
    x = update.update["conv2.weight"].flatten()

    def draw(bits: int, clip: float) -> tuple[Figure, str]:
        quantizer = cq.Cosine(bits, clip)
        quantized = quantizer.quantize(x)
        error = nmse(x, quantizer.dequantize(quantized))
        fig, ax = plt.subplots(figsize=(6.4, 3))
        ax.hist(x.numpy(), bins=161, color=plots.SKY, log=True)
        for level in quantizer.table(quantized.floats).tolist():
            ax.axvline(level, color=plots.RED, linestyle="--", linewidth=1.2)
        ax.set(
            xlabel="entry of conv2.weight",
            ylabel="entries per bin",
            title=f"{bits} bits, clip {clip:.1%}: error {error:.3g}",
        )
        plots.stamp(fig, update.source)
        return (
            fig,
            f"Histogram of a real layer with the {2**bits} levels of the cosine at clip {clip:.1%}; normalised error {error:.3g}.",
        )

    return page("levels", "Where the levels lie, and the normalised error of the layer.", draw)


def layers() -> str:
    """Of notebook 03: the error of every layer, for the cosine and for even levels."""
    update = embedded.client_update("middle", "embedded")

    def draw(bits: int, clip: float) -> tuple[Figure, str]:
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        errors = {}
        for make, look in ((cq.Cosine, plots.COSINE), (cq.Uniform, plots.SYMMETRIC)):
            name = {cq.Cosine: "cosine", cq.Uniform: "even levels"}[make]
            errors[name] = [nmse(x, make(bits, clip).roundtrip(x)) for x in update.update.values()]
            ax.plot(errors[name], list(update.update), label=name, **{**look, "linestyle": ""})
        ax.set(xscale="log", xlim=(1e-3, 200), xlabel="normalised error", title=f"{bits} bits, clip {clip:.1%}")
        ax.invert_yaxis()
        ax.legend()
        plots.stamp(fig, update.source)
        ratio = [ours / theirs for ours, theirs in zip(*errors.values())]
        return (
            fig,
            f"Normalised error of ten tensors at {bits} bits, clip {clip:.1%}: the cosine's is {min(ratio):.2f} to {max(ratio):.2f} times that of even levels.",
        )

    return page("layers", "The error of every tensor of an update, with the cosine and with even levels.", draw)


FIGURES = {"02": levels, "03": layers}
