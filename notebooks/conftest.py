"""Settings for `pytest --nbval-lax notebooks`."""


def pytest_collectstart(collector):
    """Progress bars and warnings go to stderr and differ from run to run: do not compare them."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
