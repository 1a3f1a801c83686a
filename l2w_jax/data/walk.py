"""Image files in a folder and all folders within it, the same for training and `predict`."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from l2w_jax.data.formats import image_endings
from l2w_jax.errors import UserError
from l2w_jax.standard_output import in_one_line

# Folders that systems make among a user's: archives of macOS, Synology's storage, Windows, Linux.
# They hold thumbnails, which would be trained on beside test images that they show, what was
# deleted, or nothing.
_OF_SYSTEMS = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Lists a folder in alphabetical order, without what is hidden or a system's own.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                (
                    entry
                    for entry in found
                    if not entry.name.startswith(".") and entry.name not in _OF_SYSTEMS
                ),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error


def image_files(
    folder: str | os.PathLike[str],
    skipped: Counter[str],
    unreadable: list[UserError] | None = None,
) -> Iterator[str]:
    """Yields the paths of all images below a folder, in alphabetical order.

    Links are followed, but not back to a folder that they are in. A file's ending tells whether it
    is an image. A link with such an ending that leads nowhere is yielded too, for its reader to
    report.

    Args:
        folder: where to begin.
        skipped: counts the other files by their endings.
        unreadable: gets an error for each folder that cannot be read; the others are still read.

    Raises:
        UserError: a folder cannot be read, and `unreadable` is not given.
    """
    real = Path(os.path.realpath(folder))
    above = (*map(str, reversed(real.parents)), str(real))
    yield from _below(os.fspath(folder), above, skipped, unreadable)


def _below(
    folder: str,
    above: tuple[str, ...],
    skipped: Counter[str],
    unreadable: list[UserError] | None,
) -> Iterator[str]:
    try:
        found = entries(folder)
    except UserError as error:
        if unreadable is None:
            raise
        unreadable.append(error)
        return
    for entry in found:
        if is_folder(entry):
            inside = os.path.join(above[-1], entry.name)
            real = os.path.realpath(inside) if entry.is_symlink() else inside
            if real not in above:
                yield from _below(entry.path, (*above, real), skipped, unreadable)
        elif is_image(entry):
            yield entry.path
        else:
            skipped[ending(entry.name)] += 1


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether this is an image by its ending; pipes and devices are not."""
    has_ending = entry.name.lower().endswith(image_endings())
    return has_ending and (os.path.isfile(entry.path) or not os.path.exists(entry.path))


def ending(name: str) -> str:
    """Returns the ending of a file's name for people to read."""
    return in_one_line(os.path.splitext(name)[1].lower()) or "without an ending"


def skipped_line(skipped: Counter[str]) -> str:
    """Says how many files were skipped because they are no images, by their endings."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common())
    return f"skipped files that are not images: {kinds}"
