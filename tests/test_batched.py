"""The clients of a round trained as one batched network, against each client by itself."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from cosquant_lite.batched import gradients_of, train_clients
from cosquant_lite.classification import augment
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds
from cosquant_lite.models import cnn, initial_weights
from cosquant_lite.training import LocalSGD, as_they_are, train_client


def distance(one: dict, other: dict) -> float:
    return sum((one[name] - x).square().sum().item() for name, x in other.items()) ** 0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9, "weight_decay": 1e-3}, {"max_norm": 0.5}],
    ids=["plain", "momentum", "shortened"],
)
@pytest.mark.parametrize(
    "prepare", [as_they_are, lambda x, y, *shuffles: (augment(x, *shuffles), y)], ids=["", "augmented"]
)
def test_each_client_ends_where_it_ends_alone(options, prepare):
    model, draws = cnn(), torch.Generator().manual_seed(0)
    weights = initial_weights(model, 0)
    x = torch.rand(3, 60, 3, 32, 32, generator=draws)
    y = torch.randint(10, (3, 60), generator=draws)
    how = (LocalSGD(2, 25, 0.05, **options), cross_entropy, prepare)
    together = train_clients(model, weights, x, y, [torch.Generator().manual_seed(k) for k in range(3)], *how)
    for k, (trained, loss) in enumerate(together):
        alone, alone_loss = train_client(model, weights, x[k], y[k], torch.Generator().manual_seed(k), *how)
        assert loss == pytest.approx(alone_loss, rel=1e-4)
        assert distance(trained, alone) < 0.01 * distance(weights, alone)


def test_a_round_together_is_a_round_alone():
    images = load_data("cifar10", "embedded")
    config = FedConfig(data="embedded", rounds=2, clients=15, clients_per_round=3, batch_size=25, up="cosine:8,clip=0")
    alone, together = (list(rounds(config, images, together=way)) for way in (False, True))
    for left, right in zip(alone, together):
        assert left.record["bytes_up"] == right.record["bytes_up"]
        assert left.record["loss"] == pytest.approx(right.record["loss"], rel=1e-3)
    first, start = alone[0].progress.weights, initial_weights(cnn(), config.seed)
    assert distance(together[0].progress.weights, first) < 0.01 * distance(start, first)


def test_the_first_weights_do_not_depend_on_the_layout_or_change_the_model():
    model = cnn().to(memory_format=torch.channels_last)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for name, x in initial_weights(model, 0).items():
        assert x.is_contiguous()
        assert torch.equal(x, initial_weights(cnn(), 0)[name])
        assert torch.equal(model.state_dict()[name], before[name])


def test_a_diverging_client_is_named_here_too():
    model, x = cnn(), torch.randn(2, 20, 3, 32, 32)
    y, shuffles = torch.zeros(2, 20, dtype=torch.long), [torch.Generator().manual_seed(k) for k in range(2)]
    with pytest.raises(FloatingPointError, match="try a smaller lr"):
        train_clients(model, initial_weights(model, 0), x, y, shuffles, LocalSGD(30, 5, 1e8))


def test_the_step_compiles_as_one_graph_with_the_same_gradients(monkeypatch):
    """What a GPU runs, as far as it can be seen without one: traced, not translated to kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    model, draws = cnn(), torch.Generator().manual_seed(0)
    params = {name: w.expand(2, *w.shape) for name, w in initial_weights(model, 0).items()}
    x, y = torch.rand(2, 5, 3, 32, 32, generator=draws), torch.randint(10, (2, 5), generator=draws)
    (plain, losses), (graph, others) = (gradients_of(model, cross_entropy, way)(params, x, y) for way in (False, True))
    torch.testing.assert_close(others, losses)
    for name in params:
        torch.testing.assert_close(graph[name], plain[name])


def test_many_batch_sizes_do_not_stop_the_compiled_step(monkeypatch):
    """torch.compile gives up on a ninth shape; that must not end a sweep."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = torch.nn.Linear(3, 4)
    params = {name: p.detach().expand(2, *p.shape) for name, p in model.named_parameters()}
    step = gradients_of(model, cross_entropy, compiled=True)
    for n in range(1, 12):
        gradients, _ = step(params, torch.ones(2, n, 3), torch.zeros(2, n, dtype=torch.long))
        assert gradients["weight"].shape == (2, 4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_round_on_a_gpu_is_a_round_on_the_cpu():
    images = load_data("cifar10", "embedded")
    config = FedConfig(data="embedded", rounds=1, clients=15, clients_per_round=3, batch_size=25, augment=True)
    here, there = (next(rounds(config, images, device=device)).progress.weights for device in ("cpu", "cuda"))
    assert distance(there, here) < 0.05 * distance(initial_weights(cnn(), config.seed), here)  # TF32 is coarser
