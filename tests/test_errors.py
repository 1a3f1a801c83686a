import pytest

from l2w_jax.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n  first\nsecond\n"), "first"),
        (ValueError(""), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_told_in_one_line(error, line):
    assert first_line(error) == line
