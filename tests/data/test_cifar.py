"""CIFAR from a miniature archive in the real layout, through TFDS's own builder."""

import io
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar

from l2w_jax.config import default_config
from l2w_jax.data import open_source, prepared, splits
from l2w_jax.errors import UserError

NUM_TRAIN = 500
NUM_TEST = 50


def write_archive(path, num_classes: int) -> None:
    """Writes CIFAR's binary archive with random images, in turn of all classes."""
    generator = np.random.default_rng(0)

    def records(count: int) -> bytes:
        labels = (np.arange(count) % num_classes).astype(np.uint8)[:, None]
        if num_classes == 100:
            labels = np.concatenate([labels // 5, labels], axis=1)
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return np.concatenate([labels, pixels], axis=1).tobytes()

    names = [f"class{label}" for label in range(num_classes)]
    if num_classes == 10:
        folder = "cifar-10-batches-bin"
        files = {f"data_batch_{i}.bin": records(NUM_TRAIN // 5) for i in range(1, 6)}
        files |= {"test_batch.bin": records(NUM_TEST)}
        files |= {"batches.meta.txt": "\n".join(names).encode()}
    else:
        folder = "cifar-100-binary"
        files = {"train.bin": records(NUM_TRAIN), "test.bin": records(NUM_TEST)}
        files |= {"fine_label_names.txt": "\n".join(names).encode()}
        files |= {"coarse_label_names.txt": "\n".join(f"group{i}" for i in range(20)).encode()}
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_config(name: str, data_dir, **fields) -> ConfigDict:
    config = default_config()
    config.dataset.update(
        name=name,
        num_classes=int(name.removeprefix("cifar")),
        data_dir=str(data_dir),
        holdout=100,
        batch_size=32,
    )
    config.dataset.update(fields)
    return config


def put_archive(name: str, data_dir, monkeypatch) -> None:
    """Puts a miniature archive where the user is told to, and lets TFDS know its checksum."""
    builder_class = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]
    ((url, published),) = builder_class.url_infos.items()
    archive = data_dir / "downloads" / "manual" / published.filename
    write_archive(archive, int(name.removeprefix("cifar")))
    info = checksums.compute_url_info(archive)
    monkeypatch.setattr(builder_class, "url_infos", {url: info})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as monkeypatch:
        put_archive("cifar10", folder, monkeypatch)
        open_source(cifar_config("cifar10", folder))
    return folder


def test_an_archive_put_in_its_place_is_prepared_and_read(data_dir):
    source = open_source(cifar_config("cifar10", data_dir))
    assert (source.num_train, source.num_holdout, source.num_test) == (400, 100, 50)
    assert source.class_names == tuple(f"class{label}" for label in range(10))
    np.testing.assert_array_equal(source.train_class_counts, [40] * 10)
    batch = next(source.train_batches(0))
    assert batch["image"].shape == (32, 32, 32, 3)
    assert batch["image"].dtype == np.uint8


def test_what_lies_in_the_home_folder_is_found_by_its_short_name(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    source = open_source(cifar_config("cifar10", f"~/{data_dir.name}"))
    assert source.num_test == NUM_TEST


def test_long_tailed_cifar100_counts_and_test_set(tmp_path, monkeypatch):
    put_archive("cifar100", tmp_path, monkeypatch)
    config = cifar_config("cifar100", tmp_path, imbalance_factor=5, holdout=0)
    source = open_source(config)
    np.testing.assert_array_equal(
        source.train_class_counts, splits.long_tailed_counts(NUM_TRAIN // 100, 100, 5)
    )
    assert source.num_test == NUM_TEST
    assert source.class_names[99] == "class99"
    again = open_source(config)
    for batch, same in zip(
        source.evaluation_batches("train", 64), again.evaluation_batches("train", 64), strict=True
    ):
        np.testing.assert_array_equal(batch["image"], same["image"])


def test_held_out_images_are_never_trained_on(data_dir):
    source = open_source(cifar_config("cifar10", data_dir, augmentation="none"))
    held_out = {
        image.tobytes()
        for batch in source.evaluation_batches("holdout", 100)
        for image in batch["image"]
    }
    assert len(held_out) == 100
    batches = source.train_batches(0)
    trained = {image.tobytes() for _ in range(24) for image in next(batches)["image"]}
    assert len(trained) > 384
    assert not trained & held_out


def test_without_archive_and_network_the_file_and_its_place_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_is_reachable", lambda url: False)
    with pytest.raises(UserError) as raised:
        open_source(cifar_config("cifar10", tmp_path))
    assert str(tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_address_is_known_at_once():
    assert not prepared._is_reachable("http://127.0.0.1:9/archive.tar.gz")


def test_a_broken_archive_is_one_line_and_nothing_is_put_in_place(tmp_path):
    archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="cifar10: data set cannot be prepared") as raised:
        open_source(cifar_config("cifar10", tmp_path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


def test_a_half_prepared_folder_is_named(data_dir, tmp_path):
    empty = tmp_path / "cifar10" / "3.0.2"
    empty.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{empty}: half-prepared"):
        open_source(cifar_config("cifar10", tmp_path))
    for path in (data_dir / "cifar10" / "3.0.2").iterdir():
        (empty / path.name).write_bytes(path.read_bytes())
    (shard,) = empty.glob("*test.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match="split 'test' cannot be read"):
        open_source(cifar_config("cifar10", tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: missing or empty"):
        open_source(cifar_config("cifar10", tmp_path))
    description = empty / "dataset_info.json"
    for damaged in (b"", b"[]", b"\xff", description.read_bytes()[:-100]):
        description.write_bytes(damaged)
        with pytest.raises(UserError, match=f"^{empty}: dataset_info.json is damaged: delete "):
            open_source(cifar_config("cifar10", tmp_path))
    description.unlink()
    description.mkdir()
    with pytest.raises(UserError, match=f"^{empty.parent}: cannot be read: "):
        open_source(cifar_config("cifar10", tmp_path))


def test_a_fault_of_tfds_is_not_taken_for_damage_of_files_that_are_not_there(tmp_path, monkeypatch):
    def fails(name, data_dir):
        raise ValueError("no such builder")

    monkeypatch.setattr(prepared.tfds, "builder", fails)
    with pytest.raises(ValueError, match=r"^no such builder$"):
        open_source(cifar_config("cifar10", tmp_path))


def test_a_folder_that_cannot_be_written_to_or_found_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(prepared, "_check_archives", lambda builder: None)
    with pytest.raises(UserError, match=r"data_dir: .*/file/below cannot be written to \(Not a"):
        prepared.prepared_builder("cifar10", str(tmp_path / "file" / "below"), ("train",))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(prepared.Path, "home", no_home)
    with pytest.raises(UserError, match=r"data_dir: '' is not allowed for a user without a home"):
        prepared.prepared_builder("cifar10", "", ("train",))


def test_a_data_dir_that_is_a_file_is_one_line(tmp_path):
    path = tmp_path / "data"
    path.write_text("")
    with pytest.raises(UserError, match="is a file: must be a folder"):
        open_source(cifar_config("cifar10", path))
