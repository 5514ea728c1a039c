"""How a job that waits for descriptors learns that it is to end."""

import os
import threading
from typing import Final

from .jobs import Cancellation


class Wake:
    """A descriptor that becomes readable when a job is asked to end; close it before the job is over."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.descriptor: Final = self._descriptor
        cancellation.on_request(self.wake)

    def wake(self) -> None:
        """Make it readable; from any thread."""
        with self._lock:
            if self._descriptor is not None:
                os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Free the descriptor; a cancellation that comes later is harmless."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)
