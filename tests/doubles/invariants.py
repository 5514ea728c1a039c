"""What always holds in a simulated node, checked after every step.

The numbers are those of the promises that every supervisor of a Postgres makes:

 1  one postmaster of a folder at a time, over all lives: `Machine.spawn`
 2  only a complete, marked folder is served: `Machine.spawn`, which looks at the disk
 3  nothing that is not ours is deleted: `_folder`, at the end of each life
 4  an end of Postgres that nobody asked for is a failure: `ended`
 5  after an order to stop all is gone in time, whatever the phase: `_in_time`, `ended`
 7  status and probes are answered at once, and what they say is so: `_answers`, `_readiness`
 8  everybody who waits is answered: `_waiters`, `ended`, `came_right`
 9  a dead actor is noticed and ends the node: `_deaths`
10  what is applied is applied: a second plan is empty, also after a crash: `_applied`, `healed`
11  a complete state of a cache is never replaced by an incomplete one: `FakeStore.put`
13  no duration is measured by the wall clock, which jumps: the same checks in such a world, and
    test_the_wall_clock_decides_nothing
14  nothing optional keeps a node from running: the monitor's looks may last for ever, the servers' binding too
15  a configuration that Postgres refuses is neither installed nor started with: `Machine._install`, `Machine.spawn`
16  Postgres starts on a machine that is ready, and its memory is watched exactly while it runs: `ScaledWorld`
17  an agent that asks is answered once, never approved blindly, and asked for memory once a second: `Chaos`
18  a primary of Neon's storage begins where its safekeepers stand, and only a primary syncs them, alone: `Storage`,
    `Machine.spawn`
19  an LSN is held as long as the pageservers let it be; a refusal is shown: `_lease`
20  who is told that the node was promoted has a primary that writes; nothing else goes on meanwhile: `_promotion`,
    `_answered`

Not here: 6 (pipes), 12 (secrets) need the real thing and have tests of their own.
"""

from typing import TYPE_CHECKING, Final

from compute_node.actors.configurator.desired import Context, departing_names
from compute_node.actors.configurator.phases import plan
from compute_node.actors.lsn_lease.rules import LATEST_S
from compute_node.actors.supervisor.effects import LEASE, MONITOR, POSTGRES
from compute_node.actors.supervisor.leaving import CLOSING_S, LINGER_FAST_S, TIDY_S
from compute_node.actors.supervisor.lifecycle import TRANSITIONS
from compute_node.actors.supervisor.state import NodeState, Phase, PromotionStep, node_status, readiness
from compute_node.messages.base import Message
from compute_node.messages.failpoints import Failpoint
from compute_node.messages.lifecycle import (
    Configure,
    Configured,
    ExitReport,
    GetReadiness,
    GetStatus,
    Readiness,
    RereadConfiguration,
    Status,
    StatusChanged,
    Terminate,
    Terminated,
)
from compute_node.messages.metrics import CONDITION, UP
from compute_node.messages.planning import GetSpec
from compute_node.messages.postgres import PgdataKind
from compute_node.messages.promotion import Promoted
from compute_node.messages.spec import ComputeSpec, Mode, StaticMode

from doubles.administration import ADMINISTRATOR
from doubles.storage import KEEPERS, Storage

if TYPE_CHECKING:
    from doubles.world import World

SUPERVISOR: Final = "supervisor"
MARGIN_S: Final = 1.5
"""What a bound may be exceeded by: the pauses between two looks at the world."""
TIDYING: Final = {Failpoint.TIDY_BEGUN, Failpoint.TIDY_SWEPT}
LEASE_S: Final = 65.0
"""How long an LSN may be unprotected once the pageservers are well: the longest pause between two tries."""
NOTICED_S: Final = 1.0
"""How long the death of an actor may go unnoticed."""


