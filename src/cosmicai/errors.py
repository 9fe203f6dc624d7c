"""The errors that a user can correct. Each message is one sentence that states the problem and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .aws_errors import describe_aws_error, is_aws_error

NO_READ_PERMISSION = "permission denied; ask its owner for read permission"


class InputError(Exception):
    """Input, option or environment that the user can correct. The command line prints it and exits with code 2."""


class UnsafePickleError(InputError):
    """A pickle names a global outside the allow-list; nothing of it was executed."""


class StorageError(InputError):
    """A file or object could not be read or written (absent, no permission, no space)."""


@contextmanager
def describe_os_errors(uri: str, action: str) -> Iterator[None]:
    """Turn an error of the operating system or of S3 into a StorageError, one sentence that names the file."""
    try:
        yield
    except Exception as error:
        if is_aws_error(error):  # some of these are OSErrors too
            reason = describe_aws_error(
                error, missing="it does not exist; check the bucket and the key",
                remedy="; check the address, your credentials and region",
            )  # fmt: skip
        elif isinstance(error, OSError):
            reason = describe_os_error(error, action)
        else:
            raise
        raise StorageError(f"cannot {action} {uri}: {reason}") from error


def describe_os_error(error: Exception, action: str) -> str:
    """Return the reason of an error of the operating system, and what to do, as the end of a sentence.

    `action` is what was tried, such as "read". Errors of HDF5 and Arrow have the system's number in their text alone.
    """
    denied = NO_READ_PERMISSION
    if action not in ("read", "inspect", "list"):
        denied = "permission denied; choose another place or change its permissions"
    known = {
        errno.ENOENT: "it does not exist; check the path",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOSPC: "no space left on the device; free some space or choose another place, then run again",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another place, then run again",
        errno.EISDIR: "it is a folder where a file was expected",
        errno.ENOTDIR: "a part of its path is a file where a folder was expected",
        errno.EEXIST: "a part of its path is a file where a folder was expected",
        errno.EIO: "the disk or file server reports an error (input/output error); check it, then run again",
        errno.ENAMETOOLONG: "its name is longer than the file system allows; choose a shorter one",
        errno.ELOOP: "its symbolic links lead in a circle; check the path",
        errno.EFBIG: "it would be larger than the file system or your limit (ulimit -f) allows; raise the limit",
        errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n), then run again",
        errno.ENFILE: "too many files are open on this machine; run again later",
        errno.ENOLCK: "the file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE if nobody writes to it",
        errno.ESTALE: "the file server says again and again that it was replaced (stale file handle); run again",
        errno.ENOTCONN: "its file system is no longer connected; mount it again, then run again",
        errno.EHOSTDOWN: "its file server does not answer; run again when it does",
        errno.ETIMEDOUT: "its file server does not answer; run again when it does",
    }
    code = os_error_number(error)
    return known.get(code) or (os.strerror(code) if code else str(error).partition("\n")[0])


def os_error_number(error: Exception) -> int:
    """Return the system's number of an error, which may be in its text alone; 0 if it has none."""
    reported = re.search(r"errno[ =]+(\d+)", str(error))
    return getattr(error, "errno", None) or (int(reported.group(1)) if reported else 0)
