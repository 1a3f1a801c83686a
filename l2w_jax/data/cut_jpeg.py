"""Which JPEGs that lack their last bytes, as after a broken transfer, are good enough.

A decoder does not say how much of the picture was lost. But pixels that depend on the missing bytes
differ with what is put in their place.
"""

import io
import re

import numpy as np
from PIL import Image

# The share of its pixels that a picture may lack and still be used.
_MOST_LOST = 0.01

# Rows of the largest blocks in which the picture is stored.
_BLOCK_ROWS = 16

START = b"\xff\xd8\xff"  # the first bytes of any JPEG
_END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
_START_OF_FRAME = (0xC0, 0xC1, 0xC2)

# Within the data of a scan, 0xFF begins a marker unless a zero or a restart's number follows.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)


def with_end(encoded: bytes) -> bytes | None:
    """Returns a JPEG that lacks its last bytes with an end, so that it can be decoded.

    Returns:
        The JPEG; None if more than a hundredth of the picture is missing, or the file is otherwise
        broken or not a JPEG.
    """
    if not encoded.startswith(START):
        return None
    # Half a marker or half an escaped byte.
    kept = encoded[:-1] if encoded.endswith(b"\xff") else encoded
    segments = _segments(kept)
    if not _has_all_scans(segments):
        return None
    has_restarts = any(marker == _RESTART_INTERVAL for marker, _ in segments)
    try:
        picture, *others = (
            _decoded(kept + tail + _END)
            for tail in (b"", *(_noise(len(kept), seed, has_restarts) for seed in range(2)))
        )
    # Pillow raises many kinds of errors.
    except Exception:
        return None
    depends = np.any([other != picture for other in others], axis=0).any(axis=-1)
    return kept + _END if _lost(depends) <= _MOST_LOST * depends.size else None


def _decoded(encoded: bytes) -> np.ndarray:
    # Not by TensorFlow, which prints what it thinks of such files.
    with Image.open(io.BytesIO(encoded)) as image:
        return np.atleast_3d(image)


def _segments(encoded: bytes) -> list[tuple[int, bytes]]:
    """The markers of a JPEG, each with the content of its segment."""
    segments = []
    position = 2
    while (found := _MARKER.search(encoded, position)) and found[0] != _END:
        start = found.end() + 2
        length = int.from_bytes(encoded[found.end() : start])
        segments.append((found[1][0], encoded[start : found.end() + length]))
        position = found.end() + length
    return segments


def _has_all_scans(segments: list[tuple[int, bytes]]) -> bool:
    """Whether every coefficient of every component has its last bit in some scan that began."""
    missing = {}
    for marker, content in segments:
        if marker in _START_OF_FRAME:
            components = content[6 : 6 + 3 * content[5] : 3] if len(content) > 5 else b""
            missing = {component: set(range(64)) for component in components}
        elif marker == _START_OF_SCAN:
            count = content[0] if content else 0
            if len(content) < 4 + 2 * count:
                return False
            first, last, bits = content[1 + 2 * count : 4 + 2 * count]
            if bits & 15 == 0:
                for component in content[1 : 1 + 2 * count : 2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _noise(length: int, seed: int, has_restarts: bool) -> bytes:
    """Data that a scan may go on with: no markers, except restarts where the JPEG has them."""
    noise = np.random.default_rng(seed).integers(0, 255, length, np.uint8)
    if has_restarts:
        # So often that there is noise after the next restart, wherever the data break off.
        places = np.arange(64, length - 1, 32)
        noise[places] = 0xFF
        noise[places + 1] = 0xD0 + np.arange(len(places)) % 8
    return noise.tobytes()


def _lost(depends: np.ndarray) -> int:
    """How many pixels come after the first that depends on what is missing, block by block."""
    if not depends.any():
        return 0
    height, width = depends.shape
    top = int(depends.any(axis=1).argmax())
    bottom = min(top + _BLOCK_ROWS, height)
    left = int(depends[top:bottom].any(axis=0).argmax())
    return (bottom - top) * (width - left) + (height - bottom) * width
