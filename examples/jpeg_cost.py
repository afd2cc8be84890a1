"""What does it cost to train on CIFAR-10 that has been through JPEG? One network in one place, no federation, no links.

TensorFlow's tutorial "Convolutional Neural Network (CNN)" trains the network of ProgFed's published code on the
original images: Adam, batches of 32, ten epochs, pixels divided by 255. People publish what it printed (ORIGINAL). This
script does the same in PyTorch, with Keras' first weights and its epsilon, on the images that were imported.

example: python examples/jpeg_cost.py --seeds 0,1,2,3,4,5 --out results/jpeg-cost.json
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from cosquant_lite import runs
from cosquant_lite.datasets import Images, load_data
from cosquant_lite.experiments import seeds
from cosquant_lite.models import cnn_unpadded
from cosquant_lite.streams import generator
from cosquant_lite.training import Pool

# Test loss and accuracy after ten epochs on the original images: seven runs, as printed in five public copies of the
# tutorial in which the network and the recipe can be seen. To find one, search for its two numbers.
ORIGINAL = [
    (0.8613, 0.7181), (0.8524, 0.7204), (0.8766, 0.7078), (0.8487, 0.7246), (0.8808, 0.7056), (0.8971, 0.7062), (0.8660, 0.7203),
]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Train once for each seed, side by side; print and write the accuracies."""
    parser = argparse.ArgumentParser("python examples/jpeg_cost.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", default="0", help="separated by commas (default: 0)")
    parser.add_argument("--epochs", type=int, default=10, help="the tutorial has 10 (default: 10)")
    parser.add_argument("--data", default="real", help="real, or embedded to try it on digits (default: real)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result (default: none)")
    args = parser.parse_args(argv)
    try:
        if args.epochs < 1:
            raise ValueError(f"--epochs must be at least 1, got {args.epochs}")
        if args.out:
            runs.check_writable(args.out)
        wanted, images = seeds(args.seeds), load_data("cifar10", args.data)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bar = tqdm(total=args.epochs * len(wanted), unit="epoch", leave=False, disable=not sys.stderr.isatty())

    def curve(seed: int) -> list[float]:
        accuracies = []
        for accuracy in train(images, seed, args.epochs):
            accuracies.append(accuracy)
            bar.update()
        return accuracies

    with bar, Pool(nn.Identity(), os.cpu_count()) as pool:
        curves = pool.map(curve, wanted)
    last = [accuracies[-1] for accuracies in curves]
    print(f"{images.source}: {described(last)}")
    print(f"original images, published: {described([accuracy for _, accuracy in ORIGINAL])}")
    if args.out:
        about = {"source": images.source, "seeds": wanted, "epochs": args.epochs}
        runs.write_json(args.out, {**about, **runs.provenance(), "accuracy": curves, "original": ORIGINAL})
    return 0


def train(images: Images, seed: int, epochs: int) -> Iterator[float]:
    """Yield the test accuracy after each epoch."""
    draws, model = generator(seed, "central"), cnn_unpadded(len(images.classes))
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):  # as Keras does
            nn.init.xavier_uniform_(layer.weight, generator=draws)
            nn.init.zeros_(layer.bias)
    model = model.to(memory_format=torch.channels_last)
    x, test_x = ((part / 255).contiguous(memory_format=torch.channels_last) for part in (images.train_x, images.test_x))
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-7)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=draws).split(32):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), images.train_y[batch]).backward()
            optimizer.step()
        with torch.inference_mode():
            hits = sum(
                int((model(part).argmax(1) == y).sum()) for part, y in zip(test_x.split(500), images.test_y.split(500))
            )
        yield hits / len(test_x)


def described(accuracies: list[float]) -> str:
    """Mean, and where there are several their standard deviation and number."""
    if len(accuracies) == 1:
        return f"{accuracies[0]:.2%}, one run"
    return f"{mean(accuracies):.2%}, standard deviation {stdev(accuracies):.2%}, {len(accuracies)} runs"


if __name__ == "__main__":
    sys.exit(main())
