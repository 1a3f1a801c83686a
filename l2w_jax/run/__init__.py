"""A run, on disk and on devices: its folder, checkpoints, loop and log."""
