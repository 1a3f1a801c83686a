"""ImageNet from miniature archives in the real layout, through TFDS's own builder."""

import io
import itertools
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from l2w_jax.config import default_config
from l2w_jax.data import encoded, open_source, prepared
from l2w_jax.errors import UserError

SYNSETS = ("n01440764", "n01443537", "n01484850")  # classes 0, 1 and 2
PER_CLASS = 12
NUM_VALIDATION = 9
SIZE = 64


def jpeg(seed: int, mode: str = "RGB") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((90 + seed % 7, 70 + seed % 5), Image.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(target, files: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_train_archive(manual_dir, broken: bool = False) -> None:
    synsets = {}
    for number, synset in enumerate(SYNSETS):
        files = {
            f"{synset}_{i}.JPEG": jpeg(100 * number + i, "L" if i == 3 else "RGB")
            for i in range(PER_CLASS)
        }
        if broken and number == 1:
            files[f"{synset}_0.JPEG"] = b"no image"
        buffer = io.BytesIO()
        write_tar(buffer, files)
        synsets[f"{synset}.tar"] = buffer.getvalue()
    with open(manual_dir / "ILSVRC2012_img_train.tar", "wb") as target:
        write_tar(target, synsets)


def write_validation_archive(manual_dir) -> None:
    with open(manual_dir / "ILSVRC2012_img_val.tar", "wb") as target:
        names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, NUM_VALIDATION + 1)]
        write_tar(target, {name: jpeg(1000 + i) for i, name in enumerate(names)})


def imagenet_config(data_dir, **fields) -> ConfigDict:
    config = default_config()
    config.dataset.update(
        name="imagenet2012",
        num_classes=1000,
        data_dir=str(data_dir),
        image_size=SIZE,
        holdout=6,
        batch_size=8,
        augmentation="resized_crop",
    )
    config.dataset.update(fields)
    return config


def archives(tmp_path_factory, broken: bool):
    folder = tmp_path_factory.mktemp("imagenet")
    manual_dir = folder / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    write_train_archive(manual_dir, broken)
    write_validation_archive(manual_dir)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """With the archives, and what is prepared of them when they are first opened."""
    folder = archives(tmp_path_factory, broken=False)
    open_source(imagenet_config(folder))
    return folder


def test_archives_put_in_their_place_are_prepared_and_read(data_dir):
    source = open_source(imagenet_config(data_dir))
    assert (source.num_train, source.num_holdout, source.num_test) == (30, 6, NUM_VALIDATION)
    assert source.class_names[:3] == SYNSETS
    assert len(source.class_names) == source.num_classes == 1000
    (batch,) = source.evaluation_batches("test", NUM_VALIDATION)
    assert batch["mask"].all()
    assert batch["image"].shape == (NUM_VALIDATION, SIZE, SIZE, 3)
    assert len(np.unique(batch["image"].reshape(NUM_VALIDATION, -1), axis=0)) == NUM_VALIDATION


def test_held_out_and_training_images_are_apart(data_dir):
    source = open_source(imagenet_config(data_dir))
    (train,) = source.evaluation_batches("train", 30)
    (held_out,) = source.evaluation_batches("holdout", 6)
    images = np.concatenate([train["image"], held_out["image"]]).reshape(36, -1)
    assert len(np.unique(images, axis=0)) == 36
    labels = np.concatenate([train["label"], held_out["label"]])
    np.testing.assert_array_equal(np.bincount(labels), [PER_CLASS] * 3)


def test_records_are_read_in_any_order_on_resume_and_by_any_process(data_dir):
    config = imagenet_config(data_dir)
    whole = list(itertools.islice(open_source(config).train_batches(0), 6))
    parts = [
        list(itertools.islice(open_source(config).train_batches(2, p, 2), 4)) for p in range(2)
    ]
    for step, batch in enumerate(whole[2:]):
        for key in ("image", "label"):
            joined = np.concatenate([of_process[step][key] for of_process in parts])
            np.testing.assert_array_equal(joined, batch[key])
    epoch = np.concatenate([batch["label"] for batch in whole[:3]])
    assert len(set(epoch)) == 3


