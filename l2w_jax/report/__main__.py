"""One web page about one run or several, side by side: what they learned and what it is worth.

    python -m l2w_jax.report RUN [RUN ...] [--output=FILE]

The runs must have been evaluated. The page needs no network and no other file. It is report.html in
the first run's folder, where that run's figures are drawn too, as plots/*.png; with --output, only
that file is written.
"""

from collections.abc import Sequence
from pathlib import Path

from l2w_jax import command_line
from l2w_jax.errors import UserError
from l2w_jax.report.write import write_report


def main(argv: Sequence[str]) -> None:
    """Runs the command with these arguments, the program's name not among them.

    Raises:
        UserError: a folder is not that of an evaluated run, or the page cannot be written.
    """
    parser = command_line.ArgumentParser("report", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, help="default: report.html in the first folder")
    arguments = parser.parse_args(argv)
    resolved = [run.resolve() for run in arguments.runs]
    for run in arguments.runs:
        if resolved.count(run.resolve()) > 1:
            raise UserError(f"{run}: is given twice")
    print(f"written to {write_report(arguments.runs, arguments.output)}")


if __name__ == "__main__":
    command_line.run(main)
