"""The agent's protocol: every message, byte for byte, and what is no message."""

import json
import re

import pytest
from compute_node.actors.vm_monitor_bridge import protocol
from compute_node.actors.vm_monitor_bridge.protocol import Chosen, NoVersion, Offer, Unreadable
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"min":1,"max":1}', '{"version":1}'),
        ('{"min":0,"max":255}', '{"version":1}'),
        (
            '{"min":2,"max":3}',
            '{"error":"Received protocol version range 2 to 3 which does not overlap with v1.0"}',
        ),
        (
            '{"min":0,"max":0}',
            '{"error":"Received protocol version range 0 to 0 which does not overlap with v1.0"}',
        ),
    ],
)
def test_the_highest_common_version_is_chosen_or_the_reason_is_told(text: str, answer: str) -> None:
    assert protocol.write(protocol.negotiate(protocol.read_offer(text))) == answer


@given(st.integers(0, 255), st.integers(0, 255))
def test_a_version_is_chosen_exactly_when_the_range_holds_it(one: int, other: int) -> None:
    lowest, highest = sorted((one, other))
    answer = protocol.negotiate(Offer(lowest, highest))

    assert isinstance(answer, Chosen if lowest <= 1 <= highest else NoVersion)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "missing required field"),
        ('{"min":2,"max":1}', "the version range 2 to 1 is empty"),
        ('{"min":1}', "missing required field `max`"),
        ('{"min":-1,"max":1}', "`int` >= 0"),
        ('{"min":1,"max":256}', "`int` <= 255"),
        ('{"min":"1","max":"1"}', "Expected `int`"),
        ('{"min":1.5,"max":2}', "Expected `int`"),
        ('{"a":' + "[" * 100_000, "it is nested too deeply"),
    ],
    ids=lambda text: text[:20],
)
def test_a_range_that_is_none_is_refused_and_the_reason_told(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        protocol.read_offer(text)


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ('{"content":{},"type":"HealthCheck","id":2}', protocol.HealthCheck, 2),
        ('{"type":"HealthCheck","id":0}', protocol.HealthCheck, 0),
        (
            '{"content":{"granted":{"cpu":0.5,"mem":2147483648}},"type":"UpscaleNotification","id":4}',
            protocol.UpscaleNotification,
            4,
        ),
        (
            '{"content":{"target":{"cpu":1,"mem":18446744073709551615}},"type":"DownscaleRequest","id":6}',
            protocol.DownscaleRequest,
            6,
        ),
        ('{"content":{"error":"no"},"type":"InvalidMessage","id":3}', protocol.InvalidMessage, 3),
        ('{"content":{"error":"no"},"type":"InternalError","id":3}', protocol.InternalError, 3),
    ],
)
def test_what_the_agent_says_is_read(text: str, kind: type, number: int) -> None:
    said = protocol.read(text)

    assert isinstance(said, kind)
    assert said.id == number
    assert protocol.kind_of(said) == json.loads(text)["type"]


def test_sizes_are_read() -> None:
    grown = protocol.read(
        '{"content":{"granted":{"cpu":0.5,"mem":2048}},"type":"UpscaleNotification","id":4}'
    )
    asked = protocol.read('{"content":{"target":{"cpu":0.25,"mem":1024}},"type":"DownscaleRequest","id":6}')

    assert isinstance(grown, protocol.UpscaleNotification)
    assert (grown.content.granted.cpu, grown.content.granted.mem) == (0.5, 2048)
    assert isinstance(asked, protocol.DownscaleRequest)
    assert asked.content.target.mem == 1024


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("garbage", 0),
        ("null", 0),
        ("[]", 0),
        ('{"type":"HealthCheck"}', 0),
        ('{"type":"HealthCheck","id":"2"}', 0),
        ('{"type":"HealthCheck","id":-2}', 0),
        ('{"type":"HealthCheck","id":2.5}', 0),
        ('{"type":"Unheard","id":8}', 8),
        ('{"id":8}', 8),
        ('{"content":{},"type":"DownscaleRequest","id":6}', 6),
        ('{"content":{"target":{"cpu":1,"mem":-1}},"type":"DownscaleRequest","id":6}', 6),
        ('{"content":{"target":{"cpu":1,"mem":18446744073709551616}},"type":"DownscaleRequest","id":6}', 6),
        ('{"content":{"target":{"cpu":"1","mem":1}},"type":"DownscaleRequest","id":6}', 6),
        ('{"type":"HealthCheck","id":99999999999999999999}', 0),
        ("[" * 100_000, 0),
        ('{"a":' * 50_000, 0),
    ],
    ids=lambda value: str(value)[:70],
)
def test_what_is_no_message_is_told_with_its_number_where_it_has_one(text: str, number: int) -> None:
    said = protocol.read(text)

    assert isinstance(said, Unreadable)
    assert said.id == number
    assert 0 < len(said.error) <= protocol.MAX_TEXT


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"content":{"target":{"cpu":1,"mem":18446744073709551616}},"type":"DownscaleRequest","id":6}',
            "18446744073709551616 bytes do not fit into 64 bits - at `$.content.target`",
        ),
        ('{"type":"HealthCheck"}', "Object missing required field `id`"),
        ('{"a":' * 50_000, "it is nested too deeply"),
    ],
    ids=("too large", "no number", "too deep"),
)
def test_the_reason_why_it_is_no_message_is_told(text: str, problem: str) -> None:
    said = protocol.read(text)

    assert isinstance(said, Unreadable)
    assert said.error == problem


@given(st.text())
@example("\ud800")
def test_no_text_whatever_raises(text: str) -> None:
    protocol.read(text)


def test_a_long_text_of_the_agent_is_cut() -> None:
    said = protocol.read(json.dumps({"content": {"error": "x" * 30_000}, "type": "InternalError", "id": 3}))

    assert isinstance(said, protocol.InternalError)
    assert said.content.error == "x" * protocol.MAX_TEXT


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (protocol.HealthAnswer(2), '{"type":"HealthCheck","id":2}'),
        (protocol.UpscaleConfirmation(4), '{"type":"UpscaleConfirmation","id":4}'),
        (
            protocol.DownscaleResult(ok=True, status="done", id=6),
            '{"type":"DownscaleResult","Ok":true,"Status":"done","id":6}',
        ),
        (protocol.UpscaleRequest(3), '{"type":"UpscaleRequest","id":3}'),
        (
            protocol.Failure("failed to downscale", 6),
            '{"type":"InternalError","error":"failed to downscale","id":6}',
        ),
        (protocol.NotUnderstood("what?", 6), '{"type":"InvalidMessage","error":"what?","id":6}'),
    ],
)
def test_what_we_say_is_written_as_the_agent_reads_it(message: protocol.ToAgent, text: str) -> None:
    assert protocol.write(message) == text
    assert protocol.kind_of(message) == json.loads(text)["type"]


def test_the_messages_of_the_negotiation_are_called_what_they_are() -> None:
    assert protocol.kind_of(protocol.Chosen(1)) == "Chosen"
