"""What the LsnLease hears and says: the hold of a Static node on the LSN that it is pinned to."""

from .base import Message
from .spec import ComputeSpec


class KeepLease(Message, frozen=True):
    """This is the spec that counts: hold its LSN if it is Static, and nothing otherwise."""

    spec: ComputeSpec


class ReleaseLease(Message, frozen=True):
    """The node is ending: ask for nothing more."""


class LeaseRefused(Message, frozen=True):
    """The pageservers may remove what the node reads; it serves on unprotected."""

    error: str
