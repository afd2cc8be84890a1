"""Augmentation against torchvision, the gradient guard, and a diverging client."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d, relu
from torchvision.transforms.v2 import functional as reference

from cosquant_lite.classification import JITTER, augment, draw
from cosquant_lite.kernels import PER_THREAD
from cosquant_lite.models import cnn, initial_weights
from cosquant_lite.training import LocalSGD, Pool, one_thread_if_small, train_client


def test_augmentation_is_torchvisions_with_our_random_numbers():
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = augment(x, draw(40, torch.Generator().manual_seed(1)))
    draws = torch.rand(6, 40, generator=torch.Generator().manual_seed(1))
    corners, flipped, factors = (9 * draws[:2]).int(), draws[2] < 0.5, 1 + JITTER * (2 * draws[3:] - 1)
    for i in range(40):
        image = reference.crop(reference.pad(x[i], 4), int(corners[0, i]), int(corners[1, i]), 32, 32)
        image = reference.horizontal_flip(image) if flipped[i] else image
        image = reference.adjust_brightness(image, factors[0, i].item())
        image = reference.adjust_contrast(image, factors[1, i].item())
        image = reference.adjust_saturation(image, factors[2, i].item())
        torch.testing.assert_close(ours[i], image, rtol=0, atol=2e-4)
    assert 0.6 < factors.min() < 0.7 < 1.3 < factors.max() < 1.4
    assert corners.min() == 0
    assert corners.max() == 8


def one_step(**options):
    model, x = cnn(), torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (50,), generator=torch.Generator().manual_seed(1))
    weights = initial_weights(model, 0)
    sgd = LocalSGD(**{"epochs": 1, "batch_size": 50, "lr": 0.1, **options})
    trained, _ = train_client(model, weights, x, y, torch.Generator().manual_seed(2), sgd)
    model.load_state_dict(weights)
    gradients = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    moved = torch.cat([(trained[name] - x).flatten() for name, x in weights.items()]).norm()
    return moved.item(), 0.1 * length.item()


def test_the_network_is_the_papers_where_pooling_comes_last():
    network, x, y = cnn(), torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    w = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}

    hidden = x
    for i in 1, 2, 3:
        hidden = max_pool2d(relu(conv2d(hidden, w[f"conv{i}.weight"], w[f"conv{i}.bias"], padding=1)), 2)
    hidden = relu(linear(hidden.flatten(1), w["fc1.weight"], w["fc1.bias"]))
    logits = linear(hidden, w["fc2.weight"], w["fc2.bias"])

    assert torch.equal(network(x), logits)
    cross_entropy(network(x), y).backward()
    cross_entropy(logits, y).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, rtol=1e-5, atol=1e-7)


def test_long_gradients_are_shortened_and_short_ones_are_not():
    moved, full = one_step()
    assert moved == pytest.approx(full, rel=1e-4)
    assert one_step(max_norm=full * 5)[0] == pytest.approx(full / 2, rel=1e-4)
    assert one_step(max_norm=full * 20)[0] == pytest.approx(full, rel=1e-4)


def test_a_client_that_diverges_says_so():
    with pytest.raises(FloatingPointError, match=r"diverged; try a smaller lr or a max_norm"):
        one_step(lr=1e6, epochs=20)


def test_one_batch_of_infinite_loss_is_divergence_wherever_it_comes():
    model, x = nn.Linear(1, 2, bias=False), torch.tensor([[1.0], [3e38], [1.0]])
    weights = {"weight": torch.tensor([[1.0], [-1.0]])}
    for seed in range(6):  # other places of the large sample
        with pytest.raises(FloatingPointError, match=r"became (inf|nan) at .* diverged"):
            train_client(
                model, weights, x, torch.tensor([0, 1, 0]), torch.Generator().manual_seed(seed), LocalSGD(1, 1, 0.0)
            )


def test_a_worker_s_model_has_the_weights_that_are_asked_for_even_after_training():
    weights = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    with Pool(nn.Linear(1, 1), 1) as pool:

        def answer(_):
            return pool.model(weights)(torch.ones(1)).item()

        before = pool.map(answer, [0])
        pool.map(lambda _: pool.model().weight.data.fill_(9.0), [0])  # as training does
        assert before == pool.map(answer, [0]) == [1.0]


@pytest.mark.parametrize(("entries", "inside"), [(PER_THREAD // 2 - 1, 1), (PER_THREAD // 2, 3)])
def test_a_small_network_gets_one_thread_and_the_caller_has_its_own_again(entries, inside):
    weights, before = {name: torch.zeros(entries) for name in "ab"}, torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread_if_small(weights):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 3
        with pytest.raises(FloatingPointError), one_thread_if_small(weights):
            raise FloatingPointError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_network_that_was_measured_last_trains_in_training_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    x, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    seen = []
    model[1].register_forward_hook(lambda layer, inputs, output: seen.append(layer.training))
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    train_client(model, weights, x, y, torch.Generator().manual_seed(0), LocalSGD(1, 2, 0.1))
    assert seen == [True]
