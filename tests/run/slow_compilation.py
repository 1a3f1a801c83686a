"""What XLA does as it compiles, to Python: a long function in C, which lets other threads run.

    python tests/run/slow_compilation.py [later]

Says "compiling" as it begins. With "later" there is something to save by then, and the signals that
came are printed at the end.
"""

import hashlib
import sys
import time

from l2w_jax.run import stop_signals

ROUNDS_TO_TIME = 300_000


def compile_for(seconds: float) -> None:
    """Hashes for about that time, in a single call; for longer on a busy machine."""
    started = time.process_time()
    hashlib.pbkdf2_hmac("sha256", b"", b"", ROUNDS_TO_TIME)
    rounds = int(ROUNDS_TO_TIME * seconds / (time.process_time() - started))
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


if __name__ == "__main__":
    with stop_signals.ending_at_once() as signals:
        if sys.argv[1:] == ["later"]:
            signals.defer()
            compile_for(1)
            # On a busy machine the signal may not have been sent by then.
            deadline = time.monotonic() + 150
            while not signals.received and time.monotonic() < deadline:
                time.sleep(0.01)
            print(*signals.received)
        else:
            compile_for(300)
