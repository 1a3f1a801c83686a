"""Files that cannot be read, whoever tries."""


def let_reads_fail(path):
    """Has every read of a file fail with EIO, also for root.

    It becomes a link to the memory of the process that reads it, which has none at address 0.
    """
    path.unlink()
    path.symlink_to("/proc/self/mem")
