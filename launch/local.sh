#!/usr/bin/env bash
# Trains and evaluates on this machine; the first time it also installs. Takes main's arguments:
#   bash launch/local.sh --config=configs/digits_msdnet.py
# EXTRAS=cuda or EXTRAS=tpu in front installs JAX for that accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_project "${EXTRAS:-}" .venv
# On a CPU each update allocates its temporary arrays anew, and mapping them in pages of 4 KiB takes an
# eighth to a fifth of its time. This asks glibc for huge pages; other C libraries and kernels without them
# ignore it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
exec .venv/bin/python -m l2w_jax.main "$@"