def test_a_broken_image_in_a_record_is_replaced_and_named(tmp_path_factory, caplog):
    folder = archives(tmp_path_factory, broken=True)
    source = open_source(imagenet_config(folder, holdout=4, batch_size=16, max_bad_share=0.02))
    for batch in itertools.islice(source.train_batches(0), 4):
        assert (batch["image"].reshape(16, -1).std(axis=1) > 0).all()
    list(source.evaluation_batches("holdout", 4))
    assert source.num_bad == 1
    (message,) = (r.getMessage() for r in caplog.records if r.name.startswith("l2w_jax"))
    assert "imagenet2012-train.tfrecord" in message
    assert "is no image that can be decoded" in message


def test_a_damaged_record_is_replaced_and_named(data_dir, caplog):
    source = open_source(imagenet_config(data_dir, holdout=4, batch_size=16, max_bad_share=0.02))
    (shard,) = data_dir.glob("imagenet2012/*/*train.tfrecord*")
    whole = shard.read_bytes()
    _, first, _ = encoded.index_records([str(shard)]).places[5]
    shard.write_bytes(whole[:first] + 30 * b"\xff" + whole[first + 30 :])
    try:
        for split in ("train", "holdout"):
            for batch in source.evaluation_batches(split, 4):
                assert (batch["image"][batch["mask"]].std(axis=(1, 2, 3)) > 0).all()
    finally:
        shard.write_bytes(whole)
    assert source.num_bad == 1
    (message,) = (r.getMessage() for r in caplog.records if r.name.startswith("l2w_jax"))
    assert f"record at byte {first}: is no record that can be parsed" in message


@pytest.mark.parametrize(
    "batches",
    [
        lambda source: itertools.islice(source.train_batches(0), 4),
        lambda source: source.evaluation_batches("train", 8),
    ],
    ids=["training", "evaluation"],
)
def test_a_label_out_of_range_is_one_line(data_dir, batches):
    source = open_source(imagenet_config(data_dir, num_classes=2))
    with pytest.raises(UserError, match="label 2 is not allowed: must be from 0 to 1") as raised:
        list(batches(source))
    assert "\n" not in str(raised.value)


def test_without_the_archives_their_names_and_place_are_told(tmp_path):
    with pytest.raises(UserError, match="data set not prepared") as raised:
        open_source(imagenet_config(tmp_path))
    assert str(tmp_path / "downloads" / "manual") in str(raised.value)
    assert "ILSVRC2012_img_train.tar" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def put_version(version: str, data_dir, folder) -> Path:
    """Puts what is prepared in `data_dir` into another folder as if it was of another version."""
    (prepared,) = data_dir.glob("imagenet2012/*")
    copy = shutil.copytree(prepared, folder / "imagenet2012" / version)
    info = copy / "dataset_info.json"
    content = info.read_text().replace(f'"version": "{prepared.name}"', f'"version": "{version}"')
    info.write_text(content)
    return copy


def opened_version(folder) -> str:
    splits = ("train", "validation")
    return prepared.prepared_builder("imagenet2012", str(folder), splits).data_path.name


def test_the_newest_version_of_the_same_major_one_is_read_where_tfds_own_is_absent(
    data_dir, tmp_path
):
    for version in ("4.9.9", "5.0.0", "5.0.10", "5.0.9"):
        put_version(version, data_dir, tmp_path)
    assert opened_version(tmp_path) == "5.0.10"
    (own,) = (path.name for path in data_dir.glob("imagenet2012/*"))
    put_version("5.99.0", data_dir, tmp_path)
    put_version(own, data_dir, tmp_path)
    assert opened_version(tmp_path) == own


def test_an_older_version_holds_the_same_images_in_the_same_order(
    data_dir, tmp_path_factory, monkeypatch
):
    folder = archives(tmp_path_factory, broken=False)
    with monkeypatch.context() as older_tfds:
        older_tfds.setattr(tfds.builder_cls("imagenet2012"), "VERSION", tfds.core.Version("5.0.0"))
        open_source(imagenet_config(folder))
    assert opened_version(folder) == "5.0.0"
    own, older = (open_source(imagenet_config(place)) for place in (data_dir, folder))
    assert own.class_names == older.class_names
    for split in ("train", "holdout", "test"):
        for batch, same in zip(
            own.evaluation_batches(split, 8), older.evaluation_batches(split, 8), strict=True
        ):
            np.testing.assert_array_equal(batch["image"], same["image"])
            np.testing.assert_array_equal(batch["label"], same["label"])


