"""The simulated device, built once and kept with pytest's cache; or the real one that was asked for."""

from __future__ import annotations

import pytest
import torch

from tests.sim_device.device import IS_SIM, NAME, Real, Sim, missing, sim_device


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Sim | Real:
    """The device that the tests run on."""
    if not IS_SIM:
        found = Real()
        torch.zeros(1, device=NAME)  # what is loaded once is loaded now
        return found
    if reason := missing():
        pytest.skip(reason)
    assert pytestconfig.cache is not None
    return sim_device(pytestconfig.cache.mkdir("sim_device"))


@pytest.fixture(scope="session")
def sim(device: Sim | Real) -> Sim:
    """The simulated device, for tests that count or make allocations fail."""
    if not isinstance(device, Sim):
        pytest.skip("only the simulated device counts what crosses and fails when it is told to")
    return device


@pytest.fixture(scope="session")
def real(device: Sim | Real) -> Real:
    """A real device, for tests of what the simulated one does not have."""
    if not isinstance(device, Real):
        pytest.skip("the simulated device has no streams, no pinned memory and no kernels of its own")
    return device
