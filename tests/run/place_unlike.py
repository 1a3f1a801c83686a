"""One process of two, which places an array that the other one holds with another value."""

import jax
import numpy as np

from l2w_jax.run import processes
from l2w_jax.run.devices import place_replicated

if __name__ == "__main__":
    with processes.joined():
        placed = place_replicated({"step": np.int32(jax.process_index())})["step"]
        print(f"placed {placed.addressable_data(0)} on {len(placed.sharding.device_set)} devices")
