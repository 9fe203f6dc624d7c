"""The errors a user can cause or meet. Each message is one sentence that says what was wrong and what to do."""


class InputError(Exception):
    """Input, option or environment that the user can mend. The command line prints it and exits with code 2."""


class UnsafePickleError(InputError):
    """A pickle names a global outside the allow-list; nothing of it was executed."""


class StorageError(InputError):
    """A file or object could not be read or written (absent, no permission, no space)."""
