"""Images that cannot be read: named once, counted, and no reason to stop until they are many."""

import logging
import math

from l2w_jax.errors import UserError
from l2w_jax.standard_output import in_one_line

_logger = logging.getLogger(__name__)


class BadImages:
    """The images of a data set that could not be read so far.

    Args:
        total: images of the data set.
        max_share: the share of them that may be bad, `config.dataset.max_bad_share`. Any share
            above 0 tolerates one image.
    """

    def __init__(self, total: int, max_share: float):
        self._total = total
        self._max_share = max_share
        self._names: set[str] = set()
        self._cut: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def add_cut(self, name: str) -> None:
        """Logs once an image that is used although its last bytes are missing."""
        if name not in self._cut:
            self._cut.add(name)
            _logger.warning(
                "used although its last bytes are missing: %s (%d so far)",
                in_one_line(name),
                len(self._cut),
            )

    def add(self, name: str, reason: str) -> None:
        """Counts the image `name` and logs it, both only the first time.

        Raises:
            UserError: too many images are bad.
        """
        if name in self._names:
            return
        self._names.add(name)
        # TensorFlow's errors quote the name.
        reason = in_one_line(reason)
        _logger.warning("skipped a bad image: %s: %s", in_one_line(name), reason)
        if len(self._names) > math.ceil(self._max_share * self._total):
            raise UserError(
                f"data set: at least {len(self._names):,} of {self._total:,} images cannot be "
                f"read, more than config.dataset.max_bad_share {self._max_share} allows, so "
                f"reading stopped at {in_one_line(name)}: {reason}"
            )
