"""The clients of a round trained as one batched network, against each client by itself."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from cosquant_lite import batched, federated
from cosquant_lite.batched import ProductConv2d, start_clients, step_of, with_products
from cosquant_lite.classification import augment, draw
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds
from cosquant_lite.models import CNNS, cnn, initial_weights
from cosquant_lite.training import LocalSGD, as_they_are, nothing, train_client


def distance(one: dict, other: dict) -> float:
    return sum((one[name] - x).square().sum().item() for name, x in other.items()) ** 0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9, "weight_decay": 1e-3}, {"max_norm": 0.5}],
    ids=["plain", "momentum", "shortened"],
)
@pytest.mark.parametrize(
    ("draw", "prepare"),
    [(nothing, as_they_are), (draw, lambda x, y, drawn: (augment(x, drawn), y))],
    ids=["", "augmented"],
)
@pytest.mark.parametrize("network", CNNS.values(), ids=CNNS)
def test_each_client_ends_where_it_ends_alone(options, draw, prepare, network):
    model, draws = network(), torch.Generator().manual_seed(0)
    weights = initial_weights(model, 0)
    x = torch.rand(3, 60, 3, 32, 32, generator=draws)
    y = torch.randint(10, (3, 60), generator=draws)
    how = (LocalSGD(2, 25, 0.05, **options), cross_entropy, draw, prepare)
    together = start_clients(model, weights, x, y, [torch.Generator().manual_seed(k) for k in range(3)], *how)()
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
        start_clients(model, initial_weights(model, 0), x, y, shuffles, LocalSGD(30, 5, 1e8))()


def test_a_product_is_the_convolution_that_it_stands_for():
    draws = torch.Generator().manual_seed(0)
    for layer in (
        torch.nn.Conv2d(3, 7, 3, padding=1),
        torch.nn.Conv2d(4, 2, (5, 2)),
        torch.nn.Conv2d(1, 1, 3, padding=(2, 0)),
    ):
        for n in (1, 4, 10):
            x = torch.randn(n, layer.in_channels, 9, 8, generator=draws)
            torch.testing.assert_close(ProductConv2d(layer)(x), layer(x))
            rounded = ProductConv2d(layer, torch.bfloat16)(x)  # 8 bits of both factors, and of what comes out
            assert rounded.dtype == torch.float32
            assert 0 < (rounded - layer(x)).norm() < 0.01 * layer(x).norm()


def test_gradients_through_rounded_factors_are_near_and_float32():
    draws = torch.Generator().manual_seed(0)
    x, layer = torch.randn(10, 3, 9, 8, generator=draws), torch.nn.Conv2d(3, 7, 3, padding=1)
    pull = torch.randn(10, 7, 9, 8, generator=draws)
    exact, rounded = (
        torch.autograd.grad((one(x) * pull).sum(), (layer.weight, layer.bias))
        for one in (layer, ProductConv2d(layer, torch.bfloat16))
    )
    for want, found in zip(exact, rounded):
        assert found.dtype == torch.float32
        assert (found - want).norm() < 0.01 * want.norm()


def test_only_convolutions_that_a_product_can_stand_for_become_one():
    others = [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"bias": False},
        {"padding": "same"},
    ]
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3), *(torch.nn.Conv2d(2, 2, 3, **other) for other in others))
    changed = with_products(torch.nn.Sequential(model, torch.nn.Conv1d(2, 2, 3)))
    assert [type(layer) is ProductConv2d for layer in changed[0]] == [True] + [False] * len(others)
    assert list(changed.state_dict()) == [f"0.{name}" for name in model.state_dict()] + ["1.weight", "1.bias"]
    assert type(model[0]) is torch.nn.Conv2d


@pytest.mark.parametrize("n", [7, 30])
def test_fewer_samples_than_a_batch_and_a_half_by_itself(n):
    """Two clients and a third are the three together, and each ends where it ends alone."""
    draws, weights = torch.Generator().manual_seed(0), initial_weights(cnn(), 0)
    x, y = torch.rand(3, n, 3, 32, 32, generator=draws), torch.randint(10, (3, n), generator=draws)
    sgd = LocalSGD(2, 20, 0.05, 0.9, 1e-3, 0.5)

    def shuffles(part: slice) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(k) for k in range(3)][part]

    def some(part: slice) -> list:
        return start_clients(cnn(), weights, x[part], y[part], shuffles(part), sgd)()

    parts = federated.halves(3)
    for k, (trained, loss) in enumerate([one for part in parts for one in some(part)]):
        alone, alone_loss = train_client(cnn(), weights, x[k], y[k], torch.Generator().manual_seed(k), sgd)
        assert loss == pytest.approx(alone_loss, rel=1e-4)
        assert distance(trained, alone) < 0.01 * distance(weights, alone)


def test_halves_are_all_clients_in_order():
    for n in range(1, 12):
        parts = federated.halves(n)
        assert [k for part in parts for k in range(n)[part]] == list(range(n))
        assert len(parts) == min(n, 2)
        assert len(range(n)[parts[0]]) - len(range(n)[parts[-1]]) in (0, 1)


def test_many_batch_sizes_do_not_stop_the_compiled_step():
    """torch.compile gives up on a ninth variant of one function; that must not end a sweep."""
    torch.compiler.reset()
    model = torch.nn.Linear(3, 4)
    params = {name: p.detach().expand(2, *p.shape) for name, p in model.named_parameters()}
    zero, lr = {name: torch.zeros_like(p) for name, p in params.items()}, torch.tensor(0.1)
    for n in range(1, 12):
        step = torch.compile(
            step_of(model, LocalSGD(1, n, 0.1), cross_entropy, as_they_are), backend="eager", dynamic=False
        )
        batch = torch.ones(2, n, 3), torch.zeros(2, n, dtype=torch.long), torch.empty(2, 0, n)
        assert step(params, zero, *batch, lr)[0]["weight"].shape == (2, 4, 3)


def test_the_step_compiles_as_one_graph_with_the_same_result():
    """What a GPU runs, as far as it can be seen without one: traced, not translated to kernels."""
    torch.compiler.reset()  # other tests may have used up how often it compiles one function
    draws = torch.Generator().manual_seed(0)
    params = {name: w.expand(2, *w.shape) for name, w in initial_weights(cnn(), 0).items()}
    velocity = {name: torch.randn(p.shape, generator=draws) for name, p in params.items()}
    x, y = torch.rand(2, 5, 3, 32, 32, generator=draws), torch.randint(10, (2, 5), generator=draws)
    drawn = torch.rand(2, 6, 5, generator=draws)
    step = step_of(
        cnn(), LocalSGD(1, 5, 0.1, 0.9, 1e-3, 0.5), cross_entropy, lambda x, y, drawn: (augment(x, drawn), y)
    )
    graph = torch.compile(step, backend="aot_eager", fullgraph=True)
    for plain, traced in zip(*(one(params, velocity, x, y, drawn, torch.tensor(0.1)) for one in (step, graph))):
        torch.testing.assert_close(traced, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("factors", "tf32", "near"),
    [(torch.float32, False, 0.01), (torch.float32, True, 0.2), (torch.bfloat16, True, 0.4)],
    ids=["exact", "TF32", "bfloat16"],
)
@pytest.mark.parametrize("batch_size", [22, 20], ids=["whole batches", "a short one at the end"])
@pytest.mark.parametrize("augmented", [True, False], ids=["augmented", "as they are"])
def test_a_round_on_a_gpu_is_a_round_on_the_cpu(monkeypatch, batch_size, factors, tf32, near, augmented):
    monkeypatch.setattr(federated, "usable", torch.device)
    monkeypatch.setattr(batched, "FACTORS", factors)
    torch.backends.cuda.matmul.allow_tf32 = tf32  # later tests set it again, by the real `usable`
    images = load_data("cifar10", "embedded")
    how = {"epochs": 2, "momentum": 0.9, "weight_decay": 1e-3, "augment": augmented, "lr": 0.02}
    config = FedConfig(data="embedded", rounds=1, clients=15, clients_per_round=5, batch_size=batch_size, **how)
    here, there = (next(rounds(config, images, device=device)) for device in ("cpu", "cuda"))
    zero = {name: torch.zeros_like(x) for name, x in here.updates[0].items()}
    for one, other in zip(there.updates, here.updates):  # each client's own
        assert distance(one, other) / distance(zero, other) < near
    assert there.record["loss"] == pytest.approx(here.record["loss"], rel=near)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bits_twice():
    images = load_data("cifar10", "embedded")
    how = {"clients": 15, "clients_per_round": 4, "batch_size": 25, "augment": True, "up": "cosine:2"}
    config = FedConfig(data="embedded", rounds=2, **how)
    one, again = (list(rounds(config, images, device="cuda"))[-1] for _ in range(2))
    assert all(torch.equal(x, again.progress.weights[name]) for name, x in one.progress.weights.items())
