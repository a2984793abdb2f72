"""What a user can put right, told apart from what is our bug."""


class UnetcliError(Exception):
    """A problem the user can put right: the command prints it as one line and exits 1.

    The message says what, where, the value found and a value that would work.
    """


class Incomplete(UnetcliError):
    """Work is left to do and nothing is wrong with the request: the same command continues, exit code 3."""


class UnreadableBlock(UnetcliError):
    """Input voxels that cannot be used (damaged chunk, NaN, infinity); the block is set aside and the rest goes on."""
