"""What things cost on this machine; `python -m l2w_jax.benchmark`."""
