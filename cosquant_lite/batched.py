"""The clients of a round trained together on one device: the same steps as `training.train_client`, batched over clients.

One network with a leading client dimension on every weight (torch.func.vmap). Results agree with the plain path to
float tolerance: sums run in another order. On a GPU the step is compiled (torch.compile), to be launched as one graph
instead of some 200 operations; this has not run on a GPU yet. TORCH_COMPILE_DISABLE=1 turns it off. PyTorch's default
lets a GPU round what goes into a convolution to TF32's 10 bits of mantissa, and it stays so here.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from cosquant_lite.training import LocalSGD, State, as_they_are


def train_clients(
    model: nn.Module,
    weights: State,
    x: Tensor,
    y: Tensor,
    shuffles: list[torch.Generator],
    sgd: LocalSGD,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    prepare: Callable[..., tuple[Tensor, Tensor]] = as_they_are,
) -> list[tuple[State, float]]:
    """`training.train_client` for K clients with n samples each. x: (K, n, ...), y: (K, n, ...), on the model's device.

    The trained weights come back on the CPU.
    """
    clients = torch.arange(len(y), device=y.device).view(-1, 1)
    params = {name: w.to(y.device).expand(len(y), *w.shape).clone() for name, w in weights.items()}
    # SGD is elementwise: a stacked weight moves as each client's would by itself
    optimizer = torch.optim.SGD(params.values(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
    steps = {compiled: gradients_of(model, loss_of, compiled) for compiled in (False, y.is_cuda)}
    losses = []
    for _ in range(sgd.epochs):
        order = torch.stack([torch.randperm(y.shape[1], generator=shuffle) for shuffle in shuffles]).to(y.device)
        for batch in order.split(sgd.batch_size, dim=1):
            prepared = prepare(x[clients, batch].flatten(0, 1), y[clients, batch].flatten(0, 1), *shuffles)
            optimizer.zero_grad()  # the next step of a CUDA graph writes to where these gradients are
            step = steps[y.is_cuda and batch.shape[1] == sgd.batch_size]  # every shape would be compiled anew
            gradients, loss = step(params, *(part.unflatten(0, batch.shape) for part in prepared))
            losses.append(loss.clone())  # as above
            if sgd.max_norm:
                norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
                shorter = (sgd.max_norm / (norms + 1e-6)).clamp(max=1)
                gradients = {name: g * shorter.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}
            for name, p in params.items():
                p.grad = gradients[name]
            optimizer.step()
    means = torch.stack(losses).cpu().double().mean(0).tolist()
    if not np.isfinite(means).all():
        raise FloatingPointError(
            f"a client's loss became infinite or NaN at lr={sgd.lr}: try a smaller lr or a max_norm"
        )
    trained = {name: p.cpu() for name, p in params.items()}  # one copy of each for all clients
    return [({name: p[k] for name, p in trained.items()}, mean) for k, mean in enumerate(means)]


@lru_cache(8)
def gradients_of(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], compiled: bool) -> Callable:
    """(params, x, y), each with a leading client dimension -> gradients and losses of all clients.

    Kept between the rounds of a run, so that it is compiled once for each number of clients.
    """
    step = vmap(grad_and_value(lambda params, x, y: loss_of(functional_call(model, params, (x,)), y)))
    return torch.compile(step, dynamic=False, mode="reduce-overhead") if compiled else step
