"""Programs that tests start, with this checkout and its tests to import from."""

import os
from pathlib import Path

_TESTS = Path(__file__).parent

# What such a program is started with, unless a test has it run without the project.
# It compiles as the tests do, see conftest.py.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
