"""What the cosine's curve gains over even levels, all else equal: README's first table, from results/.

A pair of runs has one seed and differs in the quantizer alone; its gain is cosine minus even levels, in points.
"""

import json

import numpy as np

from cosquant_lite import ablation, reference, report

SHORTER = (("", 1.7), ("", 1.4), ("-noclip", 1.0), ("-auto-mse", 2.4))  # ends of names, and a shorter server step
LOST = 5  # points: pairs further apart than this have a run that is lost


def table() -> str:
    """Where, how many pairs of runs, the gain, and what clip and nearest rounding together are worth there."""
    rows = ["| where | pairs of runs | cosine minus even levels | clip and nearest rounding |", "|---|---|---|---|"]
    found = [_messages(), *_searched(), *_trained(), _whole(), _dice()]
    return "\n".join(rows + [f"| {' | '.join(row)} |" for row in found])


def _messages() -> tuple[str, ...]:
    """In the error of one message: ratios."""
    numbers = json.loads(report.EXPECTED.read_text("utf-8"))["notebooks"]["08_beyond_the_paper"]
    curve, clip, nearest = (
        f"{numbers[f'median_{name}_2bit']['value']:.{digits}f}"
        for name, digits in (("quantizer_uniform_cosine", 3), ("clip_0_001", 2), ("rounding_stochastic_nearest", 2))
    )
    return (
        "error of one message at 2 bits, median",
        "24 (of links)",
        f"times {curve}",
        f"times {clip} and {nearest}, each alone",
    )


def _searched() -> list[tuple[str, ...]]:
    """CIFAR-10, E = 1, 60 rounds: at the server steps that a search found, and at shorter ones."""
    pairs = ablation.gains("quantizer", "uniform", "cosine", ablation.accuracies())
    noisy = [gain for cell, _, gain in pairs if "stochastic" in cell or "rotated" in cell]
    nearest = [gain for cell, _, gain in pairs if "stochastic" not in cell and "rotated" not in cell]
    same = [gain for cell, _, gain in pairs if cell.removeprefix("uniform-2") in dict(SHORTER)]
    steps = ablation.by_step()

    def gains(before: str, after: str, step: float) -> list[float]:
        return [steps[after][step][seed] - steps[before][step][seed] for seed in range(3)]

    shorter = [gain for name, step in SHORTER for gain in gains(f"uniform-2{name}", f"cosine-2{name}", step)]
    clip = {step: np.mean(gains("uniform-2-noclip-stochastic", "uniform-2", step)) for step in (2.0, 1.7, 1.4)}
    where = "CIFAR-10, E = 1, 60 rounds, server steps from a short search: nearest rounding, no rotation"
    again = f"… three of these five links with server steps 14 to 30 % smaller, tried after that (at the searched ones {_ahead(same)})"
    return [
        (where, str(len(nearest)), _spread(nearest), f"{clip[2.0]:.1f}"),
        (again, str(len(shorter)), _spread(shorter), f"{clip[1.7]:.1f} and {clip[1.4]:.1f}, at two steps"),
        ("… searched steps, stochastic rounding or a rotation", str(len(noisy)), _spread(noisy), ""),
    ]


def _trained() -> list[tuple[str, ...]]:
    """The reference runs of 100 rounds, seed by seed."""
    rows = []
    for where, split, folder, last in (
        ("CIFAR-10, E = 1, 100 rounds, one server step for all", "iid", reference.CIFAR10, 5),
        ("… two classes a client", "classes:2", reference.CIFAR10, 5),
        ("CIFAR-10, set-up of the paper's group, cut to 100 rounds", "iid", reference.SHORT, 1),
    ):
        usual, even, cosine = (
            reference.late(reference.load(name, split, folder), last) for name in ("minmax-2", "uniform-2", "cosine-2")
        )
        rows.append((where, str(len(even)), _each(cosine - even), _each(even - usual)))
    return rows


def _whole() -> tuple[str, ...]:
    """All 2,000 rounds, seed 0."""
    (rounds, _, cosine), (_, _, even) = (
        reference.curve(reference.load(name, "iid", reference.FULL)) for name in ("cosine-2", "uniform-2")
    )
    gain = cosine[0] - even[0]
    early, end = gain[(rounds >= 100) & (rounds <= 1000)].mean(), gain[rounds > 1500].mean()
    said = f"{early:.1f} in rounds 100 to 1,000, {end:.1f} in the last 500"
    return "… whole, 2,000 rounds", str(len(even)), said, "without them the run diverges"


def _dice() -> tuple[str, ...]:
    """BraTS, points of mean Dice, seed by seed."""
    usual, even, cosine = (
        reference.late(reference.load(f"{name}-2-down-8", "site", reference.BRATS))
        for name in ("minmax", "uniform", "cosine")
    )
    return "BraTS, 30 rounds, 8 bits down: mean Dice", str(len(even)), _each(cosine - even), _each(even - usual)


def _ahead(gains: list[float]) -> str:
    return f"ahead in {sum(gain > 0 for gain in gains)} of {len(gains)}"


def _spread(gains: list[float]) -> str:
    """How often the cosine is ahead, and by how much."""
    kept = [gain for gain in gains if abs(gain) < LOST]
    lost = "".join(f", and {gain:.0f} where one run is lost" for gain in gains if abs(gain) >= LOST)
    return f"{_ahead(gains)}: median {np.median(gains):.1f}, {min(kept):.1f} to {max(kept):.1f}{lost}"


def _each(gains: np.ndarray) -> str:
    return ", ".join(f"{gain:.1f}" for gain in sorted(gains))
