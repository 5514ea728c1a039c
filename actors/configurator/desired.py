"""What a spec asks for, freed of what must not or cannot be done. Pure."""

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import UnsetType

from ...messages.secret import Secret
from ...messages.spec import Audit, ComputeSpec, GenericOption
from ...postgres.conf import ConfError, preload_libraries
from .model import MD5_PREFIX
from .operations import database_named, role_named, shown
from .renames import Deletion, Renaming, Resolved, Step, resolve

BOOTSTRAP_SUPERUSER: Final = "zenith_admin"
"""The superuser of old Neon clusters, made before the one that connects."""

RESERVED_ROLES: Final = frozenset({"public", "none"})
RESERVED_PREFIX: Final = "pg_"
PROTECTED_DATABASES: Final = frozenset({"postgres", "template0", "template1"})

STATISTICS: Final = "pg_stat_statements"
AUDIT: Final = "pgaudit"
AUDIT_FILE: Final = "pgauditlogtofile"
_AUDIT_EXTENSIONS: Final = {
    Audit.DISABLED: (),
    Audit.LOG: (AUDIT,),
    Audit.BASE: (AUDIT,),
    Audit.HIPAA: (AUDIT, AUDIT_FILE),
    Audit.EXTENDED: (AUDIT, AUDIT_FILE),
    Audit.FULL: (AUDIT, AUDIT_FILE),
}

_SCRAM: Final = re.compile(
    r"SCRAM-SHA-256\$\d{1,9}:([A-Za-z0-9+/]+={0,2})\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}="
)
_MD5: Final = re.compile(r"(?:md5)?([0-9a-fA-F]{32})")
_PASSWORD: Final = re.compile(r"\bPASSWORD\b", re.IGNORECASE)
_OPTION_NAME: Final = re.compile(r"[A-Za-z_]+(?: [A-Za-z_]+)*")
_OPTION_VALUE: Final = re.compile(
    r"""(?> -?\w[\w.]*+ | "(?:[^"\0]|"")++" | '(?:[^'\\\0]|'')*+' | [ ,] )*+""", re.VERBOSE | re.ASCII
)


class Context(msgspec.Struct, frozen=True):
    """What the planner must know besides catalog and spec."""

    administrator: str
    """The superuser that connects: the user of `-C`."""
    system_database: str
    """The database of `-C`."""
    privileged_role: str = "neon_superuser"
    seen: frozenset[int] = frozenset()
    """The oids of databases that this process has already brought to their described state."""


class Refusal(msgspec.Struct, frozen=True):
    """A part of the spec that is left out, and why."""

    subject: str
    reason: str

    def describe(self) -> str:
        """Put it into one line."""
        return f"{self.subject}: {self.reason}"


class RoleWish(msgspec.Struct, frozen=True):
    """A role as it is to be."""

    name: str
    password: Secret | UnsetType | None
    """As Postgres stores it; None: it is to have none; unset: whatever it has."""
    options: tuple[GenericOption, ...] = ()
    for_tokens: bool = False
    """Whether it is only ever used with tokens: no attributes, no membership."""


class DatabaseWish(msgspec.Struct, frozen=True):
    """A database as it is to be."""

    name: str
    owner: str
    options: tuple[GenericOption, ...] = ()


class Desired(msgspec.Struct, frozen=True):
    """What is to be done, as far as the spec alone says it."""

    roles: tuple[RoleWish, ...]
    databases: tuple[DatabaseWish, ...]
    role_renamings: tuple[Renaming, ...]
    departing: tuple[str, ...]
    """Roles to be dropped."""
    database_changes: tuple[Renaming | Deletion, ...]
    refusals: tuple[Refusal, ...]
    extensions: tuple[str, ...] = ()
    """Those that go with the libraries to preload."""
    audit: tuple[str, ...] = ()
    """The extensions of the audit; none: there is no audit."""
    branch: str | None = None
    """The timeline on which inherited subscriptions are to be dropped; None: nowhere."""

    def owner_of(self, database: str) -> str | None:
        """Return the owner that the spec gives a database; None for one that it does not list."""
        return next((wish.owner for wish in self.databases if wish.name == database), None)


