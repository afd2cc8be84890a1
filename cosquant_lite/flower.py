"""The same links on Flower: a strategy around any strategy, and a mod for the client app.

    strategy = Compressed(FedAvg(), down="cosine:8,clip=0", up="cosine:2")     # in the ServerApp
    app = ClientApp(mods=[compressed])                                  # in the ClientApp; first, outside other mods

The server's weights go down as one frame, the update (received minus trained weights) comes back as one frame. The
strategy inside sees what it always sees: a model from each client, here the server's exact weights minus the decoded
update, so that an average of models is the server's weights minus the average update. A frame travels as a Flower Array
of one dimension with stype "cosquant.frame"; everything else in a message stays as it is. A clip on the way down spoils
the server's own weights in a long run (notebook 10).

Needs `pip install "cosquant-lite[flower]"`.
"""

from collections.abc import Iterable
from logging import INFO, WARNING

import torch
from torch import Tensor

from cosquant_lite.link import Link, encode, parse_link
from cosquant_lite.streams import generator
from cosquant_lite.wire import EACH, decode

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp.typing import ClientAppCallable
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
    from flwr.supercore import log
except ImportError as error:
    raise ImportError(f'cosquant_lite.flower needs Flower: pip install "cosquant-lite[flower]" ({error})') from None

STYPE = "cosquant.frame"
LACKS_MOD = " (a ClientApp without mods=[compressed] fails on 'cosquant.frame')"
SETTINGS = "cosquant"  # the record that tells the client what to do with its update
NUMPY = (torch.float16, torch.float32, torch.float64)  # floating-point types that an Array can hold
State = dict[str, Tensor]


