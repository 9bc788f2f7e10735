"""Tests on real weights, which run where the packages that carry them are installed."""

from importlib.util import find_spec

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose `real` marks name packages that are not installed."""
    wanted = {package for mark in item.iter_markers("real") for package in mark.args}
    if missing := sorted(package for package in wanted if find_spec(package) is None):
        pytest.skip(f"needs {', '.join(missing)}: `make test-real` installs what is missing")
