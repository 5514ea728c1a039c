"""The composition root: builds the actors and tells each whom to talk to.

They start in the order below and stop in the reverse one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import override

from ..messages.failpoints import Arming
from ..messages.lifecycle import ActorFailed, StatusChanged
from ..messages.metrics import CONTROL_PLANE_REQUESTS, LOG_DROPPED, ORPHANS_REAPED
from ..messages.settings import NodeSettings
from ..messages.spec import ComputeSpec
from ..postgres.accounts import Account
from ..postgres.binaries import Binaries
from .activity_monitor.actor import ActivityMonitor
from .clerk.actor import Clerk
from .clerk.catalog import PostgresCatalog
from .configurator.actor import Configurator
from .configurator.administration import PostgresAdministration
from .http_facade.actor import HttpFacade
from .http_facade.port import WebApp
from .http_facade.servers import WaitressServers
from .kit.actor import Actor, Ref
from .kit.threaded import ThreadedRuntime
from .kit.turn import Moment
from .lfc_manager.actor import LfcManager
from .lfc_manager.caches import PostgresCache
from .lfc_manager.stores import Stores
from .lsn_lease.actor import LsnLease
from .lsn_lease.asking import StoragePageservers
from .postgres_process.actor import PostgresProcess
from .postgres_process.port import ProcessSink
from .postgres_process.server import Server
from .supervisor.actor import GET_CONFIG, ReadSpec, Supervisor, SupervisorMessage
from .supervisor.effects import CONFIGURATOR, HTTP, LEASE, LFC, MONITOR, POSTGRES, VM

if TYPE_CHECKING:
    from ..http.port import Node

SUPERVISOR: Final = "supervisor"
NARRATOR: Final = "narrator"
CLERK: Final = "clerk"


class Launch(msgspec.Struct, frozen=True):
    """Everything that is known before the first actor exists."""

    settings: NodeSettings
    spec: ComputeSpec | None
    binaries: Binaries
    account: Account | None
    read_spec: ReadSpec
    began: Moment
    """When the process began."""
    control_plane_requests: tuple[str, ...] = ()
    """What came back of each request to the control plane so far, as the metric's `http_status`."""
    dropped_lines: Callable[[], int] = lambda: 0
    """How many log lines were lost so far."""
    orphans_reaped: Callable[[], int] = lambda: 0
    """How many orphans the init has waited for so far."""
    unknown_parts: Callable[[], tuple[str, ...]] = tuple
    """Which parts of the configuration are not known; may raise."""
    failpoints: tuple[Arming, ...] = ()
    """What is armed from the beginning; nothing without `--dev`."""
    warnings: tuple[str, ...] = ()


class Narrator(Actor[StatusChanged]):
    """Passes status changes on to whoever shows them to a person; `heard` must not block."""

    def __init__(self, heard: Callable[[StatusChanged], None]) -> None:
        self._heard = heard

    @override
    def receive(self, message: StatusChanged) -> None:
        self._heard(message)


