"""What tests of image folders share."""

import pytest
from image_folders import write_split


@pytest.fixture
def folder(tmp_path):
    """Images of three classes to train on and to test on."""
    write_split(tmp_path / "train", 10, 0)
    write_split(tmp_path / "test", 4, 5000)
    return tmp_path
