"""Splits: every image once, the promised classes, and no client left empty."""

import pytest
import torch

from cosquant_lite.datasets import partition

LABELS = torch.arange(10).repeat(100)


def dealt(text: str, clients: int = 20, labels=LABELS, seed: int = 0):
    return partition.split(text, labels, clients, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", ["iid", "classes:1", "classes:2", "classes:10", "dirichlet:0.5", "dirichlet:100"])
def test_every_image_goes_to_exactly_one_client(text):
    parts = dealt(text)
    assert len(parts) == 20
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    again, other = dealt(text), dealt(text, seed=1)
    assert all(torch.equal(left, right) for left, right in zip(parts, again))
    assert any(len(left) != len(right) or not torch.equal(left, right) for left, right in zip(parts, other))


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_clients_have_few_classes_and_equal_shares(per_client):
    for part in dealt(f"classes:{per_client}"):
        assert len(LABELS[part].unique()) <= per_client
        assert len(part) == 50


def test_a_small_alpha_is_more_skewed_than_a_large_one():
    def skew(alpha):
        parts = dealt(f"dirichlet:{alpha}", clients=5)
        shares = torch.stack([LABELS[part].bincount(minlength=10) / len(part) for part in parts])
        return shares.max(1).values.mean().item()

    assert skew(1000) < 0.15 < 0.25 < skew(0.2)


@pytest.mark.parametrize(
    ("text", "clients", "named"),
    [
        (
            "iid",
            1001,
            "leaves 1 of 1001 clients without a sample, the first is client 1000; take fewer clients: there are 1000",
        ),
        ("dirichlet:0.01", 100, r"split 'dirichlet:0.01' leaves \d+ of 100 clients without a sample"),
        ("classes:3", 7, "needs 7 clients x 3 shards to be a multiple of the 10 classes"),
    ],
)
def test_a_split_that_leaves_a_client_empty_is_refused(text, clients, named):
    with pytest.raises(ValueError, match=named):
        dealt(text, clients)


@pytest.mark.parametrize("text", ["iid", "classes:1", "dirichlet:100"])
def test_which_images_of_a_class_a_client_gets_is_drawn(text):
    for part in dealt(text, labels=torch.zeros(1000, dtype=torch.int64)):
        assert part.max() - part.min() > 500, "not one stretch of the data set"


def test_which_classes_a_client_gets_and_how_many_images_is_drawn():
    classes, sizes = (
        [[found(part) for part in dealt(text, seed=seed)] for seed in (0, 1)]
        for text, found in (("classes:2", lambda part: LABELS[part].unique().tolist()), ("dirichlet:0.5", len))
    )
    assert classes[0] != classes[1]
    assert sizes[0] != sizes[1]


def test_sites_are_clients_in_alphabetical_order():
    parts = partition.by_site(["B", "C", "A", "B"], 3)
    assert [part.tolist() for part in parts] == [[2], [0, 3], [1]]
    for sites in (None, [], ["A", None], [None]):
        with pytest.raises(ValueError, match="needs cases whose names say where they are from"):
            partition.by_site(sites, 1)


@pytest.mark.parametrize(
    "text",
    ["classes:2.5", "classes:0", "classes:inf", "classes", "dirichlet:inf", "dirichlet:1e308", "dirichlet:0", "dirichlet:nan", "dirichlet",
     "iid:1", "site:2", "classes:two", ""],
)  # fmt: skip
def test_an_impossible_split_is_refused(text):
    with pytest.raises(ValueError, match=f"unknown split '{text}'; allowed: iid, classes:K"):
        partition.parse(text)
