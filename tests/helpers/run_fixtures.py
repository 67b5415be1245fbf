"""Fixtures with data, networks and runs for tests of training."""

import pytest

from resnetkit.serialization import to_toml

from helpers.runs import SETTINGS, STOCHASTIC_NETWORK, RunCache


@pytest.fixture
def flowers(pictures):
    """A dataset of 60 small images in three classes."""
    return pictures("flowers", ["rose", "daisy", "tulip"], 20)


@pytest.fixture
def stochastic_network(tmp_path):
    """A file with a network that has dropout and stochastic depth."""
    path = tmp_path / "stochastic.toml"
    path.write_text(to_toml(STOCHASTIC_NETWORK))
    return path


@pytest.fixture(scope="session")
def run_cache(tmp_path_factory):
    """Runs that several tests share."""
    return RunCache(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def whole_run(flowers, stochastic_network, run_cache):
    """An uninterrupted run of the stochastic network."""
    return run_cache.train("whole", flowers, stochastic_network, settings=SETTINGS)


@pytest.fixture
def short_run(flowers, network, run_cache):
    """An uninterrupted run of two epochs."""
    return run_cache.train("short", flowers, network, settings=SETTINGS | {"epochs": 2})
