"""The simulated device, built once and kept with pytest's cache."""

from __future__ import annotations

import pytest

from tests.sim_device.device import Sim, missing, sim_device


@pytest.fixture(scope="session")
def sim(pytestconfig: pytest.Config) -> Sim:
    if reason := missing():
        pytest.skip(reason)
    assert pytestconfig.cache is not None
    return sim_device(pytestconfig.cache.mkdir("sim_device"))
