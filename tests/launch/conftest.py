import pytest
from programs import PATIENCE, THIS_CHECKOUT


@pytest.fixture(scope="module")
def this_checkout():
    """Also what the launcher starts imports it: its processes have what is set here.

    They bear a machine that stands still, but in a test that takes `default_heartbeat_timeout`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in THIS_CHECKOUT.items():
            patch.setenv(name, value)
        patch.setenv("L2W_HEARTBEAT_TIMEOUT", str(PATIENCE))
        yield


@pytest.fixture
def default_heartbeat_timeout(this_checkout, monkeypatch):
    """Processes notice as fast as a user's that another one is gone."""
    monkeypatch.delenv("L2W_HEARTBEAT_TIMEOUT")