class System:
    """All actors of one node.

    `postmaster` is told which postmaster lives; `abandoned` is called when the Supervisor itself died;
    `heard`, if any, hears every change of status.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        postmaster: ProcessSink,
        abandoned: Callable[[ActorFailed], None],
        heard: Callable[[StatusChanged], None] | None,
    ) -> None:
        self.runtime = ThreadedRuntime(watcher=SUPERVISOR, abandoned=abandoned)
        self.runtime.failpoints.configure(launch.failpoints)
        self.supervisor: Ref[SupervisorMessage] = self.runtime.ref(SUPERVISOR)
        for http_status in launch.control_plane_requests:
            self.runtime.metrics.add(CONTROL_PLANE_REQUESTS, 1, GET_CONFIG, http_status)
        self._dropped_lines = launch.dropped_lines
        self._orphans_reaped = launch.orphans_reaped
        settings = launch.settings
        told = (POSTGRES, CONFIGURATOR, MONITOR, LFC, LEASE, HTTP, VM)
        others = {name: self.runtime.ref(name) for name in told}
        listeners: tuple[Ref[StatusChanged], ...] = ()
        self._actors: dict[str, Actor[Any]] = {}
        if heard is not None:
            listeners = (self.runtime.ref(NARRATOR),)
            self._actors[NARRATOR] = Narrator(heard)
        self._actors[SUPERVISOR] = Supervisor(
            settings, others, read_spec=launch.read_spec, listeners=listeners, began=launch.began
        )
        server = Server(settings, launch.binaries, launch.account, postmaster, self.runtime.metrics)
        self._actors[POSTGRES] = PostgresProcess(settings, self.supervisor, server)
        self._actors[CONFIGURATOR] = Configurator(settings, self.supervisor, PostgresAdministration(settings))
        catalog = PostgresCatalog(settings, launch.binaries, launch.account, self.runtime.metrics)
        self._actors[CLERK] = Clerk(catalog)
        self._actors[MONITOR] = ActivityMonitor(settings, self.supervisor)
        self._actors[LFC] = LfcManager(settings, self.supervisor, PostgresCache(settings), Stores())
        if settings.manages_vm:
            self._actors[VM] = self._vm_monitor_bridge(settings)
        self._actors[LEASE] = LsnLease(self.supervisor, StoragePageservers())
        servers = WaitressServers(settings, lambda: _applications(self._node(settings)), self.runtime.metrics)
        self._actors[HTTP] = HttpFacade(servers, self.supervisor)

    @property
    def actors(self) -> frozenset[str]:
        """The names of all actors; so are their threads called."""
        return frozenset(self._actors)

    def start(self) -> None:
        """Start every actor. Raises ActorStartError."""
        for name, actor in self._actors.items():
            self.runtime.spawn(name, actor)

    def stop(self, timeout_s: float) -> tuple[str, ...]:
        """Stop every actor; returns the names of threads that live on."""
        return self.runtime.stop(timeout_s)

    def _vm_monitor_bridge(self, settings: NodeSettings) -> Actor[Any]:
        """Make the bridge; what it needs is loaded only where there is one."""
        from .vm_monitor_bridge.actor import VmMonitorBridge
        from .vm_monitor_bridge.agents import WebsocketAgents
        from .vm_monitor_bridge.cgroup import CgroupMemory
        from .vm_monitor_bridge.file_cache import NeonFileCache
        from .vm_monitor_bridge.machine import NeonVm

        return VmMonitorBridge(
            self.supervisor,
            watches_cgroup=bool(settings.cgroup),
            agents=WebsocketAgents(settings.vm_monitor_address),
            memory=CgroupMemory(),
            file_cache=NeonFileCache(settings.file_cache_connstr or settings.connstr),
            machine=NeonVm(
                settings.disk_quota_mount, metrics=self.runtime.metrics, oom_score_adj=settings.oom_score_adj
            ),
        )

    def _node(self, settings: NodeSettings) -> "Node":
        """Describe the node to the HTTP application."""
        from ..http.port import AuthSettings, Node

        return Node(
            supervisor=self.supervisor,
            postgres_process=self.runtime.ref(POSTGRES),
            configurator=self.runtime.ref(CONFIGURATOR),
            clerk=self.runtime.ref(CLERK),
            lfc=self.runtime.ref(LFC),
            vm_monitor_bridge=self.runtime.ref(VM) if settings.autoscaling else None,
            metrics=self.runtime.metrics,
            auth=AuthSettings.of(settings),
            stop_timeout_s=settings.stop_timeout_s,
            version=settings.build_tag,
            refresh_metrics=self._refresh_metrics,
            now=self.runtime.clock.now,
            failpoints=self.runtime.failpoints if settings.dev else None,
        )

    def _refresh_metrics(self) -> None:
        """Bring up to date what is only known by looking."""
        self.runtime.read_mailboxes()
        self.runtime.metrics.set(LOG_DROPPED, self._dropped_lines())
        self.runtime.metrics.set(ORPHANS_REAPED, self._orphans_reaped())


def _applications(node: "Node") -> tuple[WebApp, WebApp]:
    from ..http.app import create_apps

    return create_apps(node)
