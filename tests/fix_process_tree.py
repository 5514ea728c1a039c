"""Processes in a PID namespace of their own."""

import subprocess
from functools import cache
from typing import Final

from fix_postgres import absent

NAMESPACE: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""What a command begins with to be PID 1."""


@cache
def _permitted() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def namespaces_are_permitted() -> None:
    """Skip the test, by name, where a PID namespace cannot be made."""
    if not _permitted():
        absent("permission to make a PID namespace (unshare --pid as root)")
