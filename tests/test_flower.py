"""Flower with compressed links: any strategy, any app, damage, memory, and the same numbers as the engine."""

import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from cosquant_lite import wire
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, Progress, rounds
from cosquant_lite.link import parse_link, send
from cosquant_lite.models import cnn, initial_weights

flwr = pytest.importorskip("flwr", reason='Flower is not installed: pip install "cosquant-lite[flower]"')
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from cosquant_lite.flower import STYPE, Compressed, compressed  # noqa: E402


@pytest.fixture(autouse=True)
def _server_identity(monkeypatch):
    """What Flower sets in the process of a ServerApp before it runs; messages need it."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)


class Loopback:
    """A grid whose nodes are function calls: each message is copied, as a wire would do it."""

    def __init__(self, app, nodes=4, config=None, spoil=lambda number, reply: reply):
        self.app, self.spoil = app, spoil
        self.contexts = {
            100 + i: Context(1, 100 + i, {"partition-id": i, "num-partitions": nodes}, RecordDict(), config or {})
            for i in range(nodes)
        }

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            content = RecordDict(dict(message.content))
            arriving = Message(content, message_type=message.metadata.message_type, dst_node_id=node)
            reply = self.app(arriving, self.contexts[node])
            training = message.metadata.message_type.startswith("train")
            replies.append(self.spoil(node - 100, reply) if training else reply)
        return replies


class Failing(Loopback):
    """Nodes whose app fails, and what Flower makes of that."""

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for message in messages:
            with pytest.raises((TypeError, ValueError)) as error:
                self.app(message, self.contexts[message.metadata.dst_node_id])
            reason = f"{error.type}:<'{error.value}'>"  # as in flwr/supernode/runtime/run_clientapp.py
            replies.append(Message(Error(code=0, reason=reason), reply_to=message))
        return replies


def toy(mods, seen=None):
    """A client that moves every weight by a random step of its own."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        if seen is not None:
            seen.append(state)
        draws = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
        after = {
            name: (w - 0.1 * torch.randn(w.shape, generator=draws)).float() if w.is_floating_point() else w + 1
            for name, w in state.items()
        }
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(after),
                    "metrics": MetricRecord({"num-examples": 10 * (1 + int(context.node_config["partition-id"]))}),
                }
            ),
            reply_to=message,
        )

    @app.evaluate()
    def evaluate(message, context):
        total = sum(w.abs().sum().item() for w in message.content["arrays"].to_torch_state_dict().values())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "total": total})}), reply_to=message)

    return app


STATE = {
    "layer.weight": torch.linspace(-1, 1, 600).view(20, 30),
    "layer.bias": torch.zeros(20),
    "seen": torch.tensor(3),
}


def play(strategy, app, rounds=1, **grid):
    return strategy.start(Loopback(app, **grid), ArrayRecord(STATE), num_rounds=rounds)


def test_without_compression_it_is_the_strategy_itself():
    plain = play(FedAvg(), toy([]), 2).arrays.to_torch_state_dict()
    ours = play(Compressed(FedAvg()), toy([compressed]), 2).arrays.to_torch_state_dict()
    for name, x in plain.items():
        torch.testing.assert_close(ours[name], x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make", [FedAvg, lambda: FedAdam(eta=0.01), lambda: FedProx(proximal_mu=0.1)], ids=["FedAvg", "FedAdam", "FedProx"]
)
def test_built_in_strategies_work_as_they_are(make):
    plain = play(make(), toy([]), 2).arrays.to_torch_state_dict()
    ours = play(
        Compressed(make(), down="cosine:8", up="cosine:8,clip=0"), toy([compressed]), 2
    ).arrays.to_torch_state_dict()
    moved = (plain["layer.weight"] - STATE["layer.weight"]).norm()
    assert (ours["layer.weight"] - plain["layer.weight"]).norm() < 0.1 * moved
    assert ours["layer.weight"].shape == (20, 30)


