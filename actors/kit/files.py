"""What jobs of several actors do with files."""

import os


def make_durable(folder: str) -> None:
    """Put the names in a folder onto the disk: what was made, renamed or removed there. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
