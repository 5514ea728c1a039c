"""Specs and settings to test with."""

from typing import Any

from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings, SourceName
from compute_node.messages.spec import Cluster, ComputeCtlConfig, ComputeSpec, Database, KeySet, Role


def a_spec(**changes: Any) -> ComputeSpec:
    """A small spec; the keywords are fields of ComputeSpec."""
    fields: dict[str, Any] = {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": Cluster(roles=(), databases=()),
    }
    return ComputeSpec(**(fields | changes))


def with_role(name: str, **changes: Any) -> ComputeSpec:
    """A spec with one role that owns one database of its name."""
    return a_spec(cluster=Cluster(roles=(Role(name),), databases=(Database(name, name),)), **changes)


def settings(**changes: Any) -> NodeSettings:
    """The settings of a node of source initdb."""
    fields: dict[str, Any] = {
        "compute_id": "compute-1",
        "pgdata": "/nowhere/pgdata",
        "connstr": "postgresql://cloud_admin@localhost:55432/postgres",
        "postgres_bin": "/nowhere/bin/postgres",
        "config": ComputeCtlConfig(jwks=KeySet(keys=())),
        "source": SourceName.INITDB,
    }
    fields |= changes
    return NodeSettings(**(fields | {"connstr": Secret(fields["connstr"])}))


ODD_NAMES = [
    "plain",
    "  blanks  around  ",
    "tab\there",
    "new\nline",
    "per%20cent",
    "percent %s %(name)s",
    'dou"ble',
    '"quoted"',
    "sin'gle",
    "'quoted'",
    "dollar$",
    "$x$name$x$",
    "$$",
    "back\\slash",
    "\\'; SELECT 1; --",
    '"; DROP DATABASE postgres; --',
    "\N{PILE OF POO}\N{SNOWMAN}",
    "UPPER lower",
    "select",
    "{braces} {0}",
    "a" * 63,
    "\N{LATIN SMALL LETTER E WITH ACUTE}" * 31,
]
"""What roles and databases may be called, and somebody will trip over."""
