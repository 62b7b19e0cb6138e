"""How a command ends that something ended in the middle: its exit status and its one line."""

from tpi.errors import EXIT_INTERRUPTED, ResourceError, TpiError

EXIT_BROKEN_PIPE = 141  # as of a program that SIGPIPE ended


def failure_of(error: BaseException) -> tuple[int, str]:
    """Exit status and line; the line is empty where nobody is left to read it."""
    if isinstance(error, TpiError):
        return error.exit_status, str(error)
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE, ""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted; the same command goes on where it stopped"
    return ResourceError.exit_status, str(error)
