"""Chooses the thresholds at which images leave, by a budget, an accuracy or a promise.

    python -m l2w_jax.thresholds --workdir=RUN --mul-adds=20M      # at most this much compute
    python -m l2w_jax.thresholds --workdir=RUN --latency-ms=2.5    # at most so long here
    python -m l2w_jax.thresholds --workdir=RUN --accuracy=92       # as cheap as 92% top-1 can be
    python -m l2w_jax.thresholds --workdir=RUN --q=0.8             # shares p_k proportional to q^k
    python -m l2w_jax.thresholds --workdir=RUN --risk=0.01 --confidence=0.95
    python -m l2w_jax.thresholds --workdir=RUN --rule=patience --mul-adds=20M
    python -m l2w_jax.thresholds --workdir=RUN --calibrate --mul-adds=20M

--risk promises that at most one point of accuracy is lost against the full network, with 95%
confidence, for images of the kind that were held out (`early_exit.guarantee` says how). Means are
taken over the images that the run's last evaluation set thresholds with: those held out, unless
`dataset.thresholds_from` is "train". --latency-ms is for images that come one at a time. --rule
says what decides (`early_exit.rules`): the log-odds of the most probable class, its probability,
the entropy, the margin to the second class, or patience, the number of exits that agree. With
--calibrate each exit gets a temperature, fitted on a third of the held-out images, so that its
confidences say how often it is right; the other images set the thresholds. Writes
RUN/thresholds.json, which the other commands use, and with --calibrate adds to RUN/evaluation.json
what the temperatures do to the calibration error of test images; with --output=FILE it writes FILE
and leaves the run as it is.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax import command_line
from l2w_jax.config import stored
from l2w_jax.early_exit import rules
from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES
from l2w_jax.early_exit.calibration import (
    LARGEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    UNFITTED,
    calibration_table,
)
from l2w_jax.early_exit.guarantee import guaranteed_thresholds
from l2w_jax.early_exit.selection import (
    Candidate,
    are_shifted,
    best_within,
    candidates,
    cheapest_reaching,
    percentages,
    thresholds_of,
)
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.evaluation import results
from l2w_jax.evaluation.calibrate import Calibration, calibrate
from l2w_jax.evaluation.policy import THRESHOLDS_FILE
from l2w_jax.files import told_if_unwritable, write_json
from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.run import workdir as run_folder

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Choice:
    """Thresholds, float32 [K], the q that they belong to, and the request that chose them."""

    q: float
    thresholds: NDArray[np.float32]
    chosen_by: dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: an argument is wrong, the run was not evaluated, or nothing meets the request.
        RunFailed: another evaluation took the place of the one that temperatures were fitted for.
    """
    arguments = _parse(argv)
    evaluation = results.Evaluation.load(arguments.workdir)
    output = arguments.output or arguments.workdir / THRESHOLDS_FILE
    calibration = _calibration(arguments.workdir, evaluation) if arguments.calibrate else None
    if calibration is None:
        chosen = choose(arguments, evaluation)
    else:
        chosen = choose(arguments, calibration.evaluation) | {
            "temperatures": calibration.temperatures,
            "fitting_images": calibration.fitting_images,
        }
    if calibration is not None and arguments.output is None:
        _keep_calibrated(arguments.workdir, evaluation, calibration.evaluation.calibrated)
    with told_if_unwritable(output, "--output=" if arguments.output else ""):
        write_json(output, chosen)
    print("\n".join(summary_lines(chosen)))
    if calibration is not None:
        print("\n".join(calibration_lines(evaluation, calibration)))
    print(f"written to {output}")


def choose(arguments: argparse.Namespace, evaluation: results.Evaluation) -> dict[str, Any]:
    """What thresholds.json holds: thresholds [K], where they come from and what they lead to.

    Raises:
        UserError: no thresholds meet the request.
    """
    rule = arguments.rule
    choice = _choice(arguments, evaluation)
    return {
        "rule": rule,
        "thresholds": [float(threshold) for threshold in choice.thresholds],
        "chosen_by": choice.chosen_by,
        # JSON has no infinity; only the full network has no finite q.
        "q": choice.q if math.isfinite(choice.q) else None,
        "step": evaluation.step,
        "network": evaluation.network,
        "thresholds_from": evaluation.thresholds_from,
        "thresholds_images": len(evaluation.threshold_images().labels),
        "expected": evaluation.outcome(evaluation.threshold_images(), choice.thresholds, rule),
        "test": evaluation.outcome(evaluation.test, choice.thresholds, rule),
        "full_network_mul_adds": evaluation.mul_adds[-1],
    }


