"""Late imports that are shared: jobs load libraries side by side, and these parts of them by one thread at a time."""

import threading
from importlib import import_module
from typing import Final

SHARED: Final = ("email.message", "http.client", "importlib.metadata")
"""What two libraries reach as an attribute of its package; `unit/test_loading.py` finds them."""

_lock = threading.Lock()


def load_shared() -> None:
    """Load what libraries share; to be called by a job before it imports one of them.

    While one thread loads `a.b`, another's `import a.b` can return before `b` is an attribute of `a`, so that its
    next line fails (python/cpython#149728).
    """
    with _lock:
        for name in SHARED:
            import_module(name)


def is_loading() -> bool:
    """Say whether a thread loads them now."""
    return _lock.locked()
