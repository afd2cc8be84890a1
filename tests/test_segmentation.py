"""The BraTS task: phantoms, patches, augmentation, Dice against its definition, and the same loop as for images."""

import itertools

import numpy as np
import pytest
import torch
from memory import peak_memory
from torch.nn.functional import cross_entropy, one_hot

from cosquant_lite import segmentation, wire
from cosquant_lite.__main__ import main
from cosquant_lite.datasets import brats, load_data, phantom
from cosquant_lite.federated import FedConfig, rounds
from cosquant_lite.models import initial_weights, unet

SITES = {"dataset": "brats", "data": "embedded", "split": "site", "clients": 4, "clients_per_round": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def volumes():
    return phantom.phantoms(16)


def test_phantoms_are_always_the_same_and_say_what_they_are(volumes):
    again = phantom.phantoms(16)
    assert torch.equal(volumes.train_x, again.train_x)
    assert "not BraTS" in volumes.source
    assert (len(volumes.train_cases), len(volumes.test_cases)) == (16, 4)
    assert {brats.site(name) for name in volumes.test_cases} == {f"scanner{letter}" for letter in "ABCD"}


def test_phantoms_have_what_brats_has():
    full = load_data("brats", "embedded")
    x, y = torch.cat([full.train_x, full.test_x]), torch.cat([full.train_y, full.test_y])
    assert x.shape == (20, 4, 32, 32, 32)
    assert all(set(label.unique().tolist()) == {0, 1, 2, 3} for label in y), "every case has all three regions"
    assert (x[y[:, None].expand_as(x) > 0] > 0).all(), "a tumour lies inside the brain"
    brightest = [x[:, i][y == 3].float().mean() / x[:, i][y == 1].float().mean() for i in range(4)]
    assert max(brightest) == brightest[brats.MODALITIES.index("T1gd")]


def test_dice_is_twice_the_overlap_over_the_sum():
    draws = np.random.default_rng(0)
    left, right = (torch.from_numpy(draws.integers(0, 4, (8, 8, 8)).astype(np.uint8)) for _ in range(2))
    for codes, value in zip(brats.REGIONS.values(), segmentation.dice(left, right)):
        a, b = (np.isin(x.numpy(), codes) for x in (left, right))
        assert value == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    nothing = torch.zeros_like(left)
    assert segmentation.dice(nothing, nothing) == [1, 1, 1]
    assert segmentation.dice(nothing, left) == [0, 0, 0]
    assert segmentation.dice(left, left) == [1, 1, 1]


def test_a_sample_is_normalised_over_the_brain_and_cut_to_a_patch(volumes):
    image, label = segmentation.sample(volumes.train_x[0], volumes.train_y[0], False, 0)
    for x, raw in zip(image, volumes.train_x[0]):
        assert x[raw > 0].mean() == pytest.approx(0, abs=1e-4)
        assert x[raw > 0].std(unbiased=False) == pytest.approx(1, abs=1e-3)
        assert (x[raw == 0] == 0).all()
    assert torch.equal(label[0], volumes.train_y[0])
    large = phantom.phantoms(80)
    image, label = segmentation.sample(large.train_x[0], large.train_y[0], False, 0)
    assert image.shape == (4, 64, 64, 64)
    assert label.shape == (1, 64, 64, 64)


def test_augmentation_moves_image_and_label_together_and_follows_its_generator(volumes):
    x, y, flips = volumes.train_x[0], volumes.train_y[0], 0
    for seed in range(8):
        one, again = (segmentation.sample(x, y, True, seed) for _ in range(2))
        assert torch.equal(one[0], again[0])
        flipped = not torch.equal(one[1][0], y)
        assert torch.equal(one[1][0], y.flip(0) if flipped else y)
        bright = one[0][2][one[1][0] == 3].mean() - one[0][2][one[1][0] == 1].mean()
        assert bright > 0.5, "enhancing tumour stays where the label says"
        flips += flipped
    assert 0 < flips < 8


def test_random_numbers_are_drawn_just_if_they_are_needed(volumes):
    for augmented, cases, wanted in (
        (True, volumes, True),
        (False, volumes, False),
        (False, phantom.phantoms(80), True),
    ):
        config = FedConfig(dataset="brats", data="embedded", clients=2, clients_per_round=2, augment=augmented)
        task = segmentation.task(config, cases, [], torch.device("cpu"))
        one, other = (torch.Generator().manual_seed(0) for _ in range(2))
        drawn = task.draw(3, one)
        if wanted:
            assert drawn.tolist() == [int(torch.randint(2**31, (), generator=other)) for _ in range(3)]
        assert torch.equal(one.get_state(), other.get_state())
        assert drawn.shape == (3,)


def test_a_larger_case_is_tiled():
    image = phantom.phantoms(80).test_x[0]
    model = unet("unet-tiny")
    model.load_state_dict(initial_weights(model, 0))
    label = segmentation.predict(model, image)
    assert label.shape == (80, 80, 80)
    assert label.dtype == torch.uint8


def test_it_is_the_same_loop_with_real_bytes_whatever_the_workers(volumes):
    config = FedConfig(**SITES, rounds=2, down="cosine:8", up="cosine:2,rounding=stochastic", augment=True)
    one, two = (list(rounds(config, volumes, workers=workers)) for workers in (1, 3))
    weights = initial_weights(unet("unet-tiny"), 0)
    for left, right in zip(one, two):
        assert left.record["bytes_down"] == 3 * wire.frame_bytes(weights, 8)
        assert left.record["bytes_up"] == 3 * wire.frame_bytes(weights, 2)
        assert {**left.record, "seconds": 0} == {**right.record, "seconds": 0}
        assert left.record["dice"] == pytest.approx(np.mean(left.record["dice_cases"]))
        assert np.shape(left.record["dice_cases"]) == (4, 3)
    for name, x in one[-1].progress.weights.items():
        assert torch.equal(two[-1].progress.weights[name], x)


def test_training_at_64_takes_at_most_four_gigabytes():
    """The U-Net of the reference runs, two clients side by side, three cases a batch."""
    settings = {**SITES, "model": "unet-small", "clients_per_round": 2, "batch_size": 3, "rounds": 1}
    script = "from cosquant_lite.federated import *; from cosquant_lite.datasets.phantom import phantoms"
    script += f"\nnext(rounds(FedConfig(**{settings}), phantoms(64), workers=2))"
    assert 2**29 < peak_memory(script) < 2**32


def test_clients_are_sites(volumes):
    config = FedConfig(**SITES, rounds=1, lr=0.0)
    finished = next(rounds(config, volumes))
    assert len(finished.updates) == 3
    with pytest.raises(ValueError, match=r"split 'site' makes 4 clients \(scannerA, scannerB, .*\), but clients=5"):
        next(rounds(FedConfig(**{**SITES, "clients": 5}), volumes))
    with pytest.raises(ValueError, match="split 'iid' leaves 4 of 20 clients without a sample"):
        next(rounds(FedConfig(**{**SITES, "clients": 20, "split": "iid"}), volumes))


def test_it_learns(volumes):
    config = FedConfig(**{**SITES, "clients_per_round": 4}, rounds=6, epochs=4, momentum=0.9, up="cosine:2")
    history = [finished.record for finished in rounds(config, volumes)]
    assert history[-1]["dice"] > 0.3, "all background gives 0, all tumour less than 0.1"


@pytest.mark.parametrize(("wrong", "words"), [
    ({"model": "cnn"}, "unknown model for brats 'cnn'; allowed: unet-tiny, unet-small, unet-full"),
    ({"split": "classes:2"}, "unknown split for brats 'classes'; allowed: iid, site"),
    ({"dataset": "cifar10"}, "unknown split for cifar10 'site'; allowed: iid, classes, dirichlet"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        FedConfig(**{**SITES, **wrong})


def test_the_command_line_runs_it_and_shows_dice(tmp_path, capsys):
    words = (
        "run --dataset brats --data embedded --split site --clients 4 --clients-per-round 2 --rounds 1 --batch-size 4"
    )
    assert main([*words.split(), "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "data: embedded phantom (synthetic, 32x32x32), not BraTS" in out
    assert "dice" in out


def test_phantoms_are_twenty_patients_from_four_scanners():
    volumes = phantom.phantoms(32)
    names = volumes.train_cases + volumes.test_cases
    x, y = torch.cat([volumes.train_x, volumes.test_x]), torch.cat([volumes.train_y, volumes.test_y])
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(y, 2))
    tissue = (y == 0)[:, None] & (x > 0)
    grey = {}
    for letter in "ABC":
        scanner = torch.tensor([brats.site(name) == f"scanner{letter}" for name in names])
        grey[letter] = x[scanner].float()[tissue[scanner]].mean()
    assert grey["B"] > 1.05 * grey["A"], "gamma 0.8"
    assert grey["C"] < 0.95 * grey["A"], "gamma 1.25"


def plain_task(volumes):
    config = FedConfig(dataset="brats", data="embedded", clients=2, clients_per_round=2)
    return segmentation.task(config, volumes, [], torch.device("cpu"))


def test_the_loss_is_cross_entropy_and_one_minus_dice_of_the_softmax(volumes):
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, 6, generator=draws)
    label = torch.randint(4, (2, 1, 6, 6, 6), generator=draws)
    p, truth = logits.softmax(1), one_hot(label[:, 0], 4).movedim(-1, 1)
    dice = 2 * (p * truth).sum((2, 3, 4)) / (p + truth).sum((2, 3, 4))
    by_hand = cross_entropy(logits, label[:, 0]) + 1 - dice.mean()
    assert plain_task(volumes).loss_of(logits, label).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_without_augmentation_a_batch_is_its_normalised_cases(volumes):
    task = plain_task(volumes)
    x, y = volumes.train_x[:2], volumes.train_y[:2]
    images, labels = task.prepare(x, y, task.draw(2, torch.Generator().manual_seed(0)))
    assert torch.equal(images, torch.stack([segmentation.plain(segmentation.normalise(one.float())) for one in x]))
    assert torch.equal(labels[:, 0], y)


def test_every_augmented_case_is_scaled_and_shifted_by_up_to_a_tenth(volumes):
    x, y = volumes.train_x[0], volumes.train_y[0]
    plain = segmentation.sample(x, y, False, 0)[0]
    for seed in range(8):
        image, label = segmentation.sample(x, y, True, seed)
        image = image if torch.equal(label[0], y) else image.flip(1)
        shift = image[:, (x == 0).all(0)].mean()
        scale = (image - shift)[plain > 1].sum() / plain[plain > 1].sum()
        torch.testing.assert_close(image, scale * plain + shift, rtol=0, atol=1e-4)
        assert 0 < abs(shift) < 0.1
        assert 0 < abs(scale - 1) < 0.1


def test_a_case_that_fits_is_seen_whole():
    image, model = phantom.phantoms(32).test_x[0], unet("unet-tiny")
    model.load_state_dict(initial_weights(model, 0))
    with torch.inference_mode():
        whole = model(segmentation.plain(segmentation.normalise(image.float()))[None])[0].argmax(0)
    assert (segmentation.predict(model, image) == whole).float().mean() > 0.999
