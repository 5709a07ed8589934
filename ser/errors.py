"""What can go wrong by the user's data or wishes, each an error whose message says what to mend."""


class DataError(ValueError):
    """Something about the data, or about what was asked of it, that its user can mend; the message says how."""


class UsageError(Exception):
    """What the user has to change before anything can be predicted."""


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is not finite, more often than was to be tolerated."""
