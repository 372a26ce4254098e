"""What is wrong with a delta."""


class DeltaError(ValueError):
    """A delta, or the file that should be one, cannot be used; nothing was changed."""


class BaseMismatchError(DeltaError):
    """A delta was trained on another base than it is put on."""
