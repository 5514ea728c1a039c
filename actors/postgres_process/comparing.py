"""How the settings that a spec describes differ from those of the node: pure, but for `look`."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Final, TypeAlias

import msgspec

from ...messages.planning import Change, DriftCause, SettingChange, SettingDrift
from ...messages.secret import MASK, is_secret_setting, mask_credentials
from ...postgres.conf_reader import read
from ...postgres.connection import connect, fetch
from ...postgres.target import Target

APPLICATION: Final = "compute_ctl:plan"
QUESTION: Final = b"""
SELECT lower(name), vartype, unit, context = 'postmaster', setting,
       CASE WHEN pending_restart THEN pg_catalog.current_setting(name) END
FROM pg_catalog.pg_settings
"""

_DIRECTIVES: Final = frozenset({"include", "include_dir", "include_if_exists"})
_NUMBER: Final = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*")
_UNIT: Final = re.compile(r"(\d*)([A-Za-z]+)")
_BYTES: Final = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIMES: Final = {"us": 1, "ms": 10**3, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_FACTORS: Final = _BYTES | _TIMES
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")

Values: TypeAlias = Mapping[str, str]
"""By name in lower case, the value that counts."""


class Known(msgspec.Struct, frozen=True):
    """What the running Postgres says of one of its settings."""

    vartype: str
    unit: str | None
    at_start_only: bool
    setting: str
    """What is in force, in the setting's own unit."""
    awaited: str | None = None
    """What is in force, for people, while another value awaits a restart."""


async def look(target: Target) -> dict[str, Known]:
    """Read what Postgres knows of its settings, by name in lower case. Raises psycopg.Error, TimeoutError."""
    read_only = ("default_transaction_read_only=on",)
    async with await connect(target, application_name=APPLICATION, extra_options=read_only) as connection:
        return {row[0]: Known(*row[1:]) for row in await fetch(connection, QUESTION)}


def values(text: str) -> dict[str, str]:
    """Return the settings of a configuration text, its includes left out."""
    found = {entry.name.lower(): entry.value for entry in read(text)}
    return {name: value for name, value in found.items() if name not in _DIRECTIVES}


def changes(
    now: Values, described: Values, altered: Values, known: Mapping[str, Known]
) -> tuple[SettingChange, ...]:
    """Say what a configuration file would change that takes the place of the one there is now.

    `altered` is what ALTER SYSTEM has set: it stays in force.
    """
    return tuple(
        SettingChange(name, _change(before, after), _shown(name, before), _shown(name, after), waits)
        for name, before, after in _different(now, described, known)
        for waits in (name not in altered and _needs_restart(after, known.get(name)),)
    )


def drift(
    now: Values, described: Values, altered: Values, known: Mapping[str, Known]
) -> tuple[SettingDrift, ...]:
    """Say where the node is not as the spec in force describes it."""
    found = [
        SettingDrift(name, DriftCause.FILE, _shown(name, wanted), _shown(name, actual))
        for name, actual, wanted in _different(now, described, known)
    ]
    found += [
        SettingDrift(name, DriftCause.ALTER_SYSTEM, _shown(name, wanted), _shown(name, actual))
        for name, actual, wanted in _different(altered, described, known)
        if name in altered and name in described
    ]
    told = {entry.name for entry in found}
    found += [
        SettingDrift(name, DriftCause.RESTART, _shown(name, described.get(name)), _shown(name, one.awaited))
        for name, one in known.items()
        if one.awaited is not None and name not in told
    ]
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.cause.value)))


def meaning(value: str, known: Known | None) -> object:
    """Return what is equal for texts that Postgres takes for the same value; texts themselves where unknown."""
    match None if known is None else known.vartype:
        case "bool":
            return _truth(value)
        case "integer" | "real" if known is not None:
            amount = _amount(value, known.unit)
            return amount if known.vartype == "real" or isinstance(amount, str) else round(amount)
        case "enum":
            return value.lower()
        case _:
            return value


def _different(
    one: Values, other: Values, known: Mapping[str, Known]
) -> Iterator[tuple[str, str | None, str | None]]:
    for name in sorted({*one, *other}):
        first, second = one.get(name), other.get(name)
        if first is None or second is None or not _same(first, second, known.get(name)):
            yield name, first, second


def _same(first: str, second: str, known: Known | None) -> bool:
    return meaning(first, known) == meaning(second, known)


def _change(before: str | None, after: str | None) -> Change:
    if before is None:
        return Change.ADDED
    return Change.REMOVED if after is None else Change.CHANGED


def _needs_restart(after: str | None, known: Known | None) -> bool:
    if known is None or not known.at_start_only:
        return False
    return after is None or not _same(after, known.setting, known)


def _shown(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    return MASK if is_secret_setting(name) else mask_credentials(value)


def _truth(value: str) -> bool | str:
    text = value.strip().lower()
    shortest = 2 if text.startswith("o") else 1
    for words, truth in ((_TRUE, True), (_FALSE, False)):
        if len(text) >= shortest and any(word.startswith(text) for word in words):
            return truth
    return value


def _amount(value: str, unit: str | None) -> Fraction | str:
    found = _NUMBER.fullmatch(value)
    base = _UNIT.fullmatch(unit or "")
    if found is None or (found[2] and (base is None or found[2] not in _FACTORS)):
        return value
    amount = Fraction(found[1])
    if found[2] and base is not None:
        amount *= Fraction(_FACTORS[found[2]], int(base[1] or 1) * _FACTORS[base[2]])
    return amount
