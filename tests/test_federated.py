"""The federated loop against a ten-line FedAvg, its byte counts, its determinism and its errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from cosquant_lite import federated, training, wire
from cosquant_lite.__main__ import main
from cosquant_lite.classification import normalise
from cosquant_lite.datasets import load_data, partition
from cosquant_lite.federated import FedConfig, Progress, rounds
from cosquant_lite.link import parse_link, send, send_with_memory
from cosquant_lite.models import CNNS, cnn, initial_weights

SMALL = {"data": "embedded", "rounds": 2, "clients": 20, "clients_per_round": 3, "batch_size": 25, "epochs": 2}


@pytest.fixture(scope="module")
def images():
    return load_data("cifar10", "embedded")


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("network", CNNS.values(), ids=CNNS)
def test_both_networks_have_122570_parameters_and_ten_answers(network):
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 122_570
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_run_trains_the_network_it_names(images):
    """They differ in nothing but padding and pooling: the same first weights, other losses."""
    first = [next(rounds(FedConfig(**SMALL, model=name), images)).record["loss"] for name in CNNS]
    assert first[0] != first[1]
    for one, other in zip(*(initial_weights(network(), 0).values() for network in CNNS.values())):
        assert torch.equal(one, other)


def test_equals_a_ten_line_fedavg(images, one_thread):
    """Written as averaging weights it agrees to 1e-6 a round; written as averaging updates, to the last bit."""
    config = FedConfig(**{**SMALL, "rounds": 3}, momentum=0.5, weight_decay=1e-3)
    ours = list(rounds(config, images))
    (x, _), model = normalise(images), cnn().to(memory_format=torch.channels_last)
    parts = partition.iid(len(images.train_y), 20, federated.generator(0, "split"))
    weights = initial_weights(model, 0)
    for number in (1, 2):
        chosen, trained = torch.randperm(20, generator=federated.generator(0, "sample", number))[:3].tolist(), []
        for client in chosen:
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-3)
            shuffle = federated.generator(0, "client", number, client)
            for _ in range(2):
                for batch in parts[client][torch.randperm(len(parts[client]), generator=shuffle)].split(25):
                    optimizer.zero_grad()
                    cross_entropy(model(x[batch]), images.train_y[batch]).backward()
                    optimizer.step()
            trained.append({name: value.clone() for name, value in model.state_dict().items()})
        averaged = {name: sum(w[name] for w in trained) / 3 for name in weights}
        weights = {name: w - sum((1 / 3) * (w - end[name]) for end in trained) for name, w in weights.items()}
        received = ours[number].received  # what clients get in the next round: the weights after this one
        for name in weights:
            torch.testing.assert_close(received[name], averaged[name], rtol=0, atol=1e-6)
            assert torch.equal(received[name], weights[name])


def test_links_carry_real_bytes_both_ways(images):
    weights = initial_weights(cnn(), 0)
    for down, up, bits in (
        ("none", "none", (None, None)),
        ("cosine:8", "cosine:2", (8, 2)),
        ("uniform:4,range=minmax", "cosine:1", (4, 1)),
    ):
        config = FedConfig(**{**SMALL, "rounds": 1}, down=down, up=up)
        record = next(rounds(config, images)).record
        assert record["bytes_down"] == 3 * wire.frame_bytes(weights, bits[0])
        assert record["bytes_up"] == 3 * wire.frame_bytes(weights, bits[1])
        for way, width in zip(("down", "up"), bits):
            codes = sum(-(-x.numel() * (width or 32) // 8) for x in weights.values())
            assert record[f"header_{way}"] == record[f"bytes_{way}"] - 3 * codes


def test_clients_train_from_the_weights_they_received(images):
    finished = next(rounds(FedConfig(**{**SMALL, "rounds": 1}, down="cosine:4"), images))
    exact = initial_weights(cnn(), 0)
    assert len(finished.received["conv2.weight"].unique()) <= 16
    assert not torch.equal(finished.received["conv2.weight"], exact["conv2.weight"])


def test_same_seed_same_history_whatever_ran_before(images):
    config = FedConfig(**SMALL, up="cosine:2,rounding=stochastic")
    first = [finished.record for finished in rounds(config, images)]
    torch.rand(5)  # the global generator plays no part
    second = [finished.record for finished in rounds(config, images)]
    other = [
        finished.record for finished in rounds(FedConfig(**SMALL, up="cosine:2,rounding=stochastic", seed=1), images)
    ]

    assert without_time(first) == without_time(second) != without_time(other)


def test_it_learns_with_two_bits_up():
    history = federated.run(
        FedConfig(data="embedded", rounds=5, clients=10, clients_per_round=4, epochs=4, batch_size=10, up="cosine:2")
    )
    assert history.rounds[-1]["accuracy"] > 0.6  # ten classes: guessing gives 0.1
    assert "not CIFAR-10" in history.provenance["source"]
    assert history.provenance["config"]["up"] == "cosine:2"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"clients_per_round": 21, "clients": 20}, "clients_per_round is 21, but there are only 20 clients"),
        ({"up": "cosin:2"}, "unknown quantizer 'cosin'"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'; allowed: cifar10"),
        ({"data": "fake"}, "unknown data 'fake'; allowed: auto, real, embedded"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"rounds": 2.5}, "rounds must be a whole number, got 2.5"),
        ({"rounds": "3"}, "rounds must be a whole number, got '3'"),
        ({"rounds": True}, "rounds must be a whole number, got True"),
        ({"lr": "big"}, "lr must be float, got 'big'"),
        ({"up": None}, "up must be str, got None"),
        ({"seed": 2**63}, "seed must be at least 0 and below"),
        ({"lr": -1.0}, "lr must be a finite number"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"split": "dirichlet"}, "unknown split 'dirichlet'; allowed: iid, classes:K"),
        ({"split": "classes:1.5"}, "unknown split 'classes:1.5'"),
        ({"split": "classes:inf"}, "unknown split 'classes:inf'"),
        ({"split": "dirichlet:0"}, "unknown split 'dirichlet:0'"),
        ({"split": "iid:2"}, "unknown split 'iid:2'"),
        ({"augment": "yes"}, "augment must be True or False, got 'yes'"),
        (
            {"lr_schedule": "cosine", "lr": 1e-7},
            "lr_min must be at most lr, 1e-07, where the schedule begins; got 1e-06",
        ),
        ({"lr_schedule": "linear"}, "unknown lr_schedule 'linear'; allowed: constant, cosine"),
        ({"up_from": "client"}, "unknown up_from 'client'; allowed: received, server"),
        ({"down_sends": "nothing"}, "unknown down_sends 'nothing'; allowed: weights, difference"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        FedConfig(**wrong)


def test_what_cannot_be_run_is_named_before_anything_is_trained():
    with pytest.raises(TypeError, match="expected a FedConfig, got dict"):
        federated.run({"rounds": 1})
    with pytest.raises(ValueError, match="workers must be at least 0, which is one thread on each core, got -1"):
        federated.run(FedConfig(data="embedded"), workers=-1)


def test_numpy_numbers_become_plain_ones():
    config = FedConfig(clients=np.int64(20), lr=np.float32(0.5))
    assert (type(config.clients), type(config.lr), config.lr) == (int, float, 0.5)


def test_clients_weigh_by_their_images():
    states = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}]
    assert federated.weighted_mean(states, [30, 10])["w"] == 2.0
    assert federated.weighted_mean(iter(states), [30, 10])["w"] == 2.0


@pytest.mark.parametrize(("many", "inside"), [(training.PER_THREAD, 1), (1000, 2)], ids=["small", "large"])
def test_messages_of_a_small_network_are_made_in_one_thread(images, monkeypatch, many, inside):
    threads, before = [], torch.get_num_threads()
    monkeypatch.setattr(training, "PER_THREAD", many)
    monkeypatch.setattr(federated, "send", lambda *args: threads.append(torch.get_num_threads()) or send(*args))
    torch.set_num_threads(2)
    try:
        next(rounds(FedConfig(**SMALL), images))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {inside}


def test_the_recorded_loss_weighs_clients_by_their_images(images, monkeypatch):
    sizes = []

    def trained(config, task, pool, received, number, chosen, together):
        sizes.extend(len(task.parts[client]) for client in chosen)
        return [(received, float(4**k)) for k in range(len(chosen))]

    monkeypatch.setattr(federated, "train_chosen", trained)
    record = next(rounds(FedConfig(**{**SMALL, "split": "dirichlet:0.5"}), images)).record
    assert len(set(sizes)) > 1
    assert record["loss"] == pytest.approx(sum(n * 4**k for k, n in enumerate(sizes)) / sum(sizes))


def test_recorded_loss_and_accuracy_are_those_of_the_model(images):
    config = FedConfig(**{**SMALL, "rounds": 2, "epochs": 1, "clients_per_round": 1, "lr": 0.0})  # nothing is learnt
    (x, test_x), model = normalise(images), cnn()
    record = next(rounds(config, images)).record
    client = torch.randperm(20, generator=federated.generator(0, "sample", 1))[0]
    mine = partition.iid(len(images.train_y), 20, federated.generator(0, "split"))[client]
    model.load_state_dict(initial_weights(model, 0))
    with torch.no_grad():
        assert record["loss"] == pytest.approx(cross_entropy(model(x[mine]), images.train_y[mine]).item(), rel=1e-5)
        hits = (model(test_x).argmax(1) == images.test_y).double().mean().item()
    assert record["accuracy"] == pytest.approx(hits)


@pytest.mark.parametrize(
    "options",
    [{}, {"down_sends": "difference"}, {"down_feedback": True}, {"down": "cosine:2,rounding=stochastic"}],
    ids=str,
)
def test_received_is_the_accuracy_of_the_weights_that_the_next_message_brings(images, options):
    config = FedConfig(**{**SMALL, "rounds": 4, "down": "cosine:2", "evaluate_every": 2, **options})
    _, second, third, fourth = rounds(config, images)
    model = cnn()
    model.load_state_dict(third.received)
    with torch.inference_mode():
        hits = (model(normalise(images)[1]).argmax(1) == images.test_y).float().mean().item()
    assert second.record["received"] == pytest.approx(hits)
    assert third.record["received"] is None
    assert fourth.record["received"] is not None


def test_without_a_down_link_the_clients_receive_what_the_server_has(images):
    for finished in rounds(FedConfig(**SMALL), images):
        assert finished.record["received"] == finished.record["accuracy"]


def test_weights_that_the_clip_cuts_grow_where_no_client_sees_them():
    """Gradient descent to a target of which 1 % is larger than the rest, on the weights that arrive."""
    target = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    target[:10] = 10.0

    def descend(link: str, steps: int = 200, lr: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.zeros(1000)
        for _ in range(steps):
            received = send({"w": exact}, parse_link(link)).state["w"]
            exact = exact - lr * (received - target)
        return exact, received

    exact, received = descend("cosine:8")
    assert exact[:10].min() > 50
    assert received.max() < 5
    assert (received - target)[10:].abs().max() < 0.1
    exact, received = descend("cosine:8,clip=0")
    assert (exact - target).abs().max() < 0.2
    assert (received - target).abs().max() < 0.2


def test_images_are_normalised_by_the_training_images(images):
    train, test = normalise(images)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(train.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    scale = train.flatten()[0] / (images.train_x.flatten()[0] / 255 - (images.train_x / 255).mean())
    torch.testing.assert_close(
        test, (images.test_x / 255 - (images.train_x / 255).mean()) * scale, rtol=1e-3, atol=1e-3
    )


def test_initial_weights_leave_the_global_generator_alone():
    model = cnn()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    initial_weights(model, 0)
    assert torch.equal(torch.rand(1), expected)


def test_more_clients_than_images_and_a_diverging_run_are_errors(images):
    with pytest.raises(ValueError, match="split 'iid' leaves 1500 of 3000 clients without a sample"):
        next(rounds(FedConfig(data="embedded", clients=3000), images))
    with pytest.raises(FloatingPointError, match="diverged"):
        list(rounds(FedConfig(**SMALL, lr=1e6), images))


@pytest.mark.parametrize(
    "options",
    [
        {"up": "cosine:2,rounding=stochastic", "down": "cosine:8"},
        {"up": "cosine:1", "up_feedback": True, "down": "cosine:4", "down_feedback": True, "augment": True},
        {"up": "cosine:2,mask=0.1,entropy=ans", "down_sends": "difference", "down": "cosine:2", "split": "classes:2"},
    ],
    ids=str,
)
def test_the_result_does_not_depend_on_the_workers_and_goes_on_from_anywhere(images, options):
    config = FedConfig(**{**SMALL, "rounds": 3, "epochs": 1}, **options)
    first = list(rounds(config, images, workers=1))
    for workers in (2, 3):
        again = list(rounds(config, images, workers=workers))
        assert without_time(r.record for r in again) == without_time(r.record for r in first)
        assert all(torch.equal(again[-1].progress.weights[name], x) for name, x in first[-1].progress.weights.items())
    resumed = list(rounds(config, images, first[0].progress))
    assert without_time(r.record for r in resumed) == without_time(r.record for r in first[1:])


def test_error_feedback_loses_nothing_for_good():
    """What was delivered in all messages and what is still in memory add up to what was sent."""
    link, lost, sent, delivered = parse_link("cosine:1"), None, 0, 0
    for seed in range(5):
        x = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(seed)), "n": torch.tensor(seed)}
        delivery, lost = send_with_memory(x, lost, link)
        sent, delivered = sent + x["w"], delivered + delivery.state["w"]
        assert delivery.state["n"] == seed
    torch.testing.assert_close(delivered + lost["w"], sent, rtol=0, atol=1e-4)
    assert lost["w"].norm() > 1


def test_the_memory_of_a_contraction_stays_bounded_and_that_of_one_bit_cosine_does_not():
    sizes = {}
    for text in ("sign", "cosine:2", "cosine:1"):
        lost = None
        for seed in range(12):
            x = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(seed))}
            _, lost = send_with_memory(x, lost, parse_link(text))
        sizes[text] = float(lost["w"].norm() / x["w"].norm())
    assert sizes["sign"] < 2  # the proof allows about 2 / delta, delta = 0.64 for a Gaussian
    assert sizes["cosine:2"] < 1
    assert sizes["cosine:1"] > 3


def test_clients_keep_their_own_memory(images):
    config = FedConfig(**{**SMALL, "rounds": 4, "clients": 4, "epochs": 1}, up="cosine:1", up_feedback=True)
    last = list(rounds(config, images))[-1].progress
    assert set(last.lost_up) <= set(range(4))
    assert len(last.lost_up) >= 3
    assert last.lost_down is None


def test_the_server_can_take_longer_or_shorter_steps(images):
    start = initial_weights(cnn(), 0)
    once, twice = (
        next(rounds(FedConfig(**{**SMALL, "rounds": 1}, server_lr=step), images)).progress.weights for step in (1, 2)
    )
    for name, x in start.items():
        torch.testing.assert_close(twice[name] - x, 2 * (once[name] - x), rtol=1e-4, atol=1e-6)


def test_an_update_from_the_servers_weights_undoes_the_down_link(images):
    """With no loss on the way up, the mean of the trained weights is then the new model."""
    options = {**SMALL, "rounds": 1, "epochs": 1, "clients_per_round": 1, "down": "cosine:3"}
    exact, received = (next(rounds(FedConfig(**options, up_from=origin), images)) for origin in ("server", "received"))
    start = initial_weights(cnn(), 0)
    for name in start:
        trained = start[name] - exact.updates[0][name]
        torch.testing.assert_close(exact.progress.weights[name], trained, rtol=0, atol=1e-6)
        torch.testing.assert_close(received.received[name] - received.updates[0][name], trained, rtol=0, atol=1e-6)


def test_differences_down_follow_the_server_and_reach_all_clients(images):
    config = FedConfig(**{**SMALL, "rounds": 3}, down="cosine:4", down_sends="difference")
    first, second, third = rounds(config, images)
    weights = initial_weights(cnn(), 0)
    assert all(torch.equal(first.received[name], x) for name, x in weights.items())
    assert first.record["bytes_down"] == 20 * wire.frame_bytes(weights, None)
    assert second.record["bytes_down"] == third.record["bytes_down"] == 20 * wire.frame_bytes(weights, 4)
    for name, x in second.progress.weights.items():  # received in round 3: what was held, and the quantized rest
        step = x - second.received[name]
        assert (third.received[name] - x).norm() <= 0.6 * step.norm() + 1e-6


def test_the_step_size_falls_along_half_a_cosine():
    config = FedConfig(rounds=5, lr=0.1, lr_schedule="cosine")
    steps = [federated.learning_rate(config, number) for number in range(1, 6)]
    assert steps == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 1e-6])
    assert federated.learning_rate(FedConfig(rounds=1, lr=0.1, lr_schedule="cosine"), 1) == 0.1


def test_accuracy_is_measured_when_asked_and_at_the_end(images):
    config = FedConfig(**{**SMALL, "rounds": 5, "epochs": 1}, evaluate_every=2)
    measured = [finished.record["accuracy"] is not None for finished in rounds(config, images)]
    assert measured == [False, True, False, True, True]


def test_a_run_that_is_over_goes_no_further(images):
    assert list(rounds(FedConfig(**SMALL), images, Progress(initial_weights(cnn(), 0), number=2))) == []


@pytest.mark.parametrize("device", ["warp", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named(device, capsys, tmp_path):
    assert main(["run", "--data", "embedded", "--device", device, "--runs", str(tmp_path)]) == 2
    assert f"device '{device}' cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"up": "cosine:2,mask=0.5", "up_feedback": True}, "up_feedback does not go with a mask"),
        ({"down": "none,mask=0.5", "down_feedback": True}, "down_feedback does not go with a mask"),
        ({"down": "cosine:2", "down_feedback": True, "down_sends": "difference"}, "already holds what was lost"),
    ],
)
def test_feedback_that_cannot_work_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        FedConfig(**options)


@pytest.mark.parametrize(
    "options", [{"lr": 1e20, "weight_decay": 1e20, "up": "cosine:2"}, {"lr": 1e38, "server_lr": 1e6}]
)
def test_weights_that_are_no_numbers_are_divergence_not_bad_input(images, options):
    config = FedConfig(**{**SMALL, "rounds": 1, "epochs": 1, "batch_size": 500}, **options)
    with pytest.raises(FloatingPointError, match=r"infinite or NaN|became"):
        list(rounds(config, images))


def test_a_client_that_is_not_drawn_keeps_its_memory(images):
    small = {
        "rounds": 3,
        "clients": 6,
        "clients_per_round": 2,
        "up": "uniform:2,rounding=stochastic",
        "up_feedback": True,
    }
    kept = [set(finished.progress.lost_up) for finished in rounds(FedConfig(**{**SMALL, **small}), images)]
    assert kept[0] <= kept[1] <= kept[2]
    assert len(kept[2]) > 2


def test_a_link_that_cannot_send_ordinary_weights_is_no_divergence(images):
    with pytest.raises(ValueError, match=r"divided by the mask's p if there is one, is .* and beyond torch.float32"):
        next(rounds(FedConfig(**{**SMALL, "down": "cosine:2,mask=1e-40"}), images))


@pytest.mark.parametrize("options", [{"up": "cosine:2"}, {"down": "cosine:8"}, {"up": "none,mask=0.01"}], ids=str)
def test_finite_weights_that_no_link_can_send_are_divergence_too(images, options):
    """Their norm, or they themselves divided by a mask's p, are beyond float32."""
    small = {"rounds": 2, "epochs": 1, "clients": 6, "clients_per_round": 2, "batch_size": 1000}
    config = FedConfig(**{**SMALL, **small}, weight_decay=1.0, lr=1e38, **options)
    with pytest.raises(FloatingPointError, match=r"tensor '\S+': .* beyond .*: the training diverged at lr=1e\+38"):
        list(rounds(config, images))


def test_each_colour_is_normalised_by_itself():
    images = load_data("cifar10", "embedded")
    dark = torch.tensor([1, 2, 4]).view(3, 1, 1)  # the digits' three channels are equal
    images = replace(images, train_x=images.train_x // dark, test_x=images.test_x // dark)
    train, _ = normalise(images)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(train.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)


def test_a_stream_belongs_to_its_seed_purpose_and_numbers():
    keys = [(0, "up", 1), (0, "in", 1), (1, "up", 1), (0, "up", 2), (0, "up", 1, 2), (0, "up", 2, 1)]
    drawn = [torch.rand(4, generator=federated.generator(*key)) for key in keys]
    assert len({tuple(each.tolist()) for each in drawn}) == len(keys)
    assert torch.equal(drawn[0], torch.rand(4, generator=federated.generator(*keys[0])))
