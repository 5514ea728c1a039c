"""The real administration, light to import: what it needs is loaded when it is first used."""

from typing_extensions import override

from ...messages.planning import CatalogPlanned
from ...messages.settings import NodeSettings
from ...postgres.loading import load_shared
from ..kit.jobs import Cancellation
from .extensions import Extension
from .port import Administration, MigrationReport, Order, Report


class PostgresAdministration(Administration):
    """Applies specs to the Postgres of the settings' connection string."""

    def __init__(self, settings: NodeSettings) -> None:
        self._connstr = settings.connstr.reveal()

    @override
    def load(self) -> None:
        load_shared()
        from . import executor  # noqa: F401 - it is loaded here so that `apply` need not wait for it

    @override
    def apply(self, order: Order, cancellation: Cancellation) -> Report:
        from .executor import apply

        return apply(self._connstr, order, cancellation)

    @override
    def plan(self, order: Order, cancellation: Cancellation) -> CatalogPlanned:
        from .executor import rehearse

        return rehearse(self._connstr, order, cancellation)

    @override
    def checkpoint(self, limit_s: float, cancellation: Cancellation) -> None:
        from .executor import checkpoint

        checkpoint(self._connstr, limit_s, cancellation)

    @override
    def migrate(self, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
        from .migrating import migrate

        return migrate(self._connstr, privileged_role, cancellation)

    @override
    def installed_extensions(self, cancellation: Cancellation) -> tuple[Extension, ...]:
        from .collecting import installed_extensions

        return installed_extensions(self._connstr, cancellation)