def departing_names(spec: ComputeSpec) -> frozenset[str]:
    """Return every name that a role to be dropped may have; what the snapshot looks for dependents of."""
    actions = {"delete_role", "rename_role"}
    steps = [step for step in spec.delta_operations or () if step.action in actions]
    if all(step.action == "rename_role" for step in steps):
        return frozenset()
    return frozenset(step.name for step in steps)


def desired(spec: ComputeSpec, context: Context) -> Desired:
    """Read the spec. Of entries of the same name the last one counts."""
    refusals: list[Refusal] = []
    databases = tuple(_databases(spec, refusals))
    roles = tuple(_roles(spec, refusals))
    role_changes = _role_changes(spec, context, refusals)
    database_changes = _database_changes(spec, context, refusals)
    return Desired(
        roles=roles,
        databases=databases,
        role_renamings=tuple(change for change in role_changes if isinstance(change, Renaming)),
        departing=tuple(change.name for change in role_changes if isinstance(change, Deletion)),
        database_changes=database_changes,
        refusals=tuple(refusals),
        extensions=(STATISTICS,) if _preloads(spec, STATISTICS) else (),
        audit=_AUDIT_EXTENSIONS[spec.audit_log_level],
        branch=spec.branch if spec.drop_subscriptions_before_start else None,
    )


def _preloads(spec: ComputeSpec, library: str) -> bool:
    try:
        named = preload_libraries(spec) or ()
    except ConfError:
        return False  # no configuration can be made of it, and so this spec never gets here
    return any(Path(name).name.removesuffix(".so") == library for name in named)


def protected_role(name: str, context: Context) -> str | None:
    """Say why this role must not be created, altered, renamed or dropped; None when it may."""
    if name == context.administrator:
        return "it administers this node (the user of --connstr)"
    if name in RESERVED_ROLES or name.startswith(RESERVED_PREFIX):
        return "Postgres reserves this name"
    return None


def stored_password(text: str) -> Secret | None:
    """Return a password of the spec as Postgres stores it; None for what Postgres would take as plain text.

    The spec has SCRAM verifiers as they are stored, and md5 digests without their prefix.
    """
    if (verifier := _SCRAM.fullmatch(text)) is not None and _is_base64(verifier[1]):
        return Secret(text)
    if (digest := _MD5.fullmatch(text)) is not None:
        return Secret(MD5_PREFIX + digest[1].lower())
    return None


def _is_base64(text: str) -> bool:
    """Tell it as Postgres does, which takes a verifier with a salt that is none for a plain password."""
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return False
    return True


def unusable_option(option: GenericOption) -> str | None:
    """Say why this cannot be a clause of CREATE ROLE or CREATE DATABASE; None when it can."""
    if _PASSWORD.search(option.name) or (option.vartype != "string" and _PASSWORD.search(option.value or "")):
        return "its password stands among its options; give it as `encrypted_password`"
    if _OPTION_NAME.fullmatch(option.name) is None:
        return f"the option {shown(option.name)} is not a clause: its name may have letters and blanks only"
    if option.value is None:
        return None
    if option.vartype == "string":
        return f"the value of {option.name} contains a NUL character" if "\0" in option.value else None
    if _OPTION_VALUE.fullmatch(option.value) is None:
        return f"the value of {option.name} is neither words nor numbers; give it the vartype `string`"
    return None


