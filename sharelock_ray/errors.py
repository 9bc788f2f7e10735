"""The two kinds of errors of a command, and their exit codes."""

import errno

_RESOURCES = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class SharelockError(Exception):
    """Base class of errors shown to the user as one line: what is wrong, where, and what to do."""

    exit_code = 1


class RunError(SharelockError):
    """The request was valid, but the run failed. Exit code 1."""


class RequestError(SharelockError):
    """The request was invalid: a recipe field, a path, a flag. Exit code 2."""

    exit_code = 2


def is_resource_fault(error: BaseException) -> bool:
    """Whether the machine lacked memory, disk space or file handles; the input is not at fault, and a retry may
    succeed."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _RESOURCES)
