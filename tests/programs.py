"""Programs that tests start, with this checkout and its tests to import from."""

import os
from pathlib import Path

_TESTS = Path(__file__).parent

# What such a program is started with, unless a test has it run without the project.
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}"}
