"""Training and running multi-exit networks with learned sample weights."""
