#!/usr/bin/env bash
# Trains and evaluates on this machine; the first time it also installs. Takes main's arguments:
#   bash launch/local.sh --config=configs/digits_msdnet.py
# EXTRAS=cuda or EXTRAS=tpu in front installs JAX for that accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_project "${EXTRAS:-}" .venv
exec .venv/bin/python -m l2w_jax.main "$@"
