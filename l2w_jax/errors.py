"""The one exception that a user of the command line is meant to read."""


class UserError(Exception):
    """Bad input, told in one clear line per fault.

    Each line names the field or file, what was wrong and what is allowed. The command line prints
    the lines on standard error and exits with status 2; nothing has been written by then.
    """
