import pytest
from tiny_images import make_config, open_tiny_source


@pytest.fixture
def config():
    return make_config()


@pytest.fixture
def source(config):
    return open_tiny_source(config)
