"""Finds images to judge a network by that are, byte for byte, among those it is trained on.

Users' folders often hold an image twice, and one of two copies may be cut from "train" while the
other stays there. Reading a million files would take too long: at most 1,000 images of a split are
checked, and of the training images only files of equal size are opened. Of all others just the size
is asked for, which the file system read a moment before when they were listed.
"""

import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from l2w_jax.data.encoded import ImageFiles
from l2w_jax.progress import Progress

# Of each split to judge by. Copies that do not show among so many change no accuracy by much.
MOST_LOOKED_AT = 1000

# Of the training images: only files without compression are so many of one size.
_MOST_OPENED = 100_000

# At the end of a file, where compressed files differ, unlike in their headers.
_TAIL_BYTES = 4096

# In parallel, since the wait is for a disk or a network, not the processor.
_AT_ONCE = 16
_IN_A_PART = 10_000

_SPLITS = {"holdout": "held-out", "test": "test"}


def copies_line(images: Mapping[str, ImageFiles], root: Path) -> str:
    """Says how many images of "holdout" and "test" are copies of some of "train"; "" if none is."""
    looked_at = {split: _spread(images[split].paths, MOST_LOOKED_AT) for split in _SPLITS}
    copied = find_copies(np.concatenate([*looked_at.values()]), images["train"].paths)
    if not copied:
        return ""
    counts = {split: sum(path in copied for path in paths) for split, paths in looked_at.items()}
    numbers = " and ".join(
        f"{count:,} of {len(looked_at[split]):,} {_SPLITS[split]} images"
        + (" looked at" if len(looked_at[split]) < len(images[split]) else "")
        for split, count in counts.items()
        if count
    )
    one, other = (
        repr(os.path.relpath(path.decode(errors="replace"), root))
        for path in next(iter(copied.items()))
    )
    return (
        f"{root}: {numbers} are copies of training images, such as {one} of {other}: the network "
        "is trained on them, and what they say of it, of thresholds and of --risk is too good; "
        "keep one copy of each image"
    )


def find_copies(judged: Sequence[bytes], trained: Sequence[bytes]) -> dict[bytes, bytes]:
    """For each judged file with equal ones among the trained, the first of these.

    Files that are empty or cannot be read, which their reader reports, are no copies. Of the
    trained at most _MOST_OPENED are opened, evenly spaced among those of equal size.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # Each look costs more than the one before, and is taken at fewer files.
        for look in (os.path.getsize, _tail, _content):
            of_judged = _by_look(pool, look, judged)
            of_trained = _by_look(pool, look, trained, of_judged)
            judged = [path for seen in of_trained for path in of_judged[seen]]
            same = [path for alike in of_trained.values() for path in alike]
            trained = _spread(same, _MOST_OPENED)
    return {path: alike[0] for seen, alike in of_trained.items() for path in of_judged[seen]}


def _by_look(
    pool: ThreadPoolExecutor,
    look: Callable[[bytes], int | bytes],
    paths: Sequence[bytes],
    among: Container[int | bytes] | None = None,
) -> dict[int | bytes, list[bytes]]:
    """The paths by what a look at each file shows, if that is anything, and is among these."""

    def look_at(part: Sequence[bytes]) -> list[tuple[int | bytes, bytes]]:
        shown = []
        for path in part:
            with contextlib.suppress(OSError):
                seen = look(path)
                if seen and (among is None or seen in among):
                    shown.append((seen, path))
        return shown

    by_look = defaultdict(list)
    # In large parts, since handing over a single file takes longer than asking for its size.
    parts = np.array_split(np.asarray(paths, bytes), max(_AT_ONCE, len(paths) // _IN_A_PART))
    progress = Progress(
        lambda count: (
            f"looking for copies: {count * len(paths) // len(parts):,} of {len(paths):,} images"
        )
    )
    for shown in progress.of(pool.map(look_at, parts)):
        for seen, path in shown:
            by_look[seen].append(path)
    return by_look


def _tail(path: bytes) -> bytes:
    # Not `open`, which takes twice as long.
    file = os.open(path, os.O_RDONLY)
    try:
        start = max(0, os.fstat(file).st_size - _TAIL_BYTES)
        return hashlib.sha256(os.pread(file, _TAIL_BYTES, start)).digest()
    finally:
        os.close(file)


def _content(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _spread(paths: Sequence[bytes], most: int) -> Sequence[bytes]:
    """All of them, or `most`, evenly spaced."""
    if len(paths) <= most:
        return paths
    return [paths[place] for place in np.linspace(0, len(paths) - 1, most).astype(int)]
