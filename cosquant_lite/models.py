"""The networks of the paper."""

from collections import OrderedDict
from copy import deepcopy

import torch
from torch import Tensor, nn


def cnn(classes: int = 10) -> nn.Module:
    """The paper's CIFAR-10 network as our source describes it, 122,570 parameters: 3x32x32 in, `classes` logits out.

    Three times (conv3x3, padding 1, ReLU, 2x2 max-pool) with 32, 64, 64 channels, then dense 64 and `classes`.
    Source: the set-up of ProgFed (ICML 2022), the same group's later project. Pooling comes before the ReLU here: the
    maximum of the positive parts is the positive part of the maximum, gradients and all, at a quarter of the work.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3, padding=1), pool1=nn.MaxPool2d(2), relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1), pool2=nn.MaxPool2d(2), relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 64, 3, padding=1), pool3=nn.MaxPool2d(2), relu3=nn.ReLU(),
            flat=nn.Flatten(), fc1=nn.Linear(64 * 4 * 4, 64), relu4=nn.ReLU(), fc2=nn.Linear(64, classes),
        )
    )  # fmt: skip


def cnn_unpadded(classes: int = 10) -> nn.Module:
    """The CIFAR-10 network of ProgFed's published code, which is that of TensorFlow's tutorial: no padding, two poolings.

    122,570 parameters, as many as `cnn`: 30x30 and 13x13 are halved to 15x15 and 6x6, and the third convolution leaves
    4x4. ProgFed's has 16 outputs, six of which are no class; this one has `classes`.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3), pool1=nn.MaxPool2d(2), relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3), pool2=nn.MaxPool2d(2), relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 64, 3), relu3=nn.ReLU(),
            flat=nn.Flatten(), fc1=nn.Linear(64 * 4 * 4, 64), relu4=nn.ReLU(), fc2=nn.Linear(64, classes),
        )
    )  # fmt: skip


CNNS = {"cnn": cnn, "cnn-unpadded": cnn_unpadded}
UNETS = {  # channels of each level; every level but the first halves the resolution
    "unet-tiny": (8, 16, 32, 64),  # 300,125 parameters: for the phantom
    "unet-small": (16, 32, 64, 128, 256),  # 4,811,129 parameters
    "unet-full": (24, 48, 96, 192, 336),  # 9,502,273, for the paper's 9,451,567, whose layers are not given
}


def unet(name: str) -> nn.Module:
    """MONAI's 3D U-Net with two residual units a level: four modalities in, logits of background and three labels out.

    Instance normalisation has no state, so that all that a client learns is in what it sends.
    """
    from monai.networks.nets import UNet  # not needed, and perhaps not installed, for images

    channels = UNETS[name]
    return UNet(3, 4, 4, channels, (2,) * (len(channels) - 1), num_res_units=2)


# which networks a data set can train; the first is its usual one
MODELS = {"cifar10": tuple(CNNS), "brats": tuple(UNETS)}


def initial_weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A fresh PyTorch-default initialisation of the model, on the CPU, the same for the same seed; the global state is kept.

    Drawn into a contiguous copy on the CPU: a GPU has random numbers of its own, and torch 2.11 draws those of a
    channels-last tensor in another order than torch 2.14.
    """
    model = deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return {name: value.clone() for name, value in model.state_dict().items()}
