"""Mistakes that the type checker must find: each marked line gives exactly the error of its mark, no other does.

Read by tests/unit/test_typing_contract.py; never imported. What no checker finds: asking an actor for what it
does not hear; its `assert_never` then raises.
"""

from typing import assert_never, assert_type

from compute_node.actors.kit.actor import Actor, Pending, Ref, Replier
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.base import Message, Request
from typing_extensions import override


class Add(Message, frozen=True):
    amount: int


class Clear(Message, frozen=True):
    pass


class Foreign(Message, frozen=True):
    pass


class GetCount(Request[int], frozen=True):
    pass


class GetName(Request[str], frozen=True):
    pass


class Counter(Actor[Add | Clear | GetCount]):
    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[Replier[int]] = []

    @override
    def receive(self, message: Add | Clear | GetCount) -> None:
        match message:
            case Add(amount):
                self._count += amount
            case Clear():
                self._count = 0
            case GetCount():
                self.reply(message, self._count)
            case _:
                assert_never(message)

    def wrong_replies(self, request: GetCount) -> None:
        self.reply(request, "seven")  # expect: misc
        self.reply(Add(1), 7)  # expect: arg-type
        replier = self.defer(request)
        assert_type(replier, Replier[int])
        replier.answer("seven")  # expect: arg-type
        self._waiting.append(replier)
        self.defer(Add(1))  # expect: arg-type

    def wrong_jobs(self) -> None:
        self.start_job("no message", lambda _: 7)  # expect: arg-type,return-value
        self.start_job("no cancellation", work_without_cancellation)  # expect: arg-type
        self.start_job("fine", work, failed=lambda error: Clear())
        self.start_job("bad failure", work, failed=lambda error: 7)  # expect: arg-type,return-value

    def wrong_to_itself(self) -> None:
        self.myself.tell(Foreign())  # expect: arg-type
        self.timers.after(1.0, 7)  # expect: arg-type


def work(cancellation: Cancellation) -> Message | None:
    cancellation.check()
    return None


def work_without_cancellation() -> Message | None:
    return None


class Forgetful(Actor[Add | Clear]):
    @override
    def receive(self, message: Add | Clear) -> None:
        match message:
            case Add():
                pass
            case _:
                assert_never(message)  # expect: arg-type


class WrongReceive(Actor[Add]):
    @override
    def receive(self, message: Clear) -> None:  # expect: override
        pass


def edge(counter: Ref[Add | Clear | GetCount]) -> None:
    counter.tell(Add(1))
    counter.tell(Foreign())  # expect: arg-type
    counter.tell(Add("one"))  # expect: arg-type
    Add(1).amount = 2  # expect: misc
    assert_type(counter.ask(GetCount(), 1.0), int)
    assert_type(counter.request(GetCount()), Pending[int])
    _name: str = counter.ask(GetCount(), 1.0)  # expect: assignment
    counter.ask(Add(1), 1.0)  # expect: arg-type
    counter.ask(GetCount())  # expect: call-arg


def spawning(threads: ThreadedRuntime, simulation: SimulatedRuntime) -> None:
    assert_type(threads.spawn("counter", Counter()), Ref[Add | Clear | GetCount])
    assert_type(simulation.spawn("counter", Counter()), Ref[Add | Clear | GetCount])
    threads.spawn("counter", Counter()).tell(Foreign())  # expect: arg-type
    counter = threads.spawn("counter", Counter())
    narrower: Ref[Add] = counter
    narrower.tell(Clear())  # expect: arg-type
    _wider: Ref[Add | Foreign] = counter  # expect: assignment
