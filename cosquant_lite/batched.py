"""The clients of a round trained together on one device: the same steps as `training.train_client`, batched over clients.

One network with a leading client dimension on every weight (torch.func.vmap). Results agree with the plain path but for
rounding: sums run in another order, and on a GPU the factors of products are rounded: of convolutions to FACTORS, of
other layers to TF32 (`federated.usable`). There a step is compiled (torch.compile; TORCH_COMPILE_DISABLE=1 turns that
off), and the steps of an epoch are recorded once as a CUDA graph, which is then launched as a whole.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy, pad

from cosquant_lite.training import LocalSGD, State, as_they_are, nothing

# one kernel for the shifted copies of an image, which reads the image from memory and does not compute it nine times over
OPTIONS = {"force_pointwise_cat": True, "realize_reads_threshold": 1}
FACTORS = torch.bfloat16  # as in mixed-precision training: weights, their updates and all else stay float32
TOGETHER = 5  # samples in a matrix product, at most: fewer are many copies of the weights, more leave a GPU idle
KEPT = (
    16  # graphs; torch.compile stops at 8 variants of a step in a process, and others run slower, with the same results
)


def start_clients(
    model: nn.Module,
    weights: State,
    x: Tensor,
    y: Tensor,
    shuffles: list[torch.Generator],
    sgd: LocalSGD,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    draw: Callable[[int, torch.Generator], Tensor] = nothing,
    prepare: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = as_they_are,
) -> Callable[[], list[tuple[State, float]]]:
    """`training.train_client` for K clients with n samples each. x: (K, n, ...), y: (K, n, ...), on the model's device.

    Returns a function that waits for the results, which are on the CPU: a GPU trains while the caller does something
    else.
    """
    epoch = _epoch_of(model, tuple(weights), replace(sgd, lr=0.0), loss_of, prepare, y.is_cuda, _factors(y.device))
    lr, *start = _to_device(y.device, [torch.tensor(sgd.lr), *weights.values()])
    params = [w.expand(len(y), *w.shape) for w in start]
    state, losses = params + [torch.zeros_like(p) for p in params], []
    for _ in range(sgd.epochs):  # the random numbers of one are drawn while a GPU trains the one before
        drawn = zip(*(_draws(y.shape[1], sgd, draw, shuffle) for shuffle in shuffles))
        inputs = [x, y, *_to_device(y.device, [torch.stack(each) for each in drawn]), lr, *state]
        loss, *state = (_recorded(epoch, _shapes(inputs)) if y.is_cuda else epoch)(*inputs)
        losses.append(loss.clone())  # the next epoch of a graph writes to where this one is
    return _when_done(list(weights), torch.cat(losses), state[: len(params)], sgd.lr)


def _when_done(
    names: list[str], losses: Tensor, trained: list[Tensor], lr: float
) -> Callable[[], list[tuple[State, float]]]:
    """A function that waits for losses (steps, K) and weights (K, ...) and returns those of each client, on the CPU."""
    losses, *trained = [each.to("cpu", non_blocking=True) for each in (losses, *trained)]
    copied = torch.cuda.Event() if losses.is_pinned() else None
    if copied:
        copied.record()

    def finish() -> list[tuple[State, float]]:
        if copied:
            copied.synchronize()
        means = losses.double().mean(0).tolist()
        if not np.isfinite(means).all():
            raise FloatingPointError(
                f"a client's loss became infinite or NaN at lr={lr}: try a smaller lr or a max_norm"
            )
        return [({name: p[k] for name, p in zip(names, trained)}, mean) for k, mean in enumerate(means)]

    return finish


def _draws(n: int, sgd: LocalSGD, draw: Callable, shuffle: torch.Generator) -> tuple[Tensor, Tensor]:
    """One client's order of its n samples in an epoch, and the random numbers of its batches, end to end, from `draw`."""
    order = torch.randperm(n, generator=shuffle)
    drawn = [draw(min(sgd.batch_size, n - start), shuffle) for start in range(0, n, sgd.batch_size)]
    return order, torch.cat(drawn, -1)


def _factors(device: torch.device) -> torch.dtype:
    """To what the factors of convolutions are rounded on this device."""
    rounds = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return FACTORS if rounds else torch.float32


