"""Reads image files as `l2w_jax.predict` does, and prints what is wrong with each.

python -m tests.read_images IMAGE ...
"""

from pathlib import Path

from l2w_jax import command_line  # first, as in every command
from l2w_jax.config import default_config


def main(paths):
    from l2w_jax.data.single import UnreadableImage, read_images

    for read in read_images(list(map(Path, paths)), default_config()):
        if isinstance(read, UnreadableImage):
            print(read)


if __name__ == "__main__":
    command_line.run(main)
