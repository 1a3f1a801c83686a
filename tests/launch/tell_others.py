"""One process of two, which prints whether what each tells the other arrives as it is."""

import jax

from l2w_jax.run import processes

# More than 32 bits hold, and texts of other lengths, of which one is no text to a strict decoder.
TOLD = [{"bytes": 3 * 2**31 + 1, "share": 0.1}, ["caf\udce9", float("inf"), None]]

if __name__ == "__main__":
    with processes.joined():
        told = processes.of_all(TOLD[jax.process_index()])
        print("the same" if told == TOLD else f"other: {told}")