def summary_lines(chosen: Mapping[str, Any]) -> list[str]:
    """The thresholds and what they lead to, for a person to read."""
    promise = chosen["chosen_by"]
    unit = ", as probabilities" if chosen["rule"] == rules.log_odds.__name__ else ""
    lines = [
        f"thresholds{unit}: "
        + ", ".join(_readable(threshold, chosen["rule"]) for threshold in chosen["thresholds"]),
    ]
    for name, label in (
        ("expected", f"{chosen['thresholds_images']:,} images of {chosen['thresholds_from']!r}"),
        ("test", "test images"),
    ):
        outcome = chosen[name]
        shares = [share for key, share in outcome.items() if key.startswith("share_")]
        of_full = outcome["mul_adds"] / chosen["full_network_mul_adds"]
        lines.append(
            f"{label}: top-1 {outcome['top1']:.2f}% with {outcome['mul_adds'] / 1e6:.2f} M "
            f"mul-adds ({100 * of_full:.0f}% of the full network's), leaving at exits 1 to "
            f"{len(shares)}: " + " ".join(percentages(shares))
        )
        # The ends of the family ask for no shares, nor does a promise.
        asks = chosen["q"] and "risk" not in promise
        asked = exit_shares(chosen["q"], len(shares)) if asks else shares
        if are_shifted(asked, shares):
            lines.append(
                f"  but q={chosen['q']:g} asked for shares of " + " ".join(percentages(asked))
            )
    if "latency_ms" in promise:
        lines.append(
            f"expected: {promise['expected_ms']:.2f} ms an image, one at a time on this machine"
        )
    if "risk" in promise:
        lines.append(
            f"promise: with {100 * promise['confidence']:g}% confidence at most "
            f"{100 * promise['risk']:g} points of accuracy are lost against the full network "
            f"(tested on {promise['test_images']} held-out images that set no threshold)"
            if chosen["q"] is not None
            else "promise: these held-out images support no early exit at this risk and "
            "confidence, so that every image goes on to the last exit"
        )
    return lines


