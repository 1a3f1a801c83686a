"""The command of an exported folder prints names of any letters, and says where it cannot print."""

import os
import subprocess
import sys

import pytest

from l2w_jax.interop.exported_folder import write_programs

PROGRAM = """
import sys
from types import SimpleNamespace

import classify
import numpy as np

def read_image(path, *about):
    open(path).close()
    return np.zeros((8, 8, 3), np.uint8)

sys.modules["image_files"] = SimpleNamespace(read_image=read_image)

class Network:
    description = {
        "class_names": ["\\u732b"],
        "image_format": {"size": 8, "centre_share": 1.0, "max_pixels": 64},
    }

    def __call__(self, images):
        return [0], [1], [0.5]

classify.main(Network)
"""


def run(stdout, encoding, *paths, cwd):
    """Runs the program with the modules that it has in an exported folder."""
    write_programs(cwd / "exported", "run_onnx.py")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths],
        cwd=cwd,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(cwd / "exported")},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("encoding", "answer", "fault"),
    [
        ("utf-8:strict", "猫\t50.0%\texit 2\tgr\udcfcn 日.png", r"no\udcfc 日.png"),
        ("latin-1", r"\u732b\t50.0%\texit 2\tgr\udcfcn \u65e5.png", r"no\udcfc \u65e5.png"),
    ],
)
def test_names_of_any_letters_are_printed_in_any_encoding(encoding, answer, fault, tmp_path):
    (tmp_path / "gr\udcfcn 日.png").touch()
    paths = ("gr\udcfcn 日.png", "no\udcfc 日.png")
    completed = run(subprocess.PIPE, encoding, *paths, cwd=tmp_path)
    printed, told = (
        text.decode(encoding.split(":")[0], "surrogateescape").splitlines()
        for text in (completed.stdout, completed.stderr)
    )
    assert printed == [answer.replace(r"\t", "\t")], completed.stderr
    assert told == [f"{fault}: cannot be read as an image: No such file or directory"]
    assert completed.returncode == 1


def test_a_full_disk_is_told_in_one_line(tmp_path):
    (tmp_path / "a.png").touch()
    with open("/dev/full", "wb") as full:
        completed = run(full, "utf-8", "a.png", cwd=tmp_path)
    assert completed.stderr == b"standard output: cannot be written: No space left on device\n"
    assert completed.returncode == 1
