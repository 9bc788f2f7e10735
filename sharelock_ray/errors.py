"""The two ways a command can end badly, and their exit codes (design, section 5)."""

import errno

_RESOURCES = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class SharelockError(Exception):
    """Base of every error that a person is meant to read: one line that says what, where and what to do."""

    exit_code = 1


class RunError(SharelockError):
    """The request was right, but the run failed. Exit code 1."""


class RequestError(SharelockError):
    """The request was wrong: a recipe field, a path, a flag. Exit code 2."""

    exit_code = 2


def is_resource_fault(error: BaseException) -> bool:
    """Whether the machine lacked something (memory, disk space, file handles): no input is at fault, and a later try
    may succeed."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _RESOURCES)
