"""A client: trains the weights it receives on its own part of the images. It does not know of any compression."""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cosquant_lite.classification import normalise
from cosquant_lite.datasets import load_data, partition
from cosquant_lite.flower import compressed
from cosquant_lite.models import cnn
from cosquant_lite.streams import generator
from cosquant_lite.training import LocalSGD, train_client

app = ClientApp(mods=[compressed])


@cache
def part(data: str, clients: int, seed: int, client: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Images and labels of one client, and how many classes there are."""
    if client >= clients:
        raise ValueError(
            f"partition-id {client}, but the images are dealt to clients={clients}: give --run-config more"
        )
    images = load_data("cifar10", data)
    mine = partition.split("iid", images.train_y, clients, generator(seed, "split"))[client]
    return (
        normalise(images)[0][mine].contiguous(memory_format=torch.channels_last),
        images.train_y[mine],
        len(images.classes),
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: E epochs of SGD."""
    torch.set_num_threads(1)
    settings, config = context.run_config, message.content["config"]
    client, seed = int(context.node_config["partition-id"]), settings["seed"]
    x, y, classes = part(settings["data"], settings["clients"], seed, client)
    shuffle = generator(seed, "client", config["after"] + config["server-round"], client)
    sgd = LocalSGD(settings["epochs"], settings["batch-size"], settings["lr"])
    weights = message.content["arrays"].to_torch_state_dict()
    model = cnn(classes).to(memory_format=torch.channels_last)
    trained, loss = train_client(model, weights, x, y, shuffle, sgd)
    metrics = MetricRecord({"num-examples": len(y), "loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)