def _to_device(device: torch.device, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors on the device. A GPU need not be waited for."""
    if device.type != "cuda":
        return [x.to(device) for x in tensors]
    return [x.pin_memory().to(device, non_blocking=True) for x in tensors]


@lru_cache(KEPT)
def _epoch_of(
    model: nn.Module,
    names: tuple[str, ...],
    sgd: LocalSGD,
    loss_of: Callable,
    prepare: Callable,
    compiled: bool,
    factors: torch.dtype,
) -> Callable:
    """A function of x, y, order (K, n), drawn (K, ..., n), lr, all weights and all velocities, each (K, ...): the losses of
    each step and client, and the new weights and velocities."""
    step = step_of(model, sgd, loss_of, prepare, factors)
    fast = torch.compile(step, dynamic=False, options=OPTIONS) if compiled else step

    def epoch(x: Tensor, y: Tensor, order: Tensor, drawn: Tensor, lr: Tensor, *state: Tensor) -> list[Tensor]:
        params, velocity = dict(zip(names, state)), dict(zip(names, state[len(names) :]))
        losses, clients = [], torch.arange(len(y), device=y.device).view(-1, 1)
        for batch, numbers in zip(order.split(sgd.batch_size, 1), drawn.split(sgd.batch_size, -1)):
            whole = batch.shape[1] == min(sgd.batch_size, y.shape[1])  # a short last one would be compiled by itself
            take = fast if whole else step
            params, velocity, loss = take(params, velocity, x[clients, batch], y[clients, batch], numbers, lr)
            losses.append(loss)
        return [torch.stack(losses), *params.values(), *velocity.values()]

    return epoch


def step_of(
    model: nn.Module, sgd: LocalSGD, loss_of: Callable, prepare: Callable, factors: torch.dtype = torch.float32
) -> Callable:
    """A step of SGD of all clients: (params, velocity, x, y, drawn, lr) -> (params, velocity, losses).

    All but lr have a leading client dimension. The step is torch.optim.SGD's, written out so that it is compiled, too.
    factors: as in `ProductConv2d`.
    """
    gradients_of = vmap(grad_and_value(_loss(with_products(model, factors), loss_of)))

    def step(params: State, velocity: State, x: Tensor, y: Tensor, drawn: Tensor, lr: Tensor) -> tuple:
        shape, drawn = y.shape[:2], drawn.movedim(0, -2).flatten(-2)
        prepared = prepare(x.flatten(0, 1), y.flatten(0, 1), drawn)
        gradients, losses = gradients_of(params, *(part.unflatten(0, shape) for part in prepared))
        if sgd.max_norm:
            norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
            shorter = (sgd.max_norm / (norms + 1e-6)).clamp(max=1)
            gradients = {name: g * shorter.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}
        decayed = {name: g + sgd.weight_decay * params[name] for name, g in gradients.items()}
        velocity = {name: sgd.momentum * v + decayed[name] for name, v in velocity.items()}
        return {name: p - lr * velocity[name] for name, p in params.items()}, velocity, losses

    return step


def _loss(model: nn.Module, loss_of: Callable) -> Callable:
    return lambda params, x, y: loss_of(functional_call(model, params, (x,)), y)


class ProductConv2d(nn.Module):
    """A convolution as matrix products. vmap makes grouped ones of others, at which cuDNN is slow.

    factors: the dtype to which images and weights are rounded before they are multiplied, and what comes out.
    """

    def __init__(self, layer: nn.Conv2d, factors: torch.dtype = torch.float32):
        super().__init__()
        self.weight, self.bias, self.padding, self.factors = layer.weight, layer.bias, layer.padding, factors

    def forward(self, x: Tensor) -> Tensor:
        (top, left), (out, _, high, wide) = self.padding, self.weight.shape
        x = pad(x.permute(0, 2, 3, 1).to(self.factors), (0, 0, left, left, top, top))
        rows, columns = x.shape[1] - high + 1, x.shape[2] - wide + 1
        near = [x[:, i : i + rows, j : j + columns] for i in range(high) for j in range(wide)]
        lacking = -len(near) * x.shape[3] % (16 // x.itemsize)  # products are faster in rows of whole 16 bytes
        if lacking:
            near.append(x.new_zeros(len(x), rows, columns, lacking))
        near = torch.cat(near, 3)
        together = max(n for n in range(1, TOGETHER + 1) if len(x) % n == 0)
        near = near.view(len(x) // together, -1, near.shape[3])
        weight = pad(self.weight.permute(2, 3, 1, 0).reshape(-1, out), (0, 0, 0, lacking))
        weight = weight.expand(len(near), *weight.shape)
        weight = weight.to(self.factors)  # after it was expanded: so its gradient is summed in float32
        y = torch.bmm(near, weight).to(self.bias.dtype) + self.bias
        return y.view(len(x), rows, columns, out).permute(0, 3, 1, 2)


def with_products(model: nn.Module, factors: torch.dtype = torch.float32) -> nn.Module:
    """A copy of the model, with a `ProductConv2d` in place of each plain two-dimensional convolution."""
    model = deepcopy(model)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Conv2d and _is_plain(layer):
            model.set_submodule(name, ProductConv2d(layer, factors))
    return model


def _is_plain(layer: nn.Conv2d) -> bool:
    usual = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    return usual and layer.bias is not None and isinstance(layer.padding, tuple)


def _shapes(tensors: list[Tensor]) -> tuple:
    return tuple((x.shape, x.dtype) for x in tensors)


@lru_cache(KEPT)
def _recorded(work: Callable, shapes: tuple) -> Callable:
    """`work` on tensors of these shapes and types on the current GPU, recorded as a CUDA graph. What it returns is
    overwritten by the next call."""
    given = [torch.zeros(shape, dtype=dtype, device="cuda") for shape, dtype in shapes]
    torch.cuda.synchronize()  # other streams do not wait for the zeros
    with torch.cuda.stream(torch.cuda.Stream()):
        work(*given)  # compiles, and sets up libraries
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work(*given)

    def replay(*inputs: Tensor) -> list[Tensor]:
        for to, x in zip(given, inputs):
            to.copy_(x)
        graph.replay()
        return results

    return replay
