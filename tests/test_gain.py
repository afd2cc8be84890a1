"""README's table of what the cosine's curve gains, against a plain reading of the results."""

import json

from cosquant_lite import gain, runs


def last(name: str, folder: str, end: str, n: int) -> list[float]:
    """Mean of the last n measured accuracies of each seed, in %."""
    files = sorted((runs.RESULTS / folder).glob(f"{name}-{end}-seed?.json"))
    found = [json.loads(file.read_text("utf-8"))["rounds"]["accuracy"] for file in files]
    return [100 * sum([x for x in one if x is not None][-n:]) / n for one in found]


def cells(where: str) -> list[str]:
    (row,) = [row for row in gain.table().splitlines() if row.startswith(f"| {where}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def gaps(one: list[float], other: list[float]) -> str:
    assert len(one) == len(other) == 3
    return ", ".join(f"{x:.1f}" for x in sorted(a - b for a, b in zip(one, other)))


def test_the_reference_runs_are_compared_seed_by_seed():
    for where, folder, end, n in (
        ("CIFAR-10, E = 1, 100 rounds", "cifar10", "iid", 5),
        ("… two classes a client", "cifar10", "classes2", 5),
        ("CIFAR-10, set-up of the paper's group", "cifar10-short", "iid", 1),
    ):
        usual, even, cosine = (last(name, folder, end, n) for name in ("minmax-2", "uniform-2", "cosine-2"))
        assert cells(where)[1:] == ["3", gaps(cosine, even), gaps(even, usual)]


def test_the_searched_and_the_shorter_steps():
    def pairs(names: str, folder: str) -> list[float]:
        found = []
        for name in names.split():
            end = name.removeprefix("plain")
            one, other = (last(f"{quantizer}-2{end}", folder, "iid", 1) for quantizer in ("cosine", "uniform"))
            found += [a - b for a, b in zip(one, other)]
        return found

    noisy = pairs("-stochastic -noclip-stochastic -rotated", "ablation")
    assert cells("… searched steps, stochastic")[2].startswith(f"ahead in {sum(x > 0 for x in noisy)} of 9: ")
    assert cells("… searched steps, stochastic")[2].endswith(f"{min(noisy):.1f} to {max(noisy):.1f}")
    shorter = pairs("plain", "ablation/step-1.4") + pairs("plain", "ablation/step-1.7")
    shorter += pairs("-noclip", "ablation/step-1") + pairs("-auto-mse", "ablation/step-2.4")
    where, count, said, _ = cells("… three of these five links")
    assert (count, said.split(":")[0]) == ("12", f"ahead in {sum(x > 0 for x in shorter)} of 12")
    assert said.endswith(f"{min(shorter):.1f} to {max(shorter):.1f}")
    before = pairs("plain -noclip -auto-mse", "ablation")
    assert f"at the searched ones ahead in {sum(x > 0 for x in before)} of 9" in where


def test_the_whole_run_by_windows():
    even, cosine = (
        json.loads((runs.RESULTS / "cifar10-full" / f"{name}-iid-seed0.json").read_text("utf-8"))["rounds"]["accuracy"]
        for name in ("uniform-2", "cosine-2")
    )
    gains = {i + 1: 100 * (c - e) for i, (c, e) in enumerate(zip(cosine, even)) if c is not None}
    early = [x for number, x in gains.items() if 100 <= number <= 1000]
    end = [x for number, x in gains.items() if number > 1500]
    said = f"{sum(early) / len(early):.1f} in rounds 100 to 1,000, {sum(end) / len(end):.1f} in the last 500"
    assert cells("… whole, 2,000 rounds")[2] == said


def test_level_is_not_ahead():
    assert gain._ahead([0.0, 0.1, -0.1]) == "ahead in 1 of 3"
