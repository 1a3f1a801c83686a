"""Images in memory: what is checked of them before any is used."""

import pytest
from tiny_images import images_of, make_config

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
