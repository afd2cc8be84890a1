"""The paper's CNN on Flower, both directions compressed: `flwr run examples/flower_cifar10 --stream`."""