def calibration_lines(evaluation: results.Evaluation, calibration: Calibration) -> list[str]:
    """The temperatures, and the calibration error on test images without them and with them."""
    before = calibration_table(evaluation.test.confidences, evaluation.test.correct)
    unfitted = [k for k, t in enumerate(calibration.temperatures, start=1) if t == UNFITTED]
    return [
        f"temperatures, fitted on {calibration.fitting_images:,} other held-out images: "
        + ", ".join(f"{temperature:.2f}" for temperature in calibration.temperatures),
        *(
            f"  exit {k} stays as sure as it is: the images tell no temperature between "
            f"{LEAST_TEMPERATURE:g} and {LARGEST_TEMPERATURE:g} for it, as where it is right about "
            "them all"
            for k in unfitted
        ),
        f"expected calibration error on test images, exits 1 to {len(before)}: "
        + ", ".join(
            f"{100 * old['ece']:.1f}% -> {100 * new['ece']:.1f}%"
            for old, new in zip(before, calibration.evaluation.calibrated, strict=True)
        ),
    ]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line.ArgumentParser("thresholds", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument(
        "--rule",
        choices=rules.RULES,
        default=rules.DEFAULT_RULE,
        help=f"what decides who leaves; default: {rules.DEFAULT_RULE}",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature to each exit on a third of the held-out images first",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="default: thresholds.json in the workdir, which with this is left as it is",
    )
    wish = parser.add_mutually_exclusive_group(required=True)
    quantity = command_line.quantity
    wish.add_argument("--mul-adds", type=quantity, help="mean an image, such as 20M")
    wish.add_argument(
        "--latency-ms", type=quantity, help="mean milliseconds an image, one at a time, here"
    )
    wish.add_argument("--accuracy", type=command_line.positive, help="top-1 in percent")
    wish.add_argument(
        "--q",
        type=command_line.positive,
        help="each exit takes q times as many images as the one before",
    )
    wish.add_argument("--risk", type=float, help="accuracy that may be lost; 0.01: one point")
    parser.add_argument("--confidence", type=float, help=f"of the promise; default: {_CONFIDENCE}")
    arguments = parser.parse_args(argv)
    if arguments.confidence is None:
        arguments.confidence = _CONFIDENCE
    elif arguments.risk is None:
        raise UserError("--confidence: is allowed with --risk only")
    if arguments.accuracy is not None and not 1 < arguments.accuracy <= 100:
        raise UserError(
            f"--accuracy={arguments.accuracy:g} is not allowed: must be in percent, more than 1 "
            "and at most 100"
        )
    return arguments


def _choice(arguments: argparse.Namespace, evaluation: results.Evaluation) -> Choice:
    scores = evaluation.threshold_images().scores(arguments.rule)
    if arguments.q is not None:
        return _by_shares(scores, arguments.q)
    if arguments.accuracy is not None:
        return _by_accuracy(evaluation, scores, arguments.accuracy)
    if arguments.risk is not None:
        return _by_promise(evaluation, scores, arguments.risk, arguments.confidence)
    correct = evaluation.threshold_images().correct
    if arguments.mul_adds is not None:
        among = candidates(scores, correct, evaluation.mul_adds)
        best = _within(among, arguments.mul_adds, "--mul-adds")
        return Choice(best.q, best.thresholds, {"mul_adds": arguments.mul_adds})
    measured = _milliseconds(arguments.workdir, evaluation)
    best = _within(candidates(scores, correct, measured), arguments.latency_ms, "--latency-ms")
    return Choice(
        best.q,
        best.thresholds,
        {
            "latency_ms": arguments.latency_ms,
            "measured_ms_of_exits": measured,
            "expected_ms": best.cost,
        },
    )


def _by_shares(scores: NDArray[np.float32], q: float) -> Choice:
    try:
        thresholds = thresholds_of(q, scores)
    except ValueError as error:
        raise UserError(f"--q={q:g} is not allowed: {error}") from error
    return Choice(q, thresholds, {"q": q})


def _by_accuracy(
    evaluation: results.Evaluation, scores: NDArray[np.float32], top1: float
) -> Choice:
    among = candidates(scores, evaluation.threshold_images().correct, evaluation.mul_adds)
    best = cheapest_reaching(among, top1)
    if best is None:
        reachable = max(candidate.top1 for candidate in among)
        raise UserError(
            f"--accuracy={top1:g} is out of reach: the most that this network comes to on "
            f"{evaluation.thresholds_from!r} images is {reachable:.2f}%"
        )
    return Choice(best.q, best.thresholds, {"top1": top1})


def _by_promise(
    evaluation: results.Evaluation, scores: NDArray[np.float32], risk: float, confidence: float
) -> Choice:
    if evaluation.thresholds_from != "holdout":
        raise UserError(
            "--risk: a promise needs images that the network was not trained on; train and "
            "evaluate with --config.dataset.thresholds_from=holdout"
        )
    correct = evaluation.threshold_images().correct
    try:
        guarantee = guaranteed_thresholds(scores, correct, evaluation.mul_adds, risk, confidence)
    except ValueError as error:
        raise UserError(f"--risk={risk:g} --confidence={confidence:g}: {error}") from error
    promise = dataclasses.asdict(guarantee)
    return Choice(promise.pop("q"), promise.pop("thresholds"), promise)


def _within(among: Sequence[Candidate], budget: float, argument: str) -> Candidate:
    best = best_within(among, budget)
    if best is None:
        least = min(candidate.cost for candidate in among)
        takes = f"{least:.3g} ms" if argument == "--latency-ms" else f"{least / 1e6:.3g}M"
        raise UserError(
            f"{argument}={budget:g} is out of reach: the first exit alone takes {takes}"
        )
    return best


def _calibration(workdir: Path, evaluation: results.Evaluation) -> Calibration:
    # Imported here, since only this needs the network and the data.
    from l2w_jax.run.images import open_evaluated
    from l2w_jax.run.restore import restore_evaluated

    config = stored.read_config(workdir)
    state = restore_evaluated(config, workdir, evaluation)
    source = open_evaluated(config, workdir, evaluation, ("holdout", "test"))
    return calibrate(config, state.variables, source, evaluation)


def _keep_calibrated(
    workdir: Path, evaluation: results.Evaluation, calibrated: list[dict[str, Any]] | None
) -> None:
    """Adds what temperatures do to the evaluation in the run's folder.

    Raises:
        UserError: another process holds the folder, or the file cannot be written.
        RunFailed: the folder holds another evaluation by now.
    """
    with run_folder.locked(workdir):
        now = results.Evaluation.load(workdir)
        if not now.is_of(evaluation.step, evaluation.network) or now.digests != evaluation.digests:
            raise RunFailed(
                f"{workdir}: was evaluated anew while temperatures were fitted; the same command "
                "goes by that evaluation"
            )
        with told_if_unwritable(workdir / results.SUMMARY_FILE):
            dataclasses.replace(now, calibrated=calibrated).save_summary(workdir)


def _milliseconds(workdir: Path, evaluation: results.Evaluation) -> list[float]:
    """Measured time of an image by itself that stops at each exit, [K]."""
    # Imported here, since only this needs the network and what reading its checkpoints takes.
    from l2w_jax.early_exit.latency import milliseconds_per_exit
    from l2w_jax.models import create_network
    from l2w_jax.run.restore import restore_evaluated

    config = stored.read_config(workdir)
    state = restore_evaluated(config, workdir, evaluation)
    size = config.dataset.image_size
    images = np.random.default_rng(0).normal(size=(1, size, size, 3))
    return milliseconds_per_exit(
        create_network(config),
        state.variables,
        images.astype(np.float32),
    ).tolist()


def _readable(threshold: float, rule: str) -> str:
    """The threshold, with log-odds given as the probability that they stand for."""
    if threshold >= NOBODY_LEAVES:
        return "nobody"
    if threshold <= EVERYBODY_LEAVES:
        return "everybody"
    if rule != rules.log_odds.__name__:
        return f"{threshold:.4f}"
    # From the smaller of p and 1 - p, which keeps its digits where the other is all nines.
    smaller = math.exp(-abs(threshold)) / (1 + math.exp(-abs(threshold)))
    if threshold < 0:
        return f"{smaller:.4f}"
    return f"{1 - smaller:.4f}" if smaller > 1e-4 else f"1 - {smaller:.1e}"


if __name__ == "__main__":
    command_line.run(main)
