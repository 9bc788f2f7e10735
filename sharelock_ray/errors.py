"""The two ways a command can end badly, and their exit codes (design, section 5)."""


class SharelockError(Exception):
    """Base of every error that a person is meant to read: one line that says what, where and what to do."""

    exit_code = 1


class RunError(SharelockError):
    """The request was right, but the run failed. Exit code 1."""


class RequestError(SharelockError):
    """The request was wrong: a recipe field, a path, a flag. Exit code 2."""

    exit_code = 2
