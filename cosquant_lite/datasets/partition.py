"""Which client holds which training images.

`iid`            shuffled and dealt out evenly.
`classes:K`      at most K classes a client: each class is cut into equal shards, and every client draws K shards
                 (McMahan et al. 2017; so does the paper group's code, which balances the shards over classes).
`dirichlet:A`    each class is divided over the clients in shares drawn from Dirichlet(A): the smaller A, the more skewed
                 in classes and in size (Hsu, Qi, Brown 2019, in the form that draws per class).
`site`           BraTS: each contributing site is a client.
"""

import numpy as np
import torch
from torch import Tensor

SPLITS = "iid, classes:K (e.g. classes:2), dirichlet:A (e.g. dirichlet:0.5, at most 1e6), site"


def parse(text: str) -> tuple[str, float]:
    """The name and number of a split. ValueError lists what is allowed."""
    name, colon, number = text.partition(":")
    try:
        value = float(number) if colon else 0.0
        if (name in ("iid", "site") and not colon) or (name == "dirichlet" and 0 < value <= 10**6):
            return name, value
        if name == "classes" and 1 <= value <= 10**6 and value.is_integer():
            return name, value
    except ValueError:
        pass
    raise ValueError(f"unknown split {text!r}; allowed: {SPLITS}")


def split(
    text: str, labels: Tensor, clients: int, generator: torch.Generator, sites: list[str | None] | None = None
) -> list[Tensor]:
    """Indices of each client's samples. labels: int64 (N,); sites: of each sample, for the split by site. ValueError if
    some client would get none."""
    name, number = parse(text)
    if name == "iid":
        parts = iid(len(labels), clients, generator)
    elif name == "site":
        parts = by_site(sites, clients)
    elif name == "classes":
        parts = by_classes(labels, clients, int(number), generator)
    else:
        parts = dirichlet(labels, clients, number, generator)
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty:
        cure = ", another seed or a larger alpha" if name == "dirichlet" else f": there are {len(labels)} samples"
        raise ValueError(
            f"split {text!r} leaves {len(empty)} of {clients} clients without a sample, the first is client {empty[0]}; "
            f"take fewer clients{cure}"
        )
    return parts


def iid(n: int, clients: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle n indices and deal them out evenly."""
    return list(torch.randperm(n, generator=generator).tensor_split(clients))


def by_site(sites: list[str | None] | None, clients: int) -> list[Tensor]:
    """Each site is a client, in alphabetical order. ValueError if there is another number of clients or no sites."""
    if not sites or None in sites:
        raise ValueError("split 'site' needs cases whose names say where they are from; take 'iid'")
    names = sorted(set(sites))
    if len(names) != clients:
        raise ValueError(f"split 'site' makes {len(names)} clients ({', '.join(names)}), but clients={clients}")
    return [torch.tensor([i for i, site in enumerate(sites) if site == name]) for name in names]


def by_classes(labels: Tensor, clients: int, per_client: int, generator: torch.Generator) -> list[Tensor]:
    """Each client gets `per_client` shards, each of a single class. ValueError if they cannot be cut evenly."""
    classes = labels.unique().tolist()
    if clients * per_client > len(labels):
        raise ValueError(
            f"split 'classes:{per_client}' cuts {clients} clients x {per_client} shards from {len(labels)} samples"
        )
    if clients * per_client % len(classes):
        raise ValueError(
            f"split 'classes:{per_client}' needs {clients} clients x {per_client} shards to be a multiple of the "
            f"{len(classes)} classes"
        )
    shards = []
    for label in classes:
        mine = (labels == label).nonzero().flatten()
        shuffled = mine[torch.randperm(len(mine), generator=generator)]
        shards += shuffled.tensor_split(clients * per_client // len(classes))
    order = torch.randperm(len(shards), generator=generator).view(clients, per_client)
    return [torch.cat([shards[i] for i in row]) for row in order.tolist()]


def dirichlet(labels: Tensor, clients: int, alpha: float, generator: torch.Generator) -> list[Tensor]:
    """Each class is divided over the clients in shares from Dirichlet(alpha)."""
    parts = [[] for _ in range(clients)]
    draws = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero().flatten()
        shuffled = mine[torch.randperm(len(mine), generator=generator)]
        cuts = torch.from_numpy((draws.dirichlet([alpha] * clients).cumsum()[:-1] * len(mine)).round().astype(int))
        for part, piece in zip(parts, shuffled.tensor_split(cuts)):
            part.append(piece)
    return [torch.cat(part) for part in parts]
