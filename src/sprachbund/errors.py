"""The one exception that users see: a single clear line that names the value seen and the next step."""


class SprachbundError(Exception):
    """Something the user can mend.

    The message is one line: what was wrong, the value seen, and what to do next. Commands print it without a
    traceback and exit with a non-zero code.
    """
