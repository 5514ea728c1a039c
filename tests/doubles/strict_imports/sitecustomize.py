"""Loaded by each node of the tests at its start: what libraries share is loaded in a way that no thread sees half of it.

Two threads that load the same module at once fail once in thousands of starts only (`postgres/loading.py`);
here a thread that loads it without the lock fails each time.
"""

import sys
import threading


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if event != "import" or threading.current_thread() is threading.main_thread():
        return
    loading = sys.modules.get("compute_node.postgres.loading")
    if loading is not None and arguments[0] in loading.SHARED and not loading.is_loading():
        message = f"{arguments[0]} is loaded without load_shared()"
        raise ImportError(message)


sys.addaudithook(_look)