def test_a_version_that_cannot_be_read_is_passed_over(data_dir, tmp_path):
    put_version("5.0.0", data_dir, tmp_path)
    (put_version("5.0.1", data_dir, tmp_path) / "dataset_info.json").write_text("garbage")
    (put_version("5.0.2", data_dir, tmp_path) / "dataset_info.json").unlink()
    (tmp_path / "imagenet2012" / "5.0.3").mkdir()
    assert opened_version(tmp_path) == "5.0.0"


def test_versions_that_cannot_be_used_are_named_with_those_that_can(data_dir, tmp_path):
    put_version("4.0.0", data_dir, tmp_path)
    (tmp_path / "imagenet2012" / "5.0.0").mkdir()
    with pytest.raises(UserError) as raised:
        open_source(imagenet_config(tmp_path))
    assert "as a version 5.*.* that can be read (there is 4.0.0, 5.0.0) and" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_archive_of_two_is_not_enough(tmp_path):
    manual_dir = tmp_path / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    write_train_archive(manual_dir)
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar is missing"):
        open_source(imagenet_config(tmp_path))
    assert not (tmp_path / "imagenet2012").exists()


def test_a_truncated_record_file_is_named(data_dir):
    (shard,) = data_dir.glob("imagenet2012/*/*train.tfrecord*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    try:
        with pytest.raises(UserError, match=f"{shard.name}: truncated at byte"):
            open_source(imagenet_config(data_dir))
    finally:
        shard.write_bytes(whole)


def test_a_record_file_without_its_last_records_is_not_the_data_set(data_dir):
    (shard,) = data_dir.glob("imagenet2012/*/*train.tfrecord*")
    whole = shard.read_bytes()
    _, first, _ = encoded.index_records([str(shard)]).places[-2]
    shard.write_bytes(whole[: first - 12])
    try:
        with pytest.raises(UserError, match="split 'train' holds 34 images: must be 36"):
            open_source(imagenet_config(data_dir))
    finally:
        shard.write_bytes(whole)


def test_files_that_are_no_tfrecords_are_one_line(data_dir, tmp_path):
    shutil.copytree(data_dir / "imagenet2012", tmp_path / "imagenet2012")
    (info,) = tmp_path.glob("imagenet2012/*/dataset_info.json")
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    for shard in info.parent.glob("*.tfrecord*"):
        shard.rename(shard.with_name(shard.name.replace(".tfrecord", ".array_record")))
    with pytest.raises(UserError, match="files of split 'train' are not TFRecords") as raised:
        open_source(imagenet_config(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_record_that_was_cut_after_the_start_is_left_out_and_named(data_dir, caplog):
    source = open_source(imagenet_config(data_dir, max_bad_share=0.5))
    (shard,) = data_dir.glob("imagenet2012/*/*validation.tfrecord*")
    whole = shard.read_bytes()
    _, first, length = encoded.index_records([str(shard)]).places[-1]
    shard.write_bytes(whole[: first + length - 1])
    try:
        (batch,) = source.evaluation_batches("test", NUM_VALIDATION)
    finally:
        shard.write_bytes(whole)
    assert np.flatnonzero(~batch["mask"]).tolist() == [NUM_VALIDATION - 1]
    assert f"record at byte {first}: ends before its record does" in caplog.text


def test_the_places_of_records_are_those_that_tfds_wrote(data_dir):
    (shard,) = data_dir.glob("imagenet2012/*/*train.tfrecord*")
    records = encoded.index_records([str(shard), str(shard)])
    assert len(records) == 2 * 3 * PER_CLASS
    content = shard.read_bytes()
    for file, first, length in records.places[: 3 * PER_CLASS]:
        assert file == 0
        assert content[first - 12 : first - 4] == int(length).to_bytes(8, "little")
    assert records.places[-1, 1] + records.places[-1, 2] + 4 == len(content)
