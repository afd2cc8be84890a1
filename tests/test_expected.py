"""Refreshing the expected values: recorded ones go in, theory stays, new ones ask to be looked at."""

from cosquant_lite.expected import refreshed


def test_refreshed_keeps_theory_tolerances_and_other_notebooks():
    old = {
        "settings": {"seed": 0},
        "notebooks": {
            "01_a": {
                "pi": {"value": 3.0, "tolerance": 0.2, "why": "theory", "theory": True},
                "x": {"value": 1.0, "tolerance": 0.5, "why": "w"},
            },
            "02_b": {"y": {"value": 7.0, "tolerance": 0.1, "why": "w"}},
        },
    }
    rows = [
        {"notebook": "01_a", "number": name, "recorded": value}
        for name, value in (("pi", 3.1), ("x", 1.2345678), ("z", 10.0), ("bytes", 12345678.0), ("gone", None))
    ]
    new = refreshed(old, rows)
    assert new["settings"] == {"seed": 0}
    assert new["notebooks"]["02_b"] == old["notebooks"]["02_b"]
    assert new["notebooks"]["01_a"]["pi"]["value"] == 3.0
    assert new["notebooks"]["01_a"]["x"] == {"value": 1.23457, "tolerance": 0.5, "why": "w"}
    assert new["notebooks"]["01_a"]["z"]["tolerance"] == 0.1
    assert new["notebooks"]["01_a"]["bytes"]["value"] == 12345678
    assert "gone" not in new["notebooks"]["01_a"]
