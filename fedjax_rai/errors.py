"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input of a user: the message says what is wrong, where, and what is allowed."""
