# Assigned, because it is what --help prints: python -OO drops docstrings, but not this.
__doc__ = """Trains a multi-exit network with learned sample weights, and evaluates it.

    python -m l2w_jax.main --config=configs/NAME.py[:VARIANT] [--config.a.b=VALUE ...]
        [--workdir=FOLDER] [--mode=train|evaluate]

The same command again goes on where the run stopped. Training ends with the evaluation that
--mode=evaluate does by itself: of the checkpoint with the best held-out top-1 at the last exit, or
where no images are held out, of the newest.

l2w_jax/config/defaults.py lists every field with its default.

Exit status: 0 done; 1 the run failed; 2 bad input, with which the same command fails again; 75
stopped by SIGTERM, SIGINT or SIGHUP, after saving: run the same command again.
"""

import signal
import sys
from collections.abc import Sequence

from l2w_jax import command_line, standard_output
from l2w_jax.config import validate
from l2w_jax.config.flags import Arguments, parse
from l2w_jax.errors import UserError
from l2w_jax.run import stop_signals
from l2w_jax.run import workdir as run_folder


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        argv: program name and arguments.

    Returns:
        The exit status.
    """
    standard_output.prepare()
    if {"--help", "-h"} & set(argv):
        with standard_output.faults_told():
            print(__doc__)
        return 0
    with stop_signals.ending_at_once():
        try:
            run(parse(argv))
        except UserError as error:
            standard_output.tell(str(error))
            return error.exit_status
    return 0


def run(arguments: Arguments) -> None:
    """Trains or evaluates, together with the other processes of the run if there are any.

    Raises:
        UserError: see `errors`.
    """
    validate(arguments.config)
    config = run_folder.with_parts_found(arguments.config, arguments.workdir)
    run_folder.check(config, arguments.workdir)
    # Imports from here on take seconds, so all that can be checked without them comes before.
    command_line.set_up_libraries()
    from l2w_jax.run import processes

    with processes.joined():
        _train_or_evaluate(arguments._replace(config=config))


def _train_or_evaluate(arguments: Arguments) -> None:
    import jax

    from l2w_jax import data
    from l2w_jax.run import checkpoints, images, processes, start

    config, workdir, mode = arguments
    start.check_same_config_in_all_processes(config)
    validate(config, jax.device_count(), jax.process_count())
    if mode == "evaluate" and not checkpoints.has_checkpoint(workdir):
        raise UserError(f"--workdir={workdir}: no checkpoint to evaluate; train first")
    source = data.open_source(config, images.known_classes(workdir))
    if mode == "train" and source.num_train == 0:
        raise UserError(
            f"{config.dataset.data_dir}: split 'train' is missing: must hold train/CLASS/*.jpg to "
            "train on"
        )

    from l2w_jax.evaluation import evaluate
    from l2w_jax.report.write import write_report
    from l2w_jax.run import log, loop, parts, restore

    if mode == "train":
        config = parts.with_parts_that_fit(config, loop.total_steps(config, source))
    with processes.held_by_first(run_folder.exclusive_use(config, workdir)):
        start.check_seen_by_all_processes(workdir)
        if mode == "train":
            loop.train(config, source, workdir)
        else:
            images.check_alike_in_all_processes(source)
        state = restore.restore_best(config, workdir)
        images.check_to_judge_by(source, workdir, int(state.step))
        evaluation = evaluate.evaluate(config, state, source, workdir)
        if processes.is_first():
            page = write_report([workdir])
            log.say("\n".join(evaluate.summary_lines(evaluation)))
            log.say(
                f"written to {workdir}, of the checkpoint of step {evaluation.step}; open {page}"
            )


if __name__ == "__main__":
    status = main(sys.argv)
    # When the first process of a run ends, the others may be sent SIGTERM, as by srun; one that has
    # saved and is ending must keep its status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(status)
