"""Cgroups: the one that a process is in, one by its name, their limits and memory; versions 1, 2, hybrid, nested.

Everything is looked up where the kernel says that it is mounted; what is not a number, or too large for a
machine, is no limit. Paths are absolute, sizes are bytes.
"""

import re
from pathlib import Path
from typing import Final

import msgspec

PROC: Final = "/proc"
NO_LIMIT: Final = 1 << 60
"""Version 1 writes «no limit» as a number near 2^63."""

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_ANONYMOUS: Final = (
    (b"\ntotal_active_anon ", b"\ntotal_inactive_anon "),
    (b"\nactive_anon ", b"\ninactive_anon "),
)
"""What both numbers stand behind: in version 1 those with the groups below are lines of their own."""
_LIMIT_FILES: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_LIMIT_TEXT: Final = re.compile(r"\d{1,30}")


class Mount(msgspec.Struct, frozen=True):
    """Where a hierarchy with the memory controller is mounted; `root` is the group that is seen there."""

    version: int
    root: str
    point: str


class Group(msgspec.Struct, frozen=True):
    """One group: its folder, and that of the highest one that can be seen from here."""

    version: int
    path: str
    top: str

    @property
    def name(self) -> str:
        """What `cgexec` and /proc call it, as far as it can be seen from here."""
        return self.path.removeprefix(self.top).strip("/") or "/"


class Limit(msgspec.Struct, frozen=True):
    """The smallest limit of a group and those above it, and whose it is."""

    bytes: int
    path: str


def mounts(mountinfo: str) -> tuple[Mount, ...]:
    """Find the hierarchies that may have the memory controller in the text of /proc/<pid>/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if len(fields) < 5 or len(kind) < 3:  # noqa: PLR2004 - five before the optional ones, three after
            continue
        root, point = _unescaped(fields[3]), _unescaped(fields[4])
        if kind[0] == "cgroup2":
            found.append(Mount(2, root, point))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.append(Mount(1, root, point))
    return tuple(found)


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def locate(mountinfo: str, membership: str) -> tuple[Group, ...]:
    """Find the group whose memory is accounted, from the texts of /proc/<pid>/mountinfo and /proc/<pid>/cgroup.

    In a hybrid system that is the one of version 1, as long as its hierarchy has the memory controller. There are
    several where a hierarchy is mounted several times; a mount may be hidden below another.
    """
    seen = mounts(mountinfo)
    paths: dict[int, str] = {}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    return tuple(
        Group(version, _below(mount, paths[version]), mount.point)
        for version in (1, 2)
        if version in paths
        for mount in seen
        if mount.version == version
    )


def _below(mount: Mount, path: str) -> str:
    """Put a group's path below the mount; one that cannot be seen there is taken for the highest that can."""
    inside = f"{path.rstrip('/')}/".removeprefix(f"{mount.root.rstrip('/')}/")
    hidden = inside.startswith("/") or ".." in path.split("/")
    if hidden or not inside:
        return mount.point
    return f"{mount.point.rstrip('/')}/{inside.rstrip('/')}"


def group_of(pid: int | None = None, *, proc: str = PROC) -> Group | None:
    """Return the group of a process, by default of this one; None where there are no cgroups. Raises OSError."""
    who = "self" if pid is None else str(pid)
    mountinfo = Path(proc, "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    membership = Path(proc, who, "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    groups = locate(mountinfo, membership)
    if not groups:
        return None
    there = (group for group in groups if Path(group.path, "cgroup.procs").exists())
    return _accounted(next(there, groups[0]))


def _accounted(group: Group) -> Group:
    """Climb to where the memory is counted: in version 2 the controller may be off in a group."""
    for path in _upwards(group):
        if Path(path, "memory.stat").exists():
            return Group(group.version, path, group.top)
    return group


def named(name: str, *, proc: str = PROC) -> tuple[Group | None, tuple[str, ...]]:
    """Return the group of that name, and where it was looked for: at the top, then in the group of this process.

    Raises OSError.
    """
    own = group_of(proc=proc)
    if own is None:
        return None, ()
    places = tuple(dict.fromkeys(f"{above.rstrip('/')}/{name.strip('/')}" for above in (own.top, own.path)))
    for place in places:
        if Path(place, "cgroup.procs").exists():
            return Group(own.version, place, own.top), places
    return None, places


def limit(group: Group) -> Limit | None:
    """Return the smallest limit up the tree; None where there is none that can be read."""
    found = []
    for path in _upwards(group):
        try:
            text = Path(path, _LIMIT_FILES[group.version]).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if _LIMIT_TEXT.fullmatch(text) and (number := int(text)) < NO_LIMIT:
            found.append(Limit(number, path))
    return min(found, key=lambda limit: limit.bytes, default=None)


def _upwards(group: Group) -> tuple[str, ...]:
    path, top = Path(group.path), Path(group.top)
    return tuple(str(place) for place in (path, *path.parents) if place.is_relative_to(top))


def anonymous(memory_stat: bytes) -> int | None:
    """Return the anonymous memory (active and inactive) by the text of `memory.stat`, with that of groups below.

    None when it does not say: that is no zero. Called ten times a second, with cold caches: searches cost
    half of what a regular expression does.
    """
    text = b"\n" + memory_stat + b"\n"
    for names in _ANONYMOUS:
        total = 0
        for name in names:
            at = text.find(name) + len(name)
            number = text[at : text.find(b"\n", at)]
            if at < len(name) or not number.isdigit() or text.find(name, at) >= 0:
                break
            total += int(number)
        else:
            return total
    return None


def machine_memory(*, proc: str = PROC) -> int | None:
    """Return what the machine has, by /proc/meminfo; None when it does not say."""
    try:
        text = Path(proc, "meminfo").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    match = re.search(r"^MemTotal:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024
