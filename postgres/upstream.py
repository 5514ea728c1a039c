"""The primary that a replica of the source `upstream` is copied from and follows: what its conninfo says."""

from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec
from typing_extensions import override

from ..messages.secret import Secret, is_secret_setting

APPLICATION_NAME: Final = "compute_ctl:upstream"
DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""A primary that vanishes without a word is noticed within about a minute, unless the conninfo says otherwise."""

_NOT_HERE: Final = {
    "service": "service files belong to the machine, not to a spec",
    "servicefile": "service files belong to the machine, not to a spec",
    "replication": "this program says itself what kind of connection it opens",
}
_PASSWORDS: Final = frozenset({"password", "passfile"})


class Upstream(msgspec.Struct, frozen=True):
    """A parsed conninfo; `parameters` are libpq's keywords, without the password."""

    parameters: Mapping[str, str]
    password: Secret | None = None

    @override
    def __repr__(self) -> str:
        return f"Upstream({self.place})"

    @property
    def place(self) -> str:
        """Where it is, for people."""
        where = self.parameters.get("host") or self.parameters.get("hostaddr") or "the default host"
        return f"{where}, port {self.parameters.get('port') or '5432'}"

    def conninfo(self, **changes: str) -> str:
        """Return the text for programs: no password, no secret; `changes` come on top."""
        return _join({**DEFAULTS, "application_name": APPLICATION_NAME, **self.parameters, **changes})

    def standby_conninfo(self, application_name: str) -> Secret:
        """Return the text of `primary_conninfo`, password included."""
        password = {} if self.password is None else {"password": self.password.reveal()}
        fields = {**DEFAULTS, "application_name": application_name, **self.parameters, **password}
        return Secret(_join(fields))


def parse(conninfo: Secret) -> Upstream:
    """Read a conninfo as libpq does, keywords or URL. Raises ValueError, whose text never repeats it."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    text = conninfo.reveal()
    if any(not character.isprintable() for character in text):
        _refuse("it contains control characters")
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except ProgrammingError:  # its text repeats what it could not read
        _refuse("give it as libpq reads it, host=… port=… user=… or postgresql://user@host:port")
    for name, why in _NOT_HERE.items():
        if name in found:
            _refuse(f"leave `{name}` out: {why}")
    if not found.get("host") and not found.get("hostaddr"):
        _refuse("it names no host")
    password = found.pop("password", None)
    if password is not None:
        found.pop("passfile", None)  # libpq would not look into it, and programs would in place of ours
    for name in found:
        if is_secret_setting(name) and name not in _PASSWORDS:
            _refuse(f"`{name}` would have to be told to programs as an argument, which everybody can read")
    return Upstream(found, None if password is None else Secret(password))


def _join(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _refuse(reason: str) -> NoReturn:
    msg = f"the spec's `upstream_conninfo` cannot be used: {reason}"
    raise ValueError(msg) from None
