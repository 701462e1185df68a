"""The two kinds of failure that a user can do something about.

Every room raises these, never prints. The command line turns them into one message and an exit code; a message names
the thing, shows the value, and says what would be accepted.
"""


class TwoPhaseError(Exception):
    """Something about the input or the machine that the user can mend. Exit code 1."""

    exit_code = 1


class UsageError(TwoPhaseError):
    """The command itself was wrong: an argument or a combination of them. Exit code 2."""

    exit_code = 2
