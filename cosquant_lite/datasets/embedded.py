"""The inputs that come with the project, so that everything runs with no download."""

import zipfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cosquant_lite import runs
from cosquant_lite.datasets import EMBEDDED, Images, data_root, resolve

UPDATE_FILE, UPDATE_PROVENANCE = "client_update.npz", "client_update.json"
STAGES = ("early", "middle", "late")


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client of a real federated run computed.

    update: layer name -> w_received - w_after_local_training, float32. weights: layer name -> w_received.
    peers: (clients, n) the same round's updates of ten clients in the layer `peer_layer` (stage "middle" only).
    round: the communication round. source: one line for figures; images: the data set it was trained on.
    """

    update: dict[str, Tensor]
    weights: dict[str, Tensor]
    peers: Tensor | None
    peer_layer: str
    round: int
    source: str
    images: str


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8, enlarged to 3x32x32; 1,500 train and 297 test, fixed split."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.tensor(raw.images, dtype=torch.float32)[:, None] * (255 / 16)
    x = interpolate(small, size=(32, 32), mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    y = torch.tensor(raw.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1500], order[1500:]
    source = "embedded handwritten digits (scikit-learn), not CIFAR-10"
    return Images(x[train], y[train], x[test], y[test], tuple("0123456789"), source)


def client_update(stage: str = "middle", data: str = "embedded") -> ClientUpdate:
    """A real client update at an early, middle or late round.

    data: "embedded" is the one committed with the project; "real" is one that `data capture` made here from your own
    CIFAR-10; "auto" prefers the latter. FileNotFoundError says how to make it.
    """
    runs.check_choice("stage", stage, STAGES)
    real = resolve("update", data) == "real"
    folder = data_root() / "captured" if real else EMBEDDED
    about = runs.read_json(folder / UPDATE_PROVENANCE)
    try:
        with np.load(folder / UPDATE_FILE) as arrays:
            part = {kind: _named(arrays, f"{stage}/{kind}/") for kind in ("update", "weights")}
            peers = torch.from_numpy(arrays["peers"].astype(np.float32)) if stage == "middle" else None
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise ValueError(
            f"{folder / UPDATE_FILE} is damaged ({error}); `python -m cosquant_lite data verify` checks it"
        ) from None
    source, number = about["stages"][stage]["source"], about["stages"][stage]["round"]
    source = f"{'captured' if real else 'embedded'} {source}"
    return ClientUpdate(
        **part, peers=peers, peer_layer=about["peer_layer"], round=number, source=source, images=about["source"]
    )


def _named(arrays, prefix: str) -> dict[str, Tensor]:
    names = [name for name in arrays.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.from_numpy(arrays[name].astype(np.float32)) for name in names}
