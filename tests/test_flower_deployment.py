"""The example app on real processes: a SuperLink and three SuperNodes on loopback, with TLS and registered keys.

One deployment for all tests, which run in this order. Nothing here depends on how long a step takes, only on limits.
"""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='Flower is not installed: pip install "cosquant-lite[flower]"')
from cosquant_lite import loopback
from cosquant_lite.datasets import load_data
from cosquant_lite.federated import FedConfig, rounds
from cosquant_lite.loopback import deployment

EXAMPLE = Path(__file__).parents[1] / "examples" / "flower_cifar10"
ROUND = re.compile(r"round (\d+): accuracy [\d.]+%, loss [\d.]+, bytes down ([\d,]+), up ([\d,]+), refused (\d+)")

SPOIL = '''
def spoil(message, context, call_next):
    """Partition 1 speaks another version of the format, partition 2 damages a byte."""
    reply = call_next(message, context)
    array, client = reply.content["arrays"]["cosquant.frame"], int(context.node_config["partition-id"])
    data = bytearray(array.data)
    if client == 1:
        data[4] = 99
    if client == 2:
        data[len(data) // 2] ^= 1
    array.data = bytes(data)
    return reply


app = ClientApp(mods=[spoil, compressed])
'''


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("flower"), nodes=3) as started:
        yield started


def changed_app(folder, old, new):
    """A copy of the example with one change in its client."""
    app = Path(shutil.copytree(EXAMPLE, folder / "app"))
    file = app / "flower_cifar10" / "client_app.py"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return app


def results(log):
    return [tuple(int(word.replace(",", "")) for word in line) for line in ROUND.findall(log)]


def test_damaged_and_foreign_frames_are_refused_by_name_and_the_round_goes_on(running, tmp_path):
    app = changed_app(tmp_path, "app = ClientApp(mods=[compressed])\n", SPOIL)
    log = running.run(app, nodes=3, clients=3, rounds=1, timeout=200.0)
    [(number, down, up, refused)] = results(log)
    assert (number, refused) == (1, 2)
    assert re.search(r"update of node \d+ is refused: .*version 99", log)
    assert re.search(r"update of node \d+ is refused: .*checksum", log)
    assert 3 * 122_867 < down < 3 * 123_200
    assert 3 * 30_938 < up < 3 * 31_100


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the compressed run below leaves its checkpoints, for the next test to go on from."""
    return tmp_path_factory.mktemp("kept")


def test_what_the_sockets_carry_is_the_frames_and_six_times_less_than_flower_s_float32(running, tmp_path, kept):
    """A round after the first, which ships the app. Idle nodes ask for work every three seconds, too."""
    lossless = {"down": "cosine:8,entropy=auto", "up": "cosine:2,entropy=auto"}
    compressed, frames = carried(running, kept, **lossless)
    whole, _ = carried(running, tmp_path / "float32", plain=True)
    assert 0 < compressed - frames < 3 * 45_000, "Flower's own requests and answers, a round of three nodes"
    assert 0 < whole - 3 * 2 * 490_280 < 3 * 120_000, "an array each for ten tensors: more requests"
    assert whole / compressed >= 6


def carried(running, folder, **settings):
    """Bytes of round 2, both ways: what the nodes' sockets carried, and what the metrics say."""
    seen = {}

    def watch():
        while len(seen) < 2 and not ended.wait(0.02):
            for file in folder.glob("round-*.frame"):  # the server's sign that a round is over
                seen.setdefault(file.name, running.wire.up + running.wire.down)

    ended = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        log = running.run(EXAMPLE, nodes=3, clients=3, rounds=2, timeout=200.0, checkpoint=str(folder), **settings)
    finally:
        ended.set()
        watcher.join()
    first, second = (seen[name] for name in sorted(seen))
    print(f"{settings}: {second - first:,} bytes on the sockets in round 2")
    return second - first, sum(sum(line[1:3]) for line in results(log)[-1:])


def test_the_server_goes_on_from_its_last_checkpoint_after_a_kill(running, kept):
    running.kill(running.superlink)
    running.start_superlink()
    again = running.run(EXAMPLE, rounds=3, nodes=3, clients=3, timeout=200.0, checkpoint=str(kept))
    assert [line[0] for line in results(again)] == [3]
    assert [file.name for file in sorted(kept.iterdir())] == [f"round-{number:05}.frame" for number in (1, 2, 3)]


def test_a_node_killed_in_the_middle_of_a_round_does_not_stop_the_others(running, tmp_path):
    marker = tmp_path / "training"
    app = changed_app(
        tmp_path,
        "    torch.set_num_threads(1)\n",
        "    torch.set_num_threads(1)\n"
        "    if context.node_config['partition-id'] == 2:\n"
        f"        open({str(marker)!r}, 'w').close()\n"
        "        __import__('time').sleep(300)\n",
    )

    def kill_when_it_trains():
        deadline = time.monotonic() + 100
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        running.kill(running.nodes[2])

    killer = threading.Thread(target=kill_when_it_trains)
    killer.start()
    log = running.run(app, nodes=2, clients=3, rounds=1, timeout=40.0)
    killer.join()
    assert marker.exists(), "the node was in the middle of its round"
    [(number, _, up, refused)] = results(log)
    assert (number, refused) == (1, 0)
    assert 2 * 30_938 < up < 2 * 31_100, "two of three updates"


@pytest.mark.alone
def test_the_simulation_engine_runs_the_same_app(tmp_path):
    for attempt in range(3):  # Ray gives up if its agent takes 15 s to start, as on a busy machine (ray issue 65983)
        home = tmp_path / f"simulation{attempt}"
        home.mkdir()
        with deployment(home, nodes=4, simulated=True) as engine:
            log = engine.run(EXAMPLE, nodes=4, clients=4, rounds=2, timeout=200.0)
        if "exit-codes/700" not in log:
            break
    config = FedConfig(
        data="embedded", rounds=1, clients=4, clients_per_round=4, batch_size=25, down="cosine:8,clip=0", up="cosine:2"
    )
    ours = next(rounds(config, load_data("cifar10", "embedded"))).record
    assert f"round 1: accuracy {ours['accuracy']:.2%}, loss {ours['loss']:.3f}" in log
    assert [line[0] for line in results(log)] == [1, 2]
    assert all(0 < line[2] - ours["bytes_up"] < 4 * 100 for line in results(log))


def test_a_node_that_has_ended_is_named_when_a_command_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(loopback, "BIN", tmp_path)
    (tmp_path / "flwr").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "flwr").chmod(0o700)
    (tmp_path / "node1.log").write_text("no such key")
    nodes = {0: subprocess.Popen(["sleep", "60"]), 1: subprocess.Popen(["true"])}
    nodes[1].wait()
    try:
        with pytest.raises(OSError, match=r"flwr run did not end within 0.5 s; SuperNode 1 has ended: no such key$"):
            loopback.Deployment(tmp_path, 1, None, nodes=nodes).flwr("run", timeout=0.5)
    finally:
        nodes[0].kill()
        nodes[0].wait()
