"""The HttpFacade under the simulated runtime: every order of starting, stopping and failing."""

from typing import Any

import pytest
from compute_node.actors.http_facade.actor import HttpFacade
from compute_node.messages.serving import (
    ServingFailed,
    ServingStarted,
    ServingStopped,
    StartServing,
    StopServing,
)

from doubles.scripted import Scripted, SimulatedBench
from doubles.servers import PORTS, FakeServers

SEEDS = range(20)
STARTED = ServingStarted(PORTS.external, PORTS.internal)


class World:
    """An HttpFacade with double servers, and the Supervisor that hears of them."""

    def __init__(self, seed: int, servers: FakeServers) -> None:
        self.bench = SimulatedBench(seed)
        self.servers = servers
        supervisor = self.bench.spawn("supervisor", Scripted(self.bench.recorder))
        self.facade = self.bench.spawn("http_facade", HttpFacade(servers, supervisor))

    @property
    def heard(self) -> list[Any]:
        return self.bench.recorder.entries

    def tell(self, *messages: StartServing | StopServing) -> None:
        for message in messages:
            self.facade.tell(message)

    def settle(self) -> list[Any]:
        self.bench.runtime.settle()
        return self.heard


@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_is_told_with_the_real_ports_and_a_stop_when_all_is_closed(seed: int) -> None:
    world = World(seed, FakeServers())
    world.tell(StartServing())
    assert world.settle() == [STARTED]
    assert world.servers.serving == {"external", "internal"}
    world.tell(StopServing(1.5))
    assert world.settle() == [STARTED, ServingStopped()]
    assert world.servers.drains == [1.5]
    assert not world.servers.open


def test_requests_under_way_hold_the_stop_back() -> None:
    world = World(1, FakeServers())
    world.tell(StartServing())
    world.settle()
    world.servers.under_way = 1
    world.tell(StopServing(1.0))
    assert world.settle() == [STARTED]
    world.servers.under_way = 0
    assert world.settle() == [STARTED, ServingStopped()]


def test_a_second_stop_shortens_the_first_and_is_answered_once() -> None:
    world = World(1, FakeServers())
    world.tell(StartServing())
    world.settle()
    world.servers.under_way = 1
    world.tell(StopServing(5.0), StopServing(0.0))
    world.settle()
    assert world.servers.drains == [5.0, 0.0]
    world.servers.under_way = 0
    assert world.settle() == [STARTED, ServingStopped()]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_while_binding_closes_what_gets_bound(seed: int) -> None:
    world = World(seed, FakeServers(held=True))
    world.tell(StartServing(), StopServing(1.0))
    assert world.settle() == []
    world.servers.held = False
    assert world.settle() == [ServingStopped()]
    assert not world.servers.open


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_while_binding_fails_is_a_stop_all_the_same(seed: int) -> None:
    world = World(seed, FakeServers(held=True, taken="port taken"))
    world.tell(StartServing(), StopServing(1.0))
    assert world.settle() == []
    world.servers.held = False
    assert world.settle() == [ServingStopped()]


def test_a_stop_without_a_start_is_answered_at_once_and_each_time() -> None:
    world = World(1, FakeServers())
    world.tell(StopServing(1.0), StopServing(1.0))
    assert world.settle() == [ServingStopped(), ServingStopped()]


def test_a_port_that_is_taken_is_a_failure_with_the_reason_as_it_stands() -> None:
    world = World(1, FakeServers(taken="cannot serve at [::]:3080"))
    world.tell(StartServing())
    assert world.settle() == [ServingFailed("cannot serve at [::]:3080")]
    world.tell(StopServing(1.0))
    assert world.settle()[1:] == [ServingStopped()]


def test_a_server_that_crashes_is_a_failure_and_the_other_still_stops_in_order() -> None:
    world = World(1, FakeServers())
    world.servers.crashes["internal"] = OSError("no more descriptors")
    world.tell(StartServing())
    failure = "the internal HTTP server ended by itself: OSError: no more descriptors"
    assert world.settle() == [STARTED, ServingFailed(failure)]
    assert world.servers.serving == {"external"}
    world.tell(StopServing(1.0))
    assert world.settle()[2:] == [ServingStopped()]
    assert not world.servers.open


def test_a_server_whose_loop_merely_ends_is_a_failure_too() -> None:
    world = World(1, FakeServers())
    world.servers.ends_early = {"external", "internal"}
    world.tell(StartServing())
    assert {type(message) for message in world.settle()} == {ServingStarted, ServingFailed}
    world.tell(StopServing(1.0))
    assert world.settle()[-1] == ServingStopped()


def test_a_second_start_changes_nothing() -> None:
    world = World(1, FakeServers())
    world.tell(StartServing(), StartServing())
    assert world.settle() == [STARTED]


@pytest.mark.parametrize("seed", SEEDS)
def test_in_every_order_the_last_word_after_a_stop_is_that_all_is_closed(seed: int) -> None:
    servers = FakeServers(held=seed % 2 == 0)
    if seed % 3 == 1:
        servers.crashes["external"] = RuntimeError("fault")
    world = World(seed, servers)
    choices: list[StartServing | StopServing] = [StartServing(), StopServing(1.0), StopServing(0.0)]
    world.tell(*(world.bench.runtime.random.choice(choices) for _ in range(5)), StopServing(0.0))
    world.bench.runtime.run()
    servers.held = False
    world.bench.runtime.run()
    assert world.heard[-1] == ServingStopped(), world.bench.runtime.trace
    assert not servers.open
    assert not servers.serving


def test_when_the_actor_is_stopped_its_servers_are_closed() -> None:
    world = World(1, FakeServers())
    world.tell(StartServing())
    world.settle()
    world.bench.runtime.cell("http_facade").stop()
    world.settle()
    assert not world.servers.open