class Invariants:
    """Watches one life of a world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._shown: StatusChanged | None = None
        self._state: NodeState | None = None
        self._phase = Phase.NEW
        self._phase_since_s = world.active_s
        self._dead_since_s: dict[str, float] = {}
        self._lost_since_s: float | None = None
        self._over_s = 0.0
        self._phase_since_at_s = 0.0
        """The same, by the clock."""
        self._held_since_s: float | None = None

    def check(self) -> None:
        """Check all that is checked after every step."""
        world = self._world
        assert not world.machine.violations, world.machine.violations
        if world.machine.died:
            return
        before, self._state = self._state, world.supervisor.state
        if before is not self._state:
            if self._state.status is Status.RUNNING and (
                before is None or before.status is not Status.RUNNING
            ):
                self._applied()
            self._status()
            self._readiness()
            self._waiters()
        self._postgres()
        self._answers()
        self._deaths()
        self._in_time()
        if world.storage is not None:
            self._lease(world.storage)
            self._promotion(world.storage)

    # --- One by one

    def _status(self) -> None:
        world, state = self._world, self._world.supervisor.state
        ups = world.runtime.metrics.read(UP)
        assert list(ups.values()) == [1.0], ups
        assert {labels[1] for labels in ups} == {state.status.text}

    def _postgres(self) -> None:
        world = self._world
        state, postmaster = world.supervisor.state, world.machine.postmaster
        if world.machine.lost_unasked and self._lost_since_s is None and world.stop_asked_s is None:
            self._lost_since_s = world.active_s
        alive = postmaster is not None and postmaster.alive
        if state.status is Status.FAILED and state.phase is not Phase.OVER:
            assert not alive, "failed means that Postgres is not, or no longer, there"
        if state.status is Status.TERMINATED:
            assert not alive, "terminated means that Postgres is gone"

    def status_changed(self, change: StatusChanged) -> None:
        """Check one change of the status, as the listeners are told of it."""
        before, self._shown = self._shown, change
        if before is None:
            assert change.old in {None, Status.EMPTY}, change
        else:
            assert change.old is before.new, f"after {before}: {change}"
            assert change.new is not change.old, f"written twice: {change}"
            assert change.new in TRANSITIONS[change.old].values(), change

    def _applied(self) -> None:
        world, spec = self._world, self._world.supervisor.state.spec
        if spec is None or spec.compute_mode is not Mode.PRIMARY or world.supervisor.state.error is not None:
            return
        promoted = world.supervisor.state.promoted
        if promoted is not None and promoted[0].spec is None and spec.safekeeper_connstrings == KEEPERS:
            return  # by form: the spec of the replica, of which only the mode was changed
        assert spec in world.machine.applied, "running with a spec that was never applied"
        left = self.left_to_do(spec)
        assert not left, f"running, and the catalog is not what was asked for: {left}"

    def left_to_do(self, spec: ComputeSpec) -> list[str]:
        """Say what a second application of this spec would do to the cluster that is served."""
        machine = self._world.machine
        if machine.served is None:
            return ["there is no cluster"]
        catalog = machine.clusters[machine.served].catalog
        departing = departing_names(spec)
        context = Context(ADMINISTRATOR, "postgres", self._world.settings.privileged_role_name, frozenset())
        planned = plan(catalog, spec, context)
        assert not departing
        return [
            operation.describe() for step in planned.steps for operation in getattr(step, "operations", ())
        ]

    def _lease(self, storage: Storage) -> None:
        world, state = self._world, self._world.supervisor.state
        if (
            state.phase in {Phase.LINGERING, Phase.CLOSING}
            and world.active_s > self._phase_since_s + MARGIN_S
        ):
            late = [at_s for at_s, _ in storage.leases if at_s > self._phase_since_at_s + MARGIN_S]
            assert not late, "a lease is asked for although the node has ended"
        holds = state.status is Status.RUNNING and state.ending is None and LEASE not in world.planted
        spec = state.spec
        if not (holds and spec is not None and isinstance(spec.mode, StaticMode)):
            self._held_since_s = None
            return
        if self._held_since_s is None:
            self._held_since_s = world.clock.now()
        now_s = world.clock.now()
        if state.lease_error is not None:
            assert node_status(state).error is not None, "nobody is told that the LSN is not held"
            return
        well_s = storage.well_since_s + LEASE_S if storage.well_since_s else 0.0  # a pause may still go on
        since_s = max(self._held_since_s, well_s)
        storage.clock_was_wrong |= world.clock.wall_is_off_by_s != 0
        is_usual = storage.lease_s > LATEST_S  # of shorter ones a node with a wrong clock knows no length
        if (
            storage.faults.lets_hold
            and (is_usual or not storage.clock_was_wrong)
            and now_s > since_s + MARGIN_S
        ):
            over_s = now_s - storage.held_until_s
            assert over_s < MARGIN_S + world.runtime.stalled_s, f"the LSN is not held for {over_s:g} s"

    def _promotion(self, storage: Storage) -> None:
        state = self._world.supervisor.state
        if state.promotion is not None and state.promotion.step is not PromotionStep.CONFIGURING:
            assert state.attempt is None, "a configuration goes on during a promotion"
        done = state.promoted
        if done is not None and done[1] is not None and state.postgres_up:
            assert storage.writes is not None, "promoted, and nobody has seen it write"

    def _readiness(self) -> None:
        world, state = self._world, self._world.supervisor.state
        shown = readiness(state)
        conditions = {labels[0] for labels in world.runtime.metrics.read(CONDITION)}
        assert conditions == {report.condition.value for report in shown.conditions}
        if shown.ready:
            self._must_be_up(state.status)

    def _must_be_up(self, status: Status) -> None:
        assert status is Status.RUNNING, f"ready in status {status.text}"
        postmaster = self._world.machine.postmaster
        assert postmaster is not None, "ready without a Postgres"
        assert postmaster.ready_at <= self._world.clock.now(), "ready before Postgres is"

    def _waiters(self) -> None:
        """Whoever is kept waiting is kept for something."""
        state = self._world.supervisor.state
        known = set(state.exit_waiters)
        if state.attempt is not None:
            known |= set(state.attempt.waiters)
        if state.promotion is not None:
            known |= set(state.promotion.waiters)
        if state.ending is not None:
            known |= set(state.ending.waiters)
        kept = {
            waiter
            for waiter, replier in self._world.supervisor._waiters.items()
            if waiter in known or not isinstance(replier.request, RereadConfiguration)  # those are with a job
        }
        assert kept == known or state.phase is Phase.OVER, f"waiters {kept}, and only {known} are known"

    def _answers(self) -> None:
        world = self._world
        for waiting in list(world.waiting):
            if waiting.pending.done:
                world.waiting.remove(waiting)
                if world.runtime.cell(waiting.of).dead is None:
                    self._answered(waiting.request, waiting.pending.get(0))
            elif isinstance(waiting.request, (GetStatus, GetReadiness, GetSpec)):
                waited_s = world.active_s - waiting.asked_active_s
                assert waited_s < MARGIN_S / 100, f"{waiting.request} waited {waited_s:g} s for its answer"

    def _answered(self, request: Message, answer: object) -> None:
        """Check that an answer says what is so, at the moment in which it is given."""
        world = self._world
        match answer:
            case Readiness(ready, conditions):
                assert ready == (not conditions)
            case Terminated():
                postmaster = world.machine.postmaster
                assert postmaster is None or not postmaster.alive, "terminated, and Postgres lives"
            case Configured(status):
                assert status.status is Status.RUNNING, f"configured in {status.status.text}"
                if isinstance(request, Configure) and request.spec.compute_mode is Mode.PRIMARY:
                    assert request.spec in world.machine.applied, "configured with what was never applied"
            case Promoted():
                spec, storage = world.supervisor.state.spec, world.storage
                assert storage is not None
                assert storage.writes is not None, "promoted, and nobody has seen it write"
                assert spec is not None
                assert spec.compute_mode is Mode.PRIMARY, f"promoted, and the mode is {spec.mode}"
            case _:
                pass

    def _deaths(self) -> None:
        world = self._world
        for name in world.actors:
            if world.runtime.cell(name).dead is None:
                continue
            if world.over:
                continue
            has_reason = name in world.planted or (name == MONITOR and world.observer.broken is not None)
            assert has_reason, f"{name} is dead: {world.runtime.cell(name).dead}"
            since = self._dead_since_s.setdefault(name, world.active_s)
            noticed = world.supervisor.state.exit_code != 0
            assert noticed or world.active_s - since < NOTICED_S, f"nobody noticed that {name} is dead"

    def _in_time(self) -> None:
        world, state = self._world, self._world.supervisor.state
        if state.phase is not self._phase:
            self._phase, self._phase_since_s = state.phase, world.active_s
            self._phase_since_at_s = world.clock.now()
        lasted_s = world.active_s - self._phase_since_s
        if state.phase is Phase.LINGERING:
            longest_s = LINGER_FAST_S + (0 if state.tidied else TIDY_S + MARGIN_S)
            assert lasted_s < longest_s + MARGIN_S, f"the node lingers for {lasted_s:g} s"
        elif state.phase is Phase.CLOSING:
            assert lasted_s < CLOSING_S + MARGIN_S, f"the servers close for {lasted_s:g} s"
        if world.stop_asked_s is None:
            return
        passed_s = world.active_s - world.stop_asked_s
        if passed_s < world.settings.stop_timeout_s + MARGIN_S or world.over:
            return
        unanswered = [w for w in world.waiting if isinstance(w.request, Terminate) and not w.pending.done]
        late = [
            w
            for w in unanswered
            if world.active_s - w.asked_active_s > world.settings.stop_timeout_s + MARGIN_S
        ]
        assert not late, f"a termination is not answered after {passed_s:g} s"
        left = [
            process.program
            for process in world.machine.processes
            if process.alive and (self._has_looked or process.life == world.machine.life)
        ]
        assert not left, f"{left} live {passed_s:g} s after the order to stop"

    @property
    def _has_looked(self) -> bool:
        """Whether this life came so far as to judge the folder; before, it knows of no orphan."""
        return self._world.server._claim.judgement is not None

    # --- At the ends

    def killed(self) -> None:
        """Check what a killed process leaves."""
        self._folder()

    def _folder(self) -> None:
        assert not self._world.machine.violations, self._world.machine.violations
        assert self._world.machine.foreign_is_whole(), "a folder that is not ours was touched"

    def over(self) -> None:
        """Be told that the main thread has heard of the end."""
        self._over_s = self._world.active_s

    def last_resort(self, *, had_to: bool) -> None:
        """Check that the main thread stops Postgres only where who should have done it is dead, or its kill failed."""
        dead = {SUPERVISOR, POSTGRES} & self._world.planted
        failed = Failpoint.KILL_BEGUN in self._world.failpoints.failed
        assert not had_to or dead or failed, "Postgres was left to the last resort, and nobody was dead"

    def ended(self, report: ExitReport) -> None:
        """Check what a process that ended by itself leaves."""
        world, machine = self._world, self._world.machine
        self._folder()
        unanswered = [waiting.request for waiting in world.waiting if not waiting.pending.done]
        assert not unanswered, f"nobody answered {unanswered}"
        machine.pass_time()
        assert not (machine.postmaster is not None and machine.postmaster.alive), (
            "Postgres outlives its supervisor"
        )
        failures = dict(self._dead_since_s)
        if self._lost_since_s is not None and world.stop_asked_s != self._lost_since_s:
            failures["Postgres"] = self._lost_since_s
        known = {name for name, since_s in failures.items() if since_s < self._over_s}
        assert report.code != 0 or not known, f"exit code 0, although these ended unasked: {known}"
        if report.code == 0:
            assert world.supervisor.state.status is Status.TERMINATED, world.supervisor.state.status
            could_tidy = self._has_looked and not world.failpoints.failed & TIDYING
            assert not could_tidy or machine.left == [], f"an orderly end left {machine.left}"
        assert report.code in {0, 1, 75}

    @property
    def is_right(self) -> bool:
        """Whether the node is up and idle, with everybody answered."""
        state = self._world.supervisor.state
        return (
            state.phase is Phase.UP
            and state.attempt is None
            and state.promotion is None
            and state.ending is None
            and (state.status is Status.EMPTY or readiness(state).ready)
            and all(waiting.pending.done for waiting in self._world.waiting)
        )

    def came_right(self) -> None:
        """Check a node after a long, quiet time without faults: nothing is under way, nobody waits."""
        world, state = self._world, self._world.supervisor.state
        if world.over or world.machine.died:
            return
        assert state.phase is Phase.UP, f"after a long rest the phase is {state.phase}"
        assert state.attempt is None, f"after a long rest still {state.attempt}"
        assert state.promotion is None, f"after a long rest still {state.promotion}"
        waiting = [waiting.request for waiting in world.waiting if not waiting.pending.done]
        assert not waiting, f"after a long rest {waiting} waits"
        if state.status is Status.RUNNING:
            shown = readiness(state)
            assert shown.ready, f"after a long rest {shown.conditions}"
        else:
            assert state.status is Status.EMPTY, state.status

    def healed(self) -> None:
        """Check the life after all faults: it runs and has applied its spec, unless the folder is foreign."""
        world, machine = self._world, self._world.machine
        if machine.kind is PgdataKind.FOREIGN and not machine.is_ours:
            assert world.over, "a foreign folder is in use"
            return
        assert not world.over, world.exit.get(0)
        self.came_right()
        state = world.supervisor.state
        assert state.status is Status.RUNNING, f"all faults are gone, and the node is {state.status.text}"
        cluster = machine.clusters[machine.served or 0]
        assert cluster.migrations_done == cluster.migrations_known, "all faults are gone, and migrations wait"
        assert state.spec is not None
        assert self.left_to_do(state.spec) == []
