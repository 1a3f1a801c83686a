"""Names beside the points of a chart, placed where they cross no line and no other name."""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

# Space around a name, in points: half a mark, so that clear of a line is clear of its marks too.
_CLEAR = 3

# Distances of a name from its point, in points: the nearest first.
_DISTANCES = (7, 12, 20, 32, 48)

# Sides of its point, right (1) or left (-1) and above (1) or below (-1): the best first.
_SIDES = ((1, -1), (-1, 1), (1, 1), (-1, -1), (-1, 0), (1, 0), (0, -1), (0, 1))

_HORIZONTAL = {1: "left", 0: "center", -1: "right"}
_VERTICAL = {1: "bottom", 0: "center", -1: "top"}


def place(axes: Axes, names: Sequence[Annotation]) -> None:
    """Moves each name to the first place around its point where it crosses nothing.

    If every place crosses something, a name takes one that crosses least.

    Args:
        axes: laid out already.
        names: annotations of `axes`, at offsets in points.
    """
    clear = _CLEAR * axes.figure.dpi / 72
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    taken: list[Bbox] = []
    for name in names:

        def crossed(at: tuple[int, tuple[int, int]], name: Annotation = name) -> int:
            return _crossed(_moved(name, *at).padded(clear), axes.bbox, lines, taken)

        best = min(product(_DISTANCES, _SIDES), key=crossed)
        taken.append(_moved(name, *best))


def _moved(name: Annotation, distance: int, side: tuple[int, int]) -> Bbox:
    """Moves a name to a side of its point; returns what it covers, in pixels."""
    right, up = side
    name.set_position((distance * right, distance * up))
    name.set(ha=_HORIZONTAL[right], va=_VERTICAL[up])
    return name.get_window_extent()


def _crossed(box: Bbox, inside: Bbox, lines: Sequence[Path], names: Sequence[Bbox]) -> int:
    """How many lines, edges of the axes and other names a box crosses."""
    is_inside = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
    return (
        (not is_inside)
        + sum(line.intersects_bbox(box, filled=False) for line in lines)
        + sum(box.overlaps(name) for name in names)
    )
