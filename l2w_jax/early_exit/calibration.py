"""Calibration of exits: confidences that mean how often an exit is right.

Each exit's logits are divided by a temperature of its own, which leaves its answers as they are and
changes how sure it is of them (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn
from numpy.typing import NDArray

from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.precision import at_least_float32

# If the best temperature is not between these, nothing is fitted: the fewer the images, the more
# often an exit is right about them all, and the best temperature for that is 0.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.05, 20.0

# The temperature that leaves an exit as sure as it is.
UNFITTED = 1.0


class Calibrated(MultiExitNetwork):
    """A network whose exits are calibrated; it has the variables of the network itself.

    Attributes:
        network: the network.
        temperatures: one for each exit.
    """

    network: MultiExitNetwork
    temperatures: tuple[float, ...]

    def setup(self):
        """Lets the network have this module's variables, and compute in its type."""
        self.inner = self.network.clone(dtype=self.dtype, axis_name=self.axis_name)
        nn.share_scope(self, self.inner)

    @property
    def num_exits(self) -> int:
        """K."""
        return self.network.num_exits

    def init_carry(self, images: jax.Array, train: bool):
        """The network's own."""
        return self.inner.init_carry(images, train)

    def stage(self, k: int, carry, train: bool):
        """The network's own, with the logits divided by the exit's temperature."""
        logits, carry = self.inner.stage(k, carry, train)
        return at_least_float32(logits) / self.temperatures[k], carry


def calibrated(network: MultiExitNetwork, temperatures: Sequence[float] | None) -> MultiExitNetwork:
    """The network with these temperatures [K] at its exits; None leaves it as it is."""
    if temperatures is None:
        return network
    return Calibrated(
        network,
        tuple(temperatures),
        dtype=network.dtype,
        axis_name=network.axis_name,
    )


def checked_temperatures(
    temperatures: Sequence[float] | None, num_exits: int
) -> tuple[float, ...] | None:
    """The temperatures [K], or None where there are none.

    Raises:
        ValueError: there are not K, or one is not among those that are fitted; with extreme ones
            no answer would be finite.
    """
    if temperatures is None:
        return None
    least, largest = LEAST_TEMPERATURE, LARGEST_TEMPERATURE
    if len(temperatures) != num_exits or not all(least <= t <= largest for t in temperatures):
        raise ValueError(
            f"temperatures are {temperatures}; {num_exits} from {least:g} to {largest:g} are "
            "expected"
        )
    return tuple(float(t) for t in temperatures)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature T with the least mean cross-entropy of logits / T, if it is not extreme.

    The cross-entropy is convex in 1/T, so that there is one.

    Args:
        logits: of one exit [N, C].
        labels: class indices [N].

    Returns:
        T; UNFITTED where it is not between LEAST_TEMPERATURE and LARGEST_TEMPERATURE.
    """
    # Imported here, since most who import this module fit nothing.
    from scipy import optimize

    below_largest = np.asarray(logits, dtype=np.float64)
    below_largest = below_largest - below_largest.max(axis=-1, keepdims=True)
    of_label = below_largest[np.arange(len(labels)), labels]
    # ImageNet's logits would take seconds if each step of the search made arrays of its own.
    exponentials = np.empty_like(below_largest)

    def cross_entropy(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        np.exp(np.multiply(below_largest, scale, out=exponentials), out=exponentials)
        return float((np.log(exponentials.sum(axis=-1)) - scale * of_label).mean())

    bounds = np.log(LEAST_TEMPERATURE), np.log(LARGEST_TEMPERATURE)
    found = optimize.minimize_scalar(cross_entropy, bounds=bounds).x
    # The search never reaches the bounds themselves.
    if cross_entropy(found) >= min(map(cross_entropy, bounds)):
        return UNFITTED
    return float(np.exp(found))


def calibration_error(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, over equal bins.

    ECE = sum_b n_b / N · |accuracy_b - confidence_b| over bins of equal width.

    Args:
        confidences: of one exit [N].
        correct: whether it classifies each sample correctly [N].
        num_bins: how many bins [0, 1] is divided into.

    Returns:
        0 to 1.
    """
    bins = _equal_bins(confidences, num_bins)
    gaps = np.bincount(bins, weights=correct - np.float64(confidences), minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidences))


def reliability(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], num_bins: int = 15
) -> list[tuple[float, float]]:
    """Mean confidence and accuracy, 0 to 1, of the samples in each bin of `calibration_error`.

    Bins without samples are left out.
    """
    bins = _equal_bins(confidences, num_bins)
    filled = [bins == i for i in range(num_bins) if (bins == i).any()]
    return [(float(confidences[b].mean()), float(correct[b].mean())) for b in filled]


def _equal_bins(confidences: NDArray[np.floating], num_bins: int) -> NDArray[np.integer]:
    """The bin that each confidence lies in; bins are equally wide and include their upper edge."""
    return np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)


def adaptive_calibration_error(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """`calibration_error` over bins of equally many samples (Nixon et al., CVPR Workshops 2019).

    Of bins of equal width, one holds nearly all samples if the network is mostly sure.
    """
    order = np.argsort(confidences, kind="stable")
    gaps = correct[order] - np.float64(confidences[order])
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, num_bins)) / len(gaps))


def calibration_table(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_]
) -> list[dict[str, float]]:
    """One row for each exit: exit (from 1), ece and adaptive_ece, 0 to 1.

    Args:
        confidences: [K, N].
        correct: whether each exit classifies each sample correctly [K, N].
    """
    return [
        {
            "exit": k + 1,
            "ece": calibration_error(confidences[k], correct[k]),
            "adaptive_ece": adaptive_calibration_error(confidences[k], correct[k]),
        }
        for k in range(len(confidences))
    ]