class Compressed(Strategy):
    """A strategy whose messages are compressed. down, up: links, as for `FedConfig`; up_feedback: each node adds what the
    up link lost to its next message; seed: of stochastic rounding, masks and rotations; after: rounds that an earlier
    run has done, if this one goes on from its weights (what a node remembers for up_feedback ends with the run).

    Adds to the training metrics, for training messages of this round: nodes, their ids; frame-bytes-down and -up, the
    frames; bytes-down and bytes-up, all records as Flower counts them; node-bytes-down and -up, of each node; refused,
    how many updates were damaged; ratio, how many times larger the messages would have been as they were. RuntimeError
    if all updates were damaged. Messages of evaluation are compressed, too, and not counted.

    Must be the outermost strategy. Statistics of BatchNorm are quantized like every floating-point tensor.
    """

    def __init__(self, strategy: Strategy, down="none", up="none", up_feedback=False, seed=0, after=0):
        if not isinstance(strategy, Strategy) or isinstance(strategy, Compressed):
            got = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
            raise TypeError(f"strategy must be one of flwr.serverapp.strategy such as FedAvg(), got {got}")
        self.strategy, self.down, self.up = strategy, parse_link(down), up
        if parse_link(up).mask < 1 and up_feedback:
            raise ValueError("up_feedback does not go with a mask: what a masked message lost grows without end")
        if not isinstance(up_feedback, bool):
            raise ValueError(f"up_feedback must be True or False, got {up_feedback!r}")
        for name, value in (("seed", seed), ("after", after)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise ValueError(f"{name} must be a whole number of at least 0 and below 2**63, got {value!r}")
        self.feedback, self.seed, self.after = up_feedback, seed, after
        self._sent: dict[int, dict[str, State]] = {}  # of each node: a strategy may send them different weights
        self._metrics: dict = {}
        self._plain = 0  # bytes that this round would have had without compression

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid):
        """The messages of the strategy inside, with frames instead of weights."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if any(name.endswith("running_var") for name in arrays) and server_round == 1:
            log(WARNING, "BatchNorm's running variance is quantized, too, and may become negative: watch for NaN")
        self._plain = sum(_bytes(message) for message in messages)
        self._sent = self._compress(messages, server_round, "down")
        nodes = [message.metadata.dst_node_id for message in messages]
        self._metrics = {
            "nodes": nodes,
            "frame-bytes-down": sum(_frame_bytes(message) for message in messages),
            "bytes-down": sum(_bytes(message) for message in messages),
            "node-bytes-down": [_bytes(message) for message in messages],
        }
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """What the strategy inside makes of the decoded updates; a damaged one is left out, named and counted."""
        good, sizes, refused, frames = [], {}, 0, 0
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                hint = LACKS_MOD if STYPE in reply.error.reason else ""
                log(WARNING, "round %d: node %d failed: %s%s", server_round, node, reply.error.reason, hint)
            else:
                frames, sizes[node] = frames + _frame_bytes(reply), _bytes(reply)
                try:
                    self._plain += self._restore(reply)
                except ValueError as error:  # WireError is one
                    refused += 1
                    log(WARNING, "round %d: the update of node %d is refused: %s", server_round, node, error)
                    continue
            good.append(reply)
        if refused and refused == len(sizes):
            raise RuntimeError(f"round {server_round}: all {refused} updates were refused; the log says why")
        arrays, metrics = self.strategy.aggregate_train(server_round, good)
        self._metrics |= {
            "frame-bytes-up": frames,
            "bytes-up": sum(sizes.values()),
            "node-bytes-up": [sizes.get(node, 0) for node in self._metrics["nodes"]],
            "refused": refused,
        }
        cost = self._metrics["bytes-down"] + self._metrics["bytes-up"]
        self._metrics["ratio"] = self._plain / max(cost, 1)
        if len(sizes) > refused:
            log(INFO, "round %d: %s bytes, %.2f times smaller", server_round, f"{cost:,}", self._metrics["ratio"])
        else:
            log(WARNING, "round %d: no node answered with an update", server_round)
        return arrays, MetricRecord({**(metrics or {}), **self._metrics})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid):
        """The messages of the strategy inside, with frames instead of weights."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._compress(messages, server_round, "evaluate")
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]):
        """As the strategy inside."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy inside."""
        self.strategy.summary()

    def _compress(self, messages: list[Message], server_round: int, purpose: str) -> dict[int, dict[str, State]]:
        """Replace every ArrayRecord by a frame, once for all messages that share it; returns what it was, by node."""
        number = self.after + server_round
        settings, sent = {"up": self.up, "feedback": self.feedback, "seed": self.seed, "round": number}, {}
        done: dict[int, tuple] = {}  # of each content: itself, so that its id stays its own, the new one, its states
        for message in messages:
            old = message.content
            if id(old) not in done:
                states = {key: _state(record) for key, record in old.array_records.items()}
                limits = {"limit": max(map(_limit, states.values()), default=0)}
                new = RecordDict({**old, SETTINGS: ConfigRecord(settings | limits)})
                coins = generator(self.seed, purpose, number)
                for key, state in states.items():
                    new[key] = _frame(state, self.down, coins)
                done[id(old)] = old, new, states
            message.content = done[id(old)][1]
            sent[message.metadata.dst_node_id] = done[id(old)][2]
        return sent

    def _restore(self, reply: Message) -> int:
        """Replace every frame by the server's exact weights minus the update in it; bytes of the reply without frames."""
        plain = sum(record.count_bytes() for record in reply.content.values() if not _is_frame(record))
        for key, record in list(reply.content.array_records.items()):
            exact = self._sent.get(reply.metadata.src_node_id, {}).get(key)
            if exact is None:
                continue
            if not _is_frame(record):
                raise ValueError(f"{key!r} is not a frame: the client app lacks mods=[compressed]")
            update = decode(record[STYPE].data, limit=_limit(exact))
            shapes = [(name, x.shape) for name, x in exact.items()]
            if [(name, x.shape) for name, x in update.items()] != shapes:
                raise ValueError(f"{key!r} holds other tensors than were sent")
            for name, x in exact.items():
                ours, theirs = x.dtype, update[name].dtype
                if ours != theirs and not (ours.is_floating_point and theirs in NUMPY):
                    raise ValueError(f"{key!r} holds {name!r} as {theirs}, which was sent as {ours}")
            if not all(x.isfinite().all() for x in update.values()):
                raise ValueError(f"{key!r} holds infinite or NaN values")
            model = {name: _difference(x, update[name]) for name, x in exact.items()}
            reply.content[key] = _record(model)  # in the client's precision: FedAdam's own weights are float64
            plain += reply.content[key].count_bytes()
        return plain


