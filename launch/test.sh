#!/usr/bin/env bash
# Runs the tests; the first time it also installs. Takes pytest's arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_project test .venv
# Tests simulate several devices on the CPU, whatever this machine has.
JAX_PLATFORMS=cpu exec .venv/bin/python -m pytest "$@"
