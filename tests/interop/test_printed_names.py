"""The command of an exported folder prints names of any letters, wherever it prints to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2w_jax.interop import classify

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


@pytest.mark.parametrize(
    ("encoding", "answer", "fault"),
    [
        ("utf-8:strict", "猫\t50.0%\texit 2\tgr\udcfcn 日.png", r"no\udcfc 日.png"),
        ("latin-1", r"\u732b\t50.0%\texit 2\tgr\udcfcn \u65e5.png", r"no\udcfc \u65e5.png"),
    ],
)
def test_names_of_any_letters_are_printed_in_any_encoding(encoding, answer, fault, tmp_path):
    (tmp_path / "gr\udcfcn 日.png").touch()
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM, "gr\udcfcn 日.png", "no\udcfc 日.png"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(classify.__file__).parent)},
        capture_output=True,
    )
    printed, told = (
        text.decode(encoding.split(":")[0], "surrogateescape").splitlines()
        for text in (completed.stdout, completed.stderr)
    )
    assert printed == [answer.replace(r"\t", "\t")], completed.stderr
    assert told == [f"{fault}: cannot be read as an image: No such file or directory"]
    assert completed.returncode == 1
