"""Link strings, and what a link delivers."""

import pytest
import torch

from cosquant_lite.link import parse_link, send
from cosquant_lite.quantize import Cosine, Uniform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("cosine:2", Cosine(2)),
        ("cosine:2,clip=0.05,rounding=stochastic", Cosine(2, 0.05, "stochastic")),
        ("uniform:4,range=minmax", Uniform(4, range="minmax")),
        ("uniform:8,clip=0", Uniform(8, 0)),
    ],
)
def test_link_strings(text, expected):
    assert parse_link(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cosin:2", "unknown quantizer 'cosin'; allowed: none, cosine, uniform"),
        ("", "unknown quantizer ''"),
        ("cosine", "bits '' after 'cosine'"),
        ("cosine:two", "bits 'two'"),
        ("cosine:9", "bits must be a whole number from 1 to 8, got 9"),
        ("cosine:2,clp=0.1", "unknown option 'clp=0.1'; allowed: clip=..., rounding=..."),
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
    received, length = send({"x": x}, Cosine(2))
    assert torch.equal(received["x"], Cosine(2).roundtrip(x))
    assert 25 < length < 25 + 64
