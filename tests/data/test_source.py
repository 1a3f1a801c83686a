"""Images in memory: what is checked of them before any is used."""

import numpy as np
import pytest
from image_folders import folder_config, write_split
from tiny_images import images_of, make_config

from l2w_jax.data import open_source
from l2w_jax.data.source import MemorySource
from l2w_jax.errors import UserError


@pytest.mark.parametrize("split", ["train", "holdout", "test"])
@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_of_no_class_is_named_in_whatever_split_it_is(split, label):
    splits = {name: images_of(0, 20) for name in ("train", "holdout", "test")}
    splits[split].labels[7] = label
    message = (
        f"^data set: split '{split}', image 7: label {label} is not allowed: must be from 0 to 3 "
        r"\(config.dataset.num_classes is 4\)$"
    )
    with pytest.raises(UserError, match=message):
        MemorySource(make_config(), splits, class_names=("a", "b", "c", "d"))


@pytest.mark.parametrize("augmentation", ["crop", "resized_crop"])
def test_images_at_positions_are_those_of_the_whole_split_there(augmentation, tmp_path):
    write_split(tmp_path / "train", 10, 0)
    write_split(tmp_path / "test", 4, 5000)
    (tmp_path / "test" / "blue" / "01.jpg").write_bytes(b"no image")
    config = folder_config(tmp_path, augmentation=augmentation)
    config.dataset.max_bad_share = 1.0
    source = open_source(config)
    (whole,) = source.evaluation_batches("test", source.num_test)
    positions = np.array([source.num_test - 1, 1, 4])
    batches = list(source.images_at("test", positions, 2))
    assert [len(batch["mask"]) for batch in batches] == [2, 2]
    found = {name: np.concatenate([batch[name] for batch in batches])[:3] for name in whole}
    for name, values in whole.items():
        assert found[name].tolist() == values[positions].tolist()
    # What fills up the last batch.
    assert not batches[-1]["mask"][1]
