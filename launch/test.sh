#!/usr/bin/env bash
# Runs the tests over the cores; the first time it also installs. With arguments, which are
# pytest's, in one process.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_project test .venv
if [ $# -eq 0 ]; then
    # A file to a process, which makes its fixtures once; each process takes some gigabytes.
    set -- --numprocesses=auto --maxprocesses=4 --dist=loadfile
fi
# Tests simulate several devices on the CPU, whatever this machine has.
JAX_PLATFORMS=cpu exec .venv/bin/python -m pytest "$@"
