import pytest
from programs import THIS_CHECKOUT


@pytest.fixture(scope="module")
def this_checkout():
    """Also what the launcher starts imports it: its processes have what is set here."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in THIS_CHECKOUT.items():
            patch.setenv(name, value)
        yield
