"""The observer of a real Postgres; what is heavy is imported by its first look, on the job's thread."""

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from ...postgres.target import parse_connstr
from ..kit.jobs import Cancellation
from .port import Observer
from .reach import Observation

if TYPE_CHECKING:
    from .session import Session

APPLICATION_NAME: Final = "compute_ctl:compute_monitor"


class PostgresObserver(Observer):
    """Looks through one connection that it keeps. Raises ValueError for a URL that is none."""

    def __init__(self, connstr: str) -> None:
        self._target = parse_connstr(connstr)
        self._session: Session | None = None
        self._generation = 0

    @override
    def observe(
        self, generation: int, *, experimental: bool, probe: bool, cancellation: Cancellation
    ) -> Observation:
        from .session import Session

        if generation != self._generation:
            self.close()
        if self._session is None:
            self._session = Session(self._target, APPLICATION_NAME)
            self._generation = generation
        try:
            return self._session.observe(experimental=experimental, probe=probe, cancellation=cancellation)
        finally:
            if cancellation.requested:
                self.close()

    @override
    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