def compressed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Client mod: the app sees plain weights and answers with plain weights. Without `Compressed` it does nothing."""
    if SETTINGS not in message.content:
        log(INFO, "messages are not compressed: the ServerApp's strategy is not in Compressed(...)")
        return call_next(message, context)
    content, settings = message.content, message.content[SETTINGS]
    frames = {key: record[STYPE].data for key, record in content.array_records.items() if _is_frame(record)}
    received = {key: decode(frame, limit=settings["limit"]) for key, frame in frames.items()}
    plain = {key: record for key, record in content.items() if key != SETTINGS}
    message.content = RecordDict({**plain, **{key: _record(state) for key, state in received.items()}})
    training = message.metadata.message_type.startswith(MessageType.TRAIN)
    reply = call_next(message, context)
    if training and not reply.has_error():
        client = int(context.node_config.get("partition-id", context.node_id % 2**63))
        coins = generator(settings["seed"], "up", settings["round"], client)
        for key in [key for key in received if key in reply.content.array_records]:
            trained = _state(reply.content[key])
            _check_same(key, trained, received[key])
            update = {name: _difference(x, trained[name]) for name, x in received[key].items()}
            reply.content[key] = _uplink(update, key, settings, coins, context)
    return reply


def _check_same(key: str, answer: State, sent: State) -> None:
    """ValueError if the client app answers with other tensors than it was sent, of which there is no update."""
    theirs, ours = ({name: tuple(x.shape) for name, x in state.items()} for state in (answer, sent))
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"{key!r}: the client app must answer with the tensors that it was sent; {name!r} had the shape "
                f"{ours.get(name, 'of none that was sent')}, the answer {theirs.get(name, 'lacks it')}"
            )


def _uplink(update: State, key: str, settings: ConfigRecord, coins: torch.Generator, context: Context) -> ArrayRecord:
    """The frame of an update; with feedback, what it loses stays in the node's state, with the round."""
    link, memory, when = parse_link(settings["up"]), f"{SETTINGS}-lost-{key}", f"{SETTINGS}-round-{key}"
    if not settings["feedback"]:
        return _frame(update, link, coins)
    earlier = when in context.state and context.state[when]["round"] < settings["round"]  # or it is another run's
    lost = _state(context.state[memory]) if earlier else {}
    wanted = {name: x + lost[name] if name in lost else x for name, x in update.items()}
    record = _frame(wanted, link, coins)
    arrived = decode(record[STYPE].data, limit=_limit(wanted))
    context.state[memory] = _record({name: x - arrived[name] for name, x in wanted.items() if x.is_floating_point()})
    context.state[when] = ConfigRecord({"round": settings["round"]})
    return record


def _frame(state: State, link: Link, coins: torch.Generator) -> ArrayRecord:
    blob = encode(state, link, coins)
    return ArrayRecord({STYPE: Array(dtype="uint8", shape=(len(blob),), stype=STYPE, data=blob)})


def _difference(x: Tensor, y: Tensor) -> Tensor:
    """x - y in the precision of y; of truth values, where they differ."""
    return x ^ y if x.dtype == y.dtype == torch.bool else (x - y).to(y.dtype)


def _limit(state: State) -> int:
    """For `decode` of a frame of these tensors: top=K sends entries, positions, and becomes whole tensors again."""
    return 3 * sum(x.nbytes + EACH for x in state.values())


def _is_frame(record: ArrayRecord) -> bool:
    return list(record) == [STYPE]


def _state(record: ArrayRecord) -> State:
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def _record(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(x.numpy()) for name, x in state.items()})


def _frame_bytes(message: Message) -> int:
    return sum(len(record[STYPE].data) for record in message.content.array_records.values() if _is_frame(record))


def _bytes(message: Message) -> int:
    """All records, as Flower's own message_size_mod counts them."""
    return sum(record.count_bytes() for record in message.content.values())
