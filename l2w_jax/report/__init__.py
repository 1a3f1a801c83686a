"""Figures and the page about runs; `python -m l2w_jax.report`."""
