"""Studies of these tests run on one device, as on a person's machine without more.

Those that ask for several, by number, have them.
"""

import jax
import pytest

from experiments.engine import devices


@pytest.fixture(scope="session", autouse=True)
def _one_device_by_default():
    with pytest.MonkeyPatch.context() as patch:
        choose = devices.Devices.choose

        def chosen(count, shard_parameters):
            return choose(1 if count is None else count, shard_parameters)

        patch.setattr(devices.Devices, "choose", chosen)
        assert jax.local_device_count() == 8
        yield
