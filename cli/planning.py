"""A plan, as people read it."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

NOTHING: Final = "no changes"
_MARKS: Final = {"added": "+", "changed": "~", "removed": "-"}


def text(plan: dict[str, Any]) -> str:
    """Write the body of `POST /plan` as lines, but for its warnings."""
    return "\n".join(_lines(plan))


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    settings, operations, refused = plan["settings"], plan["operations"], plan["refused"]
    if settings:
        yield "settings"
        yield from _settings(settings)
        yield ""
    for phase, of_phase in groupby(operations, key=lambda operation: operation["phase"]):
        yield phase
        for database, there in groupby(of_phase, key=lambda operation: operation["database"]):
            indent = "  "
            if database is not None:
                yield f"  in {_quoted(database)}"
                indent = "    "
            yield from (f"{indent}{operation['action']}" for operation in there)
        yield ""
    if refused:
        yield "refused"
        yield from (f"  {refusal['part']}: {refusal['reason']}" for refusal in refused)
        yield ""
    yield _summary(settings, operations, refused)


def _settings(settings: list[dict[str, Any]]) -> Iterator[str]:
    width = max(len(setting["name"]) for setting in settings) + 2
    for setting in settings:
        values = [repr(value) for value in (setting["before"], setting["after"]) if value is not None]
        late = "  (at the next start)" if setting["needs_restart"] else ""
        yield f"  {_MARKS[setting['change']]} {setting['name']:<{width}}{' -> '.join(values)}{late}"


def _summary(
    settings: list[dict[str, Any]], operations: list[dict[str, Any]], refused: list[dict[str, Any]]
) -> str:
    late = sum(setting["needs_restart"] for setting in settings)
    parts = [
        f"{_count(settings, 'setting')} ({late} at the next start)" if late else _count(settings, "setting"),
        _count(operations, "SQL operation"),
        f"{_count(refused, 'part')} refused",
    ]
    given = [part for part, entries in zip(parts, (settings, operations, refused), strict=True) if entries]
    return ", ".join(given) or NOTHING


def _count(entries: list[dict[str, Any]], what: str) -> str:
    return f"{len(entries)} {what}{'' if len(entries) == 1 else 's'}"


def _quoted(name: str) -> str:
    import msgspec

    return msgspec.json.encode(name).decode()
