"""Link strings, and what a link delivers."""

import pytest
import torch

from cosquant_lite.comparators import Sign
from cosquant_lite.link import Link, parse_link, send, send_with_memory
from cosquant_lite.quantize import Cosine, Uniform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Link()),
        ("none,entropy=deflate", Link(entropy="deflate")),
        ("none,mask=0.1", Link(mask=0.1)),
        ("cosine:2", Link(Cosine(2))),
        ("cosine:2,clip=0.05,rounding=stochastic", Link(Cosine(2, 0.05, "stochastic"))),
        ("uniform:4,range=minmax", Link(Uniform(4, range="minmax"))),
        ("uniform:8,clip=0", Link(Uniform(8, 0))),
        ("cosine:2,mask=0.05,entropy=auto,clip=0", Link(Cosine(2, 0), 0.05, "auto")),
        ("uniform:2,rotate=hadamard", Link(Uniform(2), rotate="hadamard")),
        ("sign", Link(Sign())),
        ("sign,scale=one,entropy=ans", Link(Sign("one"), entropy="ans")),
    ],
)
def test_link_strings(text, expected):
    assert parse_link(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cosin:2", "unknown quantizer 'cosin'; allowed: none, cosine, uniform, sign, qsgd"),
        ("", "unknown quantizer ''"),
        ("cosine", "bits '' after 'cosine'"),
        ("cosine:two", "bits 'two'"),
        ("cosine:9", "bits must be a whole number from 1 to 8, got 9"),
        (
            "cosine:2,clp=0.1",
            "unknown option 'clp=0.1'; allowed: clip=..., rounding=..., scale=..., mask=..., entropy=..., rotate=...",
        ),
        ("none:2", "'none' takes no bits"),
        ("none:", "'none' takes no bits"),
        ("cosine:²", "bits '²' after 'cosine': is not a whole number"),
        ("sign:1", "'sign' takes no bits"),
        ("sign,scale=two", "scale must be one of 'mean', 'one', got 'two'"),
        ("sign,clip=0", "unknown option 'clip=0'; allowed: scale=..., mask=..."),
        ("cosine:2,rotate=yes", "rotate must be one of 'none', 'hadamard', 'channels', got 'yes'"),
        ("cosine:2,rotate=hadamard,mask=0.1", "it goes neither with tensors that are not quantized nor with a mask"),
        ("none,rotate=hadamard", "it goes neither with tensors that are not quantized nor with a mask"),
        ("none,clip=0", "unknown option 'clip=0'; allowed: mask=..., entropy=..., rotate=..."),
        ("cosine:2,mask=2", "mask must be a number in (0, 1], the share of entries that travel, got 2.0"),
        ("cosine:2,mask=nan", "mask must be a number in (0, 1]"),
        ("cosine:2,mask=x", "mask 'x' is not a number"),
        ("cosine:2,entropy=zstd", "entropy must be one of 'none', 'deflate', 'ans', 'auto', got 'zstd'"),
        ("cosine:2,range=minmax", "unknown option 'range=minmax'"),
        ("cosine:2,", "unknown option ''"),
        ("cosine:2,clip=a", "clip 'a' is not a number"),
        ("cosine:2,clip=0.6", "clip must be a number in"),
        ("cosine:2,clip=0.1,clip=0.2", "the same option twice"),
        ("uniform:2,rounding=up", "rounding must be one of 'nearest', 'stochastic'"),
    ],
)
def test_a_wrong_link_string_names_the_bad_part(text, named):
    with pytest.raises(ValueError, match="link") as caught:
        parse_link(text)
    assert named in str(caught.value)


def test_send_delivers_the_roundtrip_and_counts_its_bytes():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    delivery = send({"x": x}, parse_link("cosine:2"))
    assert torch.equal(delivery.state["x"], Cosine(2).roundtrip(x))
    assert delivery.bytes == delivery.header + 25
    assert 15 < delivery.header < 64


def test_mask_and_entropy_reach_the_message():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    lengths = {}
    for text in ("cosine:2", "cosine:2,entropy=ans", "cosine:2,mask=0.1", "none,mask=0.1"):
        delivery = send({"x": x}, parse_link(text), torch.Generator().manual_seed(1))
        lengths[text] = delivery.bytes
        share = (delivery.state["x"] != 0).float().mean()
        assert abs(share - (0.1 if "mask" in text else 1)) < 0.01
    assert lengths["cosine:2"] > lengths["cosine:2,entropy=ans"] > 5 * lengths["cosine:2,mask=0.1"]
    with pytest.raises(ValueError, match="a random mask or rotation needs"):
        send({"x": x}, parse_link("cosine:2,mask=0.1"))


def test_a_memory_is_of_floating_point_tensors_alone():
    """Others arrive as they are; truth values have no difference."""
    state = {"w": torch.randn(10), "n": torch.tensor(7), "flags": torch.tensor([True, False])}
    _, lost = send_with_memory(state, None, parse_link("cosine:1"))
    assert list(lost) == ["w"]
    again, _ = send_with_memory(state, lost, parse_link("cosine:1"))
    assert torch.equal(again.state["flags"], state["flags"])
