"""What the clients learn: all that the federated loop need not know about images or volumes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from cosquant_lite.training import Pool, State, as_they_are, nothing

METRICS = {"cifar10": ("accuracy",), "brats": ("dice", "dice_cases")}  # what is measured of each data set


@dataclass(frozen=True, eq=False)
class Task:
    """A network, the samples of each client, the loss, and how the result is measured. Made by classification.task and
    segmentation.task.

    x, y: all training samples and their labels, on the model's device. parts: the indices of each client's.
    loss_of(outputs, targets): mean over a batch. draw(n, shuffle): the random numbers that augment a batch of n
    samples, which are the last dimension. prepare(x, y, drawn): the batch as network and loss take it. measure(pool,
    weights): a value for each of METRICS, of which a record holds None in rounds that are not measured. batches:
    whether the clients of a round can be trained as one batched network; then `prepare` is compiled with it, and may
    not look at values.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    parts: list[Tensor]
    loss_of: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[Pool, State], dict]
    draw: Callable[[int, Generator], Tensor] = nothing
    prepare: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = as_they_are
    batches: bool = True