def test_clients_see_what_the_down_link_leaves_and_the_server_keeps_its_exact_weights():
    seen = []
    result = play(Compressed(FedAvg(), down="cosine:2"), toy([compressed], seen))
    assert len(seen[0]["layer.weight"].unique()) <= 4
    assert torch.equal(seen[0]["seen"], STATE["seen"]), "counters travel exactly"
    sizes = [10, 20, 30, 40]
    steps = [0.1 * torch.randn(20, 30, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    expected = STATE["layer.weight"] - sum(n / 100 * step for n, step in zip(sizes, steps))
    torch.testing.assert_close(result.arrays.to_torch_state_dict()["layer.weight"], expected, rtol=0, atol=1e-6)


def test_bytes_are_those_of_the_frames_plus_a_stated_overhead():
    metrics = play(Compressed(FedAvg(), down="cosine:8", up="cosine:2"), toy([compressed])).train_metrics_clientapp[1]
    assert metrics["frame-bytes-down"] == 4 * wire.frame_bytes(STATE, 8)
    assert metrics["frame-bytes-up"] == 4 * wire.frame_bytes(STATE, 2)
    assert sorted(metrics["nodes"]) == [100, 101, 102, 103]
    assert metrics["node-bytes-up"] == [metrics["bytes-up"] // 4] * 4
    assert metrics["node-bytes-down"] == [metrics["bytes-down"] // 4] * 4
    assert 0 < metrics["bytes-down"] - metrics["frame-bytes-down"] < 4 * 200
    assert 0 < metrics["bytes-up"] - metrics["frame-bytes-up"] < 4 * 100
    assert metrics["refused"] == 0
    state = ArrayRecord(STATE)
    plain = 4 * 2 * state.count_bytes()
    assert metrics["ratio"] == pytest.approx(plain / (metrics["bytes-down"] + metrics["bytes-up"]), rel=0.05)


def flip(number, reply):
    if number == 2:
        array = reply.content["arrays"][STYPE]
        middle = len(array.data) // 2
        array.data = array.data[:middle] + bytes([array.data[middle] ^ 1]) + array.data[middle + 1 :]
    return reply


def version(number, reply):
    if number == 2:
        array = reply.content["arrays"][STYPE]
        array.data = array.data[:4] + bytes([99]) + array.data[5:]
    return reply


def plain(number, reply):
    if number == 2:
        reply.content["arrays"] = ArrayRecord(STATE)
    return reply


def other(number, reply):
    if number == 2:
        reply.content["arrays"][STYPE].data = wire.encode({"other": torch.zeros(3)}, None)
    return reply


def nan(number, reply):
    if number == 2:
        spoilt = {**STATE, "layer.bias": torch.full((20,), torch.nan)}
        reply.content["arrays"][STYPE].data = wire.encode(spoilt, None)
    return reply


def of_type(dtype):
    def spoil(number, reply):
        if number == 2:
            spoilt = {name: x.to(dtype) if x.is_floating_point() else x for name, x in STATE.items()}
            reply.content["arrays"][STYPE].data = wire.encode(spoilt, None)
        return reply

    return spoil


@pytest.mark.parametrize(("spoil", "words"), [
    (flip, "checksum"), (version, "version 99"), (plain, "lacks mods"), (other, "other tensors"), (nan, "infinite or NaN"),
    (of_type(torch.bool), "as torch.bool, which was sent as torch.float32"), (of_type(torch.int8), "as torch.int8"),
    (of_type(torch.bfloat16), "as torch.bfloat16"),
])  # fmt: skip
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(spoil, words, caplog):
    result = play(Compressed(FedAvg(), up="none"), toy([compressed]), spoil=spoil)
    assert result.train_metrics_clientapp[1]["refused"] == 1
    assert "round 1: the update of node 102 is refused" in caplog.text
    assert words in caplog.text
    sizes = {0: 10, 1: 20, 3: 40}
    steps = {i: 0.1 * torch.randn(20, 30, generator=torch.Generator().manual_seed(i)) for i in sizes}
    expected = STATE["layer.weight"] - sum(n / 70 * steps[i] for i, n in sizes.items())
    torch.testing.assert_close(result.arrays.to_torch_state_dict()["layer.weight"], expected, rtol=0, atol=1e-6)


def test_nodes_may_be_sent_different_weights():
    class Shifted(FedAvg):
        """Half of the nodes get other weights."""

        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            shifted = ArrayRecord({name: x + 1 for name, x in arrays.to_torch_state_dict().items()})
            for message in messages:  # in any order
                if message.metadata.dst_node_id % 2:
                    message.content = RecordDict({**message.content, "arrays": shifted})
            return messages

    plain, wrapped = (
        play(strategy, toy(mods)) for strategy, mods in ((Shifted(), []), (Compressed(Shifted()), [compressed]))
    )
    for name, x in plain.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(wrapped.arrays.to_torch_state_dict()[name], x, rtol=0, atol=1e-6)


def test_truth_values_travel_as_themselves():
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        assert state["flags"].tolist() == [True, False, True]
        state["flags"][0] = False
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    class Kept(FedAvg):
        def aggregate_train(self, server_round, replies):
            self.seen = [reply.content["arrays"].to_torch_state_dict()["flags"].tolist() for reply in replies]
            return super().aggregate_train(server_round, replies)

    inside = Kept(fraction_evaluate=0)
    first = ArrayRecord({**STATE, "flags": torch.tensor([True, False, True])})
    Compressed(inside, up="cosine:2").start(Loopback(app), first, num_rounds=1)
    assert inside.seen == [[False, False, True]] * 4


def test_a_round_of_bad_updates_only_is_an_error():
    with pytest.raises(RuntimeError, match="all 4 updates were refused"):
        play(Compressed(FedAvg()), toy([compressed]), spoil=lambda number, reply: plain(2, reply))


def test_a_node_that_fails_is_left_out():
    def fail(number, reply):
        return Message(Error(code=0, reason="gone"), reply_to=reply) if number == 0 else reply

    metrics = play(Compressed(FedAvg(), up="cosine:2"), toy([compressed]), spoil=fail).train_metrics_clientapp[1]
    assert metrics["refused"] == 0
    assert metrics["node-bytes-up"].count(0) == 1


def test_nodes_without_the_mod_are_told_what_they_lack(caplog):
    Compressed(FedAvg(), down="cosine:8").start(Failing(toy([])), ArrayRecord(STATE), num_rounds=1)
    assert len(re.findall(r"failed: .*TypeError.* \(a ClientApp without mods=\[compressed\]", caplog.text)) == 4
    assert "no node answered with an update" in caplog.text
    assert "times smaller" not in caplog.text


def test_a_node_with_another_version_of_the_format_says_so_and_nothing_else_is_blamed(caplog):
    class Newer(Failing):
        def send_and_receive(self, messages, timeout=None):
            messages = list(messages)
            for frame in {id(message.content): message.content["arrays"][STYPE] for message in messages}.values():
                frame.data = frame.data[:4] + bytes([99]) + frame.data[5:]
            return super().send_and_receive(messages, timeout)

    Compressed(FedAvg(), down="cosine:8").start(Newer(toy([compressed])), ArrayRecord(STATE), num_rounds=1)
    assert len(re.findall("round 1: node .*frame version 99; this package reads version 2", caplog.text)) == 4
    assert "without mods" not in caplog.text


def test_the_ratio_counts_updates_in_the_client_s_precision():
    """After its first step FedAdam's weights are float64; clients answer in float32, with compression or without."""
    result = play(Compressed(FedAdam(), down="cosine:8", up="cosine:2"), toy([compressed]), rounds=2)
    first, second = (
        metrics["ratio"] * (metrics["bytes-down"] + metrics["bytes-up"])
        for metrics in result.train_metrics_clientapp.values()
    )
    weights = sum(x.nbytes for x in STATE.values() if x.is_floating_point())
    assert abs(second - first - 4 * weights) < 100, "twice as long down to four nodes, the same up"


def test_running_statistics_are_warned_of(caplog):
    strategy = Compressed(FedAvg(), down="cosine:8", up="cosine:2")
    strategy.start(
        Loopback(toy([compressed])), ArrayRecord({**STATE, "norm.running_var": torch.ones(20)}), num_rounds=2
    )
    assert caplog.text.count("running variance is quantized, too") == 1


@pytest.mark.parametrize("wrong", [FedAvg, "FedAvg", Compressed(FedAvg())])
def test_what_is_no_strategy_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match=r"such as FedAvg\(\), got (FedAvg|str|Compressed)"):
        Compressed(wrong)


def test_error_feedback_stays_in_the_node_s_state():
    """A constant update through one sign bit: with memory the sum of what arrives follows the sum of what was sent."""
    app = toy([compressed])
    total = {}
    for feedback in (False, True):
        result = play(Compressed(FedAvg(), up="sign", up_feedback=feedback), app, 40, nodes=2)
        moved = STATE["layer.weight"] - result.arrays.to_torch_state_dict()["layer.weight"]
        steps = [0.1 * torch.randn(20, 30, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        exact = 40 * (steps[0] / 3 + 2 * steps[1] / 3)
        total[feedback] = ((moved - exact).norm() / exact.norm()).item()
    assert total[True] < 0.3 * total[False]


def test_what_a_node_remembers_of_another_run_is_not_added():
    """Flower keeps the state of a node over the runs of a series."""
    grid = Loopback(toy([compressed]), 2)
    first, second = (
        Compressed(FedAvg(), up="sign", up_feedback=True).start(grid, ArrayRecord(STATE), num_rounds=2)
        for _ in range(2)
    )
    for name, w in first.arrays.to_torch_state_dict().items():
        assert torch.equal(w, second.arrays.to_torch_state_dict()[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "layer.bias": torch.ones(1)}, r"'layer.bias' had the shape \(20,\), the answer \(1,\)"),
        (lambda s: {**s, "new": torch.ones(2)}, r"'new' had the shape of none that was sent, the answer \(2,\)"),
        (lambda s: {"seen": s["seen"]}, r"'layer.bias' had the shape \(20,\), the answer lacks it"),
    ],
)
def test_an_app_that_answers_with_other_tensors_is_told_which(change, words):
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        state = change(message.content["arrays"].to_torch_state_dict())
        return Message(RecordDict({"arrays": ArrayRecord(state)}), reply_to=message)

    with pytest.raises(
        ValueError, match=f"'arrays': the client app must answer with the tensors that it was sent; {words}"
    ):
        Compressed(FedAvg()).start(Loopback(app), ArrayRecord(STATE), num_rounds=1)


def test_an_app_may_answer_in_another_order():
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        moved = {name: state[name] + 1 for name in reversed(state)}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    result = (
        Compressed(FedAvg(fraction_evaluate=0))
        .start(Loopback(app), ArrayRecord(STATE), num_rounds=1)
        .arrays.to_torch_state_dict()
    )
    torch.testing.assert_close(result["layer.weight"], STATE["layer.weight"] + 1)


def test_an_app_with_the_mod_runs_under_a_plain_strategy():
    ours, theirs = (play(FedAvg(), toy(mods), 1).arrays.to_torch_state_dict() for mods in ([compressed], []))
    torch.testing.assert_close(ours["layer.weight"], theirs["layer.weight"], rtol=0, atol=1e-6)


def test_evaluation_gets_the_compressed_model():
    strategy = Compressed(FedAvg(), down="cosine:2")
    result = play(strategy, toy([compressed]))
    exact = result.arrays.to_torch_state_dict()
    arrives = send(exact, parse_link("cosine:2")).state
    totals = [sum(w.abs().sum().item() for w in state.values()) for state in (exact, arrives)]
    assert result.evaluate_metrics_clientapp[1]["total"] == pytest.approx(totals[1], rel=1e-6)
    assert totals[0] != pytest.approx(totals[1], rel=1e-2)


def test_bad_links_are_refused_at_once():
    for name, value in (("seed", -1), ("after", -3), ("after", "2"), ("after", 1.5)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 0"):
            Compressed(FedAvg(), **{name: value})
    with pytest.raises(ValueError, match="up_feedback must be True or False, got 'yes'"):
        Compressed(FedAvg(), up="sign", up_feedback="yes")
    with pytest.raises(ValueError, match="unknown quantizer 'cosin'"):
        Compressed(FedAvg(), up="cosin:2")
    with pytest.raises(ValueError, match="does not go with a mask"):
        Compressed(FedAvg(), up="cosine:2,mask=0.1", up_feedback=True)


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, "examples/flower_cifar10")
    from flower_cifar10 import client_app

    yield client_app.app
    sys.path.pop(0)


def test_the_example_as_it_is_fits_the_nodes_that_flower_simulates():
    """Otherwise `flwr run examples/flower_cifar10` waits without end."""
    from flwr.supercore.constant import DEFAULT_SIMULATION_CONFIG

    settings = tomllib.loads(Path("examples/flower_cifar10/pyproject.toml").read_text())["tool"]["flwr"]["app"][
        "config"
    ]
    assert settings["nodes"] == settings["clients"] == DEFAULT_SIMULATION_CONFIG.num_supernodes


def both_ways(example, lr, **links):
    """The engine's rounds and the weights after each round on Flower, three rounds of four clients."""
    config = FedConfig(data="embedded", rounds=3, clients=4, clients_per_round=4, batch_size=25, lr=lr, **links)
    settings = {"data": "embedded", "clients": 4, "seed": 0, "epochs": 1, "batch-size": 25, "lr": lr}
    states = []

    def keep(number, arrays):
        states.append(arrays.to_torch_state_dict())
        return MetricRecord({})

    strategy = Compressed(FedAvg(fraction_evaluate=0.0), **links)
    start = {"initial_arrays": ArrayRecord(initial_weights(cnn(), 0)), "train_config": ConfigRecord({"after": 0})}
    result = strategy.start(Loopback(example, config=settings), num_rounds=3, evaluate_fn=keep, **start)
    return config, states, result


@pytest.mark.parametrize("links", [{}, {"down": "cosine:8", "up": "cosine:2"}], ids=["float32", "compressed"])
def test_every_round_is_the_engine_s_round(example, links):
    """From the same weights. (Training enlarges a difference of the last bit: over several rounds see below.)"""
    config, states, result = both_ways(example, 0.1, **links)
    for number in range(3):
        ours = next(rounds(config, load_data("cifar10", "embedded"), Progress(states[number], number)))
        for name, w in ours.progress.weights.items():
            torch.testing.assert_close(states[number + 1][name], w, rtol=0, atol=1e-6)
        metrics = result.train_metrics_clientapp[number + 1]
        assert metrics["frame-bytes-up"] == ours.record["bytes_up"]
        assert metrics["frame-bytes-down"] == ours.record["bytes_down"]
        assert metrics["loss"] == pytest.approx(ours.record["loss"], rel=1e-5)


def test_three_rounds_end_at_the_same_weights(example):
    config, states, _ = both_ways(example, 0.02)
    *_, last = rounds(config, load_data("cifar10", "embedded"))
    ours, start = last.progress.weights, initial_weights(cnn(), 0)
    off = sum((states[3][name] - w).square().sum() for name, w in ours.items()).sqrt()
    moved = sum((start[name] - w).square().sum() for name, w in ours.items()).sqrt()
    assert off < 0.01 * moved, "Flower sums the nodes in random order: the last bits differ, and training enlarges that"


def test_the_package_does_not_need_flower_and_the_module_says_what_to_install():
    code = (
        "import sys; sys.modules['flwr'] = None; import cosquant_lite\n"
        "try:\n    import cosquant_lite.flower\nexcept ImportError as error:\n    print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "cosquant-lite[flower]"' in printed


def test_what_a_node_remembers_of_a_run_of_one_round_is_not_added_to_the_next_run():
    """The first round of both has the same number."""
    grid = Loopback(toy([compressed]), 2)
    first, second = (
        Compressed(FedAvg(), up="sign", up_feedback=True).start(grid, ArrayRecord(STATE), num_rounds=1)
        for _ in range(2)
    )
    for name, w in first.arrays.to_torch_state_dict().items():
        assert torch.equal(w, second.arrays.to_torch_state_dict()[name])


@pytest.mark.parametrize("down", ["cosine:2,rounding=stochastic", "none"])
def test_other_seeds_and_rounds_have_other_coins(down):
    """down alone, then up alone."""
    up = "none" if down != "none" else "cosine:2,rounding=stochastic"

    def end(**options):
        seen = []
        result = play(Compressed(FedAvg(), down=down, up=up, **options), toy([compressed], seen))
        return seen[0]["layer.weight"] if up == "none" else result.arrays.to_torch_state_dict()["layer.weight"]

    first = end()  # up to rounding: Flower draws the order in which nodes are added
    assert torch.allclose(end(seed=0, after=0), first, atol=1e-5)
    for options in ({"seed": 1}, {"after": 1}):
        assert not torch.allclose(end(**options), first, atol=1e-3)


@pytest.mark.parametrize("name", ["partition-id", "none"])
def test_every_node_has_coins_of_its_own(name):
    """With a deployment that numbers no partitions, too."""
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        moved = {key: w + torch.linspace(-1, 1, w.numel()).view(w.shape).to(w.dtype) for key, w in state.items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    class Kept(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.seen = [reply.content["arrays"].to_torch_state_dict()["layer.weight"] for reply in replies]
            return super().aggregate_train(server_round, replies)

    grid, inside = Loopback(app, 2), Kept(fraction_evaluate=0)
    for context in grid.contexts.values():
        context.node_config = {k: v for k, v in context.node_config.items() if k == name}
    Compressed(inside, up="cosine:2,rounding=stochastic").start(grid, ArrayRecord(STATE), num_rounds=1)
    assert not torch.equal(*inside.seen)


def test_a_frame_that_would_grow_beyond_what_was_sent_is_refused_before_it_does(caplog):
    def bomb(number, reply):
        if number == 2:
            reply.content["arrays"][STYPE].data = wire.encode({"large": torch.zeros(10**6)}, None)
        return reply

    play(Compressed(FedAvg()), toy([compressed]), spoil=bomb)
    assert "allows no more than that" in caplog.text


def test_a_node_decodes_no_more_than_the_server_says(caplog):
    class Growing(Failing):
        def send_and_receive(self, messages, timeout=None):
            messages = list(messages)
            for message in messages:
                message.content["arrays"][STYPE].data = wire.encode({"large": torch.zeros(10**6)}, None)
            return super().send_and_receive(messages, timeout)

    Compressed(FedAvg()).start(Growing(toy([compressed])), ArrayRecord(STATE), num_rounds=1)
    assert "allows no more than that" in caplog.text


def test_updates_with_nodes_that_failed_are_all_refused_if_those_that_came_are():
    def spoil(number, reply):
        return Message(Error(code=0, reason="gone"), reply_to=reply) if number == 0 else plain(2, reply)

    with pytest.raises(RuntimeError, match="all 3 updates were refused"):
        play(Compressed(FedAvg()), toy([compressed]), spoil=spoil)


def test_seeds_that_do_not_fit_a_message_are_refused_at_once():
    for value in (2**63, True):
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0 and below"):
            Compressed(FedAvg(), seed=value)


def test_infinite_updates_are_refused(caplog):
    def infinite(number, reply):
        if number == 2:
            spoilt = {**STATE, "layer.bias": torch.full((20,), torch.inf)}
            reply.content["arrays"][STYPE].data = wire.encode(spoilt, None)
        return reply

    assert play(Compressed(FedAvg()), toy([compressed]), spoil=infinite).train_metrics_clientapp[1]["refused"] == 1


def test_the_app_does_not_see_the_settings_and_its_own_records_come_back():
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        assert sorted(message.content) == ["arrays", "config"]
        own, metrics = ArrayRecord({"mine": torch.ones(2)}), MetricRecord({"num-examples": 1})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "own": own, "metrics": metrics}), reply_to=message
        )

    class Kept(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.seen = [reply.content["own"].to_torch_state_dict()["mine"].tolist() for reply in replies]
            for reply in replies:
                del reply.content["own"]
            return super().aggregate_train(server_round, replies)

    inside = Kept(fraction_evaluate=0)
    Compressed(inside, up="cosine:2").start(Loopback(app), ArrayRecord(STATE), num_rounds=1)
    assert inside.seen == [[1.0, 1.0]] * 4


def test_truth_values_and_feedback_go_together():
    app = ClientApp(mods=[compressed])

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    first = ArrayRecord({"w": torch.ones(20), "flags": torch.tensor([True, False])})
    strategy = Compressed(FedAvg(fraction_evaluate=0), up="sign", up_feedback=True)
    assert strategy.start(Loopback(app), first, num_rounds=1).train_metrics_clientapp[1]["refused"] == 0
