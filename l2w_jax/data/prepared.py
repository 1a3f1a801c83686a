"""Data sets of TensorFlow Datasets: prepared once, checked, and never half used."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import requests
import tensorflow_datasets as tfds

from l2w_jax.errors import UserError, first_line
from l2w_jax.files import lock

_CONNECT_SECONDS = 5
_ADVICE = "delete this folder and run the same command again to prepare it anew"
_IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def prepared_builder(name: str, data_dir: str, splits: tuple[str, ...]):
    """Returns the TFDS builder of data set `name` with all of `splits` on disk.

    It is of TFDS's own version or, where that is not there, of the newest of the same major
    version: those hold the same images in the same order, so a run can go on with either. The first
    process to come prepares it, under a lock; the others wait and use the result. What TFDS writes
    depends on the archive alone, so hosts that prepare their own copy agree.

    Args:
        name: as TFDS spells it.
        data_dir: the folder of all TFDS data sets; "" is TFDS's own default.
        splits: what must be there.

    Raises:
        UserError: the archive is missing and cannot be downloaded, or what lies there is broken.
    """
    if not data_dir:
        _check_home()
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if root.is_file():
        raise UserError(f"config.dataset.data_dir: {root} is a file: must be a folder")
    builder = _builder(name, root)
    if not builder.data_path.exists():
        _check_archives(builder)
        with _lock(builder):
            if not builder.data_path.exists():
                _prepare(builder)
        # A builder made before another process prepared the data does not know of them.
        builder = _builder(name, root)
    _check_complete(builder, splits)
    return builder


def _builder(name: str, root: Path):
    """The builder of a version that can be read; else of the one that TFDS would prepare.

    Raises:
        UserError: what describes the data set is there, but damaged or not to be read.
    """
    try:
        own = tfds.builder(name, data_dir=root)
    except OSError as error:
        raise UserError(
            f"{root / name}: cannot be read: {first_line(error.__cause__ or error)}"
        ) from error
    # Where there is a dataset_info.json, TFDS reads it, and may raise anything if it is damaged.
    except Exception as error:
        folder = root / name / str(tfds.builder_cls(name).VERSION)
        if not (folder / "dataset_info.json").exists():
            raise
        raise UserError(f"{folder}: dataset_info.json is damaged: {_ADVICE}") from error
    if own.data_path.exists():
        return own
    alike = [version for version in _versions_there(own) if version.major == own.version.major]
    for version in reversed(alike):
        # One that is damaged, or was prepared by too old a TFDS, may raise anything.
        with contextlib.suppress(Exception):
            other = tfds.builder(f"{name}:{version}", data_dir=root)
            if other.info.splits:
                return other
    return own


def _versions_there(builder) -> list[tfds.core.Version]:
    """The versions of a builder's data set that lie where its own would, the newest last."""
    try:
        names = [path.name for path in builder.data_path.parent.iterdir()]
    except OSError:
        return []
    return sorted(tfds.core.Version(name) for name in names if tfds.core.Version.is_valid(name))


def _check_home() -> None:
    """Raises UserError where the user has no home folder, in which TFDS would keep its data."""
    try:
        Path.home()
    except RuntimeError as error:
        raise UserError(
            "config.dataset.data_dir: '' is not allowed for a user without a home folder: must be "
            "a folder"
        ) from error


def _manual_dir(builder) -> Path:
    return Path(builder.data_dir_root) / "downloads" / "manual"


def _check_archives(builder) -> None:
    """Raises UserError, which names the file and its place, where preparing cannot succeed."""
    manual_dir = _manual_dir(builder)
    not_prepared = f"{builder.name}: data set not prepared in {builder.data_dir_root}"
    if found := _versions_there(builder):
        not_prepared += (
            f" as a version {builder.version.major}.*.* that can be read (there is "
            f"{', '.join(map(str, found))})"
        )
    if builder.name == "imagenet2012":
        missing = [name for name in _IMAGENET_ARCHIVES if not (manual_dir / name).is_file()]
        if missing:
            raise UserError(
                f"{not_prepared} and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing: register at "
                f"https://image-net.org/download-images, put {' and '.join(missing)} into "
                f"{manual_dir} and run the same command again, or name the folder that holds the "
                "prepared data set with --config.dataset.data_dir"
            )
        return
    for url, archive in builder.url_infos.items():
        if (manual_dir / archive.filename).exists() or _is_reachable(url):
            continue
        raise UserError(
            f"{not_prepared} and {url} cannot be reached: download it elsewhere, put it at "
            f"{manual_dir / archive.filename} and run the same command again, or name the folder "
            "that holds the prepared data set with --config.dataset.data_dir"
        )


def _is_reachable(url: str) -> bool:
    """Asks only once and briefly: TFDS by itself tries for minutes before it gives up."""
    try:
        answer = requests.head(url, timeout=_CONNECT_SECONDS, allow_redirects=True)
    except requests.exceptions.RequestException:
        return False
    return answer.ok


@contextlib.contextmanager
def _lock(builder) -> Iterator[None]:
    root = Path(builder.data_dir_root)
    path = root / f".{builder.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(
            f"config.dataset.data_dir: {root} cannot be written to ({error.strerror}): must be a "
            f"folder that holds {builder.name}, or in which it can be prepared"
        ) from error
    with open(path, "w") as lock_file:
        lock(lock_file, wait=True, danger="take care that no second run prepares the data set now")
        yield


def _prepare(builder) -> None:
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(_manual_dir(builder)), try_download_gcs=False
            )
        )
    # Whatever an archive of the wrong content or a full disk raises, nothing was put in place:
    # TFDS renames its folder only when it is complete.
    except Exception as error:
        raise UserError(
            f"{builder.name}: data set cannot be prepared in {builder.data_dir_root}: "
            f"{first_line(error)}"
        ) from error


def _check_complete(builder, splits: tuple[str, ...]) -> None:
    """Raises UserError if a split is missing or one of its files is, or is empty."""
    if not builder.info.splits:
        raise UserError(f"{builder.data_path}: half-prepared data set: {_ADVICE}")
    for split in splits:
        if split not in builder.info.splits:
            raise UserError(
                f"{builder.data_path}: split {split!r} is missing (it holds "
                f"{', '.join(map(repr, builder.info.splits))}): {_ADVICE}"
            )
        for path in map(Path, builder.info.splits[split].filepaths):
            if not path.is_file() or path.stat().st_size == 0:
                raise UserError(f"{path}: missing or empty: half-prepared data set: {_ADVICE}")
