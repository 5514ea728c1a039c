"""What can be said about a config without a node: its shape, what is unknown, what would be refused. Pure."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from ..actors.configurator.desired import Context
from ..actors.configurator.model import PUBLIC, Catalog, DatabaseState, RoleState
from ..actors.configurator.phases import plan
from ..actors.postgres_process import fields
from ..http.auth import load_keys
from ..messages.secret import mask_credentials
from ..messages.spec import ComputeConfig, ComputeSpec, config_decoder, spec_decoder
from ..messages.unknown import unknown_parts
from ..postgres.conf import ConfContext, ConfError, render
from . import documents

ADMINISTRATOR: Final = "cloud_admin"
SYSTEM_DATABASE: Final = "postgres"
"""Of a node whose --connstr names none."""
SERVER_VERSION: Final = 150000
WHOLE: Final = "$"

_PLACE: Final = re.compile(r"(.*?) - at `(\$.*)`", re.DOTALL)
_BENEATH: Final = re.compile(r"\.features\[\d+\]$|\.action$")


class Finding(msgspec.Struct, frozen=True):
    """Something about a config, with the JSON path of its place."""

    path: str
    text: str


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with a config, and what else is worth knowing; valid without problems."""

    valid: bool
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def validate(data: bytes) -> Verdict:
    """Check a config, or a bare spec, as strictly as is possible without a Postgres. Raises NotJsonError."""
    known = documents.parse(data)
    bare = documents.is_bare(known)
    problems = list(_repeated(known, WHOLE))
    problems += [_unknown(path) for path in unknown_parts(known, ComputeSpec if bare else ComputeConfig)]
    warnings: list[Finding] = []
    spec: ComputeSpec | None
    try:
        if bare:
            spec = spec_decoder.decode(data)
        else:
            config: ComputeConfig = config_decoder.decode(data)
            spec = config.spec
            _, skipped = load_keys(config.compute_ctl_config.jwks.keys)
            warnings += [Finding("$.compute_ctl_config.jwks.keys", text) for text in skipped]
    except msgspec.ValidationError as error:
        problems.append(_misshapen(str(error)))
        spec = None
    if spec is not None:
        place = WHOLE if bare else "$.spec"
        problems += [Finding(place, text) for text in _refused(spec)]
        warnings += [Finding(place, text) for text in fields.not_built(spec)[1]]
    return Verdict(not problems, tuple(problems), tuple(warnings))


def _repeated(value: object, path: str) -> Iterator[Finding]:
    if isinstance(value, documents.Object):
        for name in value.repeated:
            yield Finding(f"{path}.{name}", "the key is there more than once; only the last one counts")
        for name, item in value.items():
            yield from _repeated(item, f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _repeated(item, f"{path}[{number}]")


def _unknown(path: str) -> Finding:
    found = _BENEATH.search(path)
    if found is None:
        return Finding(path, "the field is not known and has no effect")
    return Finding(
        path, f"this {'action' if found[0] == '.action' else 'feature'} is not known and has no effect"
    )


def _misshapen(text: str) -> Finding:
    found = _PLACE.fullmatch(text)
    return Finding(WHOLE, text) if found is None else Finding(found[2], found[1])


def _refused(spec: ComputeSpec) -> Iterator[str]:
    """Say what a node would refuse: of the configuration, and of roles and databases in a new cluster."""
    try:
        render(spec, ConfContext(internal_http_port=3081, privileged_role_name="neon_superuser"))
    except ConfError as error:
        yield mask_credentials(str(error))
    not_built, _ = fields.not_built(spec)
    if not_built is not None:
        yield not_built
    new = Catalog(
        SERVER_VERSION,
        {ADMINISTRATOR: RoleState()},
        {SYSTEM_DATABASE: DatabaseState(ADMINISTRATOR)},
        schemas=frozenset({PUBLIC}),
    )
    for refusal in plan(new, spec, Context(ADMINISTRATOR, SYSTEM_DATABASE)).refusals:
        yield refusal.describe()
