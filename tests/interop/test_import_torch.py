"""What the command that reads the authors' checkpoints has to be told."""

from pathlib import Path

import pytest

from l2w_jax.errors import UserError
from l2w_jax.interop.import_torch import parse_file_argument


def test_arguments_may_stand_apart_from_their_values():
    path, others = parse_file_argument(["--config", "c.py", "f.pth", "--workdir", "run"])
    assert path == Path("f.pth")
    assert others == ["--config=c.py", "--workdir=run"]


@pytest.mark.parametrize(
    ("others", "missing"),
    [
        (["--config=c.py"], "--workdir"),
        (["--workdir=run"], "--config"),
        ([], "--config, --workdir"),
    ],
)
def test_configuration_and_folder_have_to_be_named(others, missing):
    with pytest.raises(UserError, match=rf"^the following arguments are required: {missing}$"):
        parse_file_argument(["f.pth", *others])