def _roles(spec: ComputeSpec, refusals: list[Refusal]) -> Iterator[RoleWish]:
    proxy = spec.local_proxy_config
    for_tokens = {name for keys in (proxy and proxy.jwks) or () for name in keys.role_names}
    for role in {role.name: role for role in spec.cluster.roles}.values():
        subject, password = role_named(role.name), role.encrypted_password
        options = role.options or ()
        if (reason := _first_unusable(options)) is not None:
            refusals.append(Refusal(subject, reason))
            continue
        if isinstance(password, Secret) and (password := stored_password(password.reveal())) is None:
            refusals.append(
                Refusal(
                    subject,
                    "its encrypted_password is neither a SCRAM-SHA-256 verifier nor an md5 digest "
                    "(32 hexadecimal digits); plain passwords are not accepted",
                )
            )
            continue
        yield RoleWish(role.name, password, options, role.name in for_tokens)


def _databases(spec: ComputeSpec, refusals: list[Refusal]) -> Iterator[DatabaseWish]:
    for database in {database.name: database for database in spec.cluster.databases}.values():
        options = database.options or ()
        if (reason := _first_unusable(options)) is not None:
            refusals.append(Refusal(database_named(database.name), reason))
        else:
            yield DatabaseWish(database.name, database.owner, options)


def _first_unusable(options: Iterable[GenericOption]) -> str | None:
    return next((reason for option in options if (reason := unusable_option(option)) is not None), None)


def _role_changes(
    spec: ComputeSpec, context: Context, refusals: list[Refusal]
) -> tuple[Renaming | Deletion, ...]:
    steps = []
    owners = {database.owner: database.name for database in spec.cluster.databases}
    for step in _steps(spec, "delete_role", "rename_role"):
        reason = None
        for name in filter(None, (step.name, step.new_name)):
            reason = reason or protected_role(name, context)
            if name == context.privileged_role:
                reason = "it is the privileged role of this node"
        if reason is not None:
            reason = f"it must not be {'renamed or replaced' if step.new_name else 'deleted'}: {reason}"
        if reason is None:
            steps.append(step)
        else:
            refusals.append(Refusal(_both(role_named(step.name), step), reason))
    resolved = resolve(steps, {role.name for role in spec.cluster.roles})
    refusals += _refused(resolved, role_named)
    changes = []
    for change in resolved.changes:
        # Roles are renamed before databases change, and dropped after: a name cannot be freed in between.
        if isinstance(change, Deletion) and change.only_before:
            reason = (
                "another role is to get its name in the same spec; delete it first, with a spec of its own"
            )
            refusals.append(Refusal(role_named(change.name), reason))
        elif isinstance(change, Deletion) and change.name in owners:
            reason = (
                f"the spec makes it the owner of {database_named(owners[change.name])} and asks to delete it"
            )
            refusals.append(Refusal(role_named(change.name), reason))
        else:
            changes.append(change)
    return tuple(changes)


def _database_changes(
    spec: ComputeSpec, context: Context, refusals: list[Refusal]
) -> tuple[Renaming | Deletion, ...]:
    steps = []
    protected = PROTECTED_DATABASES | {context.system_database}
    for step in _steps(spec, "delete_db", "rename_db"):
        if step.name in protected or step.new_name in protected:
            verb = "renamed or replaced" if step.new_name else "deleted"
            reason = f"it must not be {verb}: the node itself needs it"
            refusals.append(Refusal(_both(database_named(step.name), step), reason))
        else:
            steps.append(step)
    resolved = resolve(steps, {database.name for database in spec.cluster.databases})
    refusals += _refused(resolved, database_named)
    return resolved.changes


def _both(subject: str, step: Step) -> str:
    return subject if step.new_name is None else f"{subject} (to be renamed to {shown(step.new_name)})"


def _steps(spec: ComputeSpec, delete: str, rename: str) -> Iterator[Step]:
    for step in spec.delta_operations or ():
        if step.action == delete:
            yield Step(step.name)
        elif step.action == rename and step.new_name != step.name:
            yield Step(step.name, step.new_name)


def _refused(resolved: Resolved, named: Callable[[str], str]) -> list[Refusal]:
    return [Refusal(named(name), reason) for name, reason in resolved.refused]
