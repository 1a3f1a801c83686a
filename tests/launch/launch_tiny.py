"""Launches a tiny run on some processes.

python launch_tiny.py PROCESSES FOLDER
"""

import sys

sys.path.insert(0, "launch")
import processes

program = [sys.executable, "tests/tiny_run.py", sys.argv[2]]
sys.exit(processes.run(int(sys.argv[1]), program))
