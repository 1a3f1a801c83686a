"""The command of an exported network, by itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2w_jax.data import cut_jpeg
from l2w_jax.interop import classify


class BrightnessNetwork:
    """Tells white images from black ones, and how many it was shown at once."""

    def __init__(self):
        names = ["black", "white"]
        image_format = {"size": 8, "centre_share": 1.0, "max_pixels": 64}
        self.description = {"class_names": names, "image_format": image_format}
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        labels = images[:, 0, 0, 0] // 255
        return labels, labels, np.full(len(images), 0.5)


@pytest.fixture
def network(monkeypatch):
    # The modules of an exported folder lie beside each other.
    for module in (classify, cut_jpeg):
        monkeypatch.syspath_prepend(Path(module.__file__).parent)
    return BrightnessNetwork()


def test_more_files_than_a_batch_are_each_classified_once_and_in_order(
    network, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(classify, "BATCH", 2)
    names = ["black", "white", "white", "black", "white"]
    files = [str(tmp_path / f"{place}.png") for place in range(5)]
    for name, file in zip(names, files, strict=True):
        Image.new("RGB", (8, 8), name).save(file)
    assert classify.classify_files(network, files) == 0
    assert network.batches == [2, 2, 1]
    assert capsys.readouterr().out.splitlines() == [
        f"{name}\t50.0%\texit {1 + (name == 'white')}\t{file}"
        for name, file in zip(names, files, strict=True)
    ]
