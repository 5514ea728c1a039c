"""Which cgroup is read and how: version 1, version 2, hybrid, nested, without limits, and this machine's own."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from compute_node.postgres import cgroup
from compute_node.postgres.cgroup import Group, Limit, Mount, locate, mounts
from hypothesis import given
from hypothesis import strategies as st

V1 = "33 25 0:30 {root} {point} rw,relatime shared:14 - cgroup cgroup rw,memory"
V1_CPU = "34 25 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "31 24 0:27 {root} {point} rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate"
UNLIMITED = "9223372036854771712"
MB = 1 << 20


def v1(point: str = "/sys/fs/cgroup/memory", root: str = "/") -> str:
    return V1.format(point=point, root=root)


def v2(point: str = "/sys/fs/cgroup", root: str = "/") -> str:
    return V2.format(point=point, root=root)


@pytest.mark.parametrize(
    ("mountinfo", "membership", "group"),
    [
        pytest.param((v2(),), "0::/a/b", Group(2, "/sys/fs/cgroup/a/b", "/sys/fs/cgroup"), id="v2"),
        pytest.param((v2(),), "0::/", Group(2, "/sys/fs/cgroup", "/sys/fs/cgroup"), id="v2, at the top"),
        pytest.param(
            (V1_CPU, v1()),
            "4:memory:/a\n3:cpu,cpuacct:/b\n",
            Group(1, "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"),
            id="v1",
        ),
        pytest.param(
            (V1_CPU, v1(), v2("/sys/fs/cgroup/unified")),
            "4:memory:/a\n3:cpu:/b\n0::/c\n",
            Group(1, "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"),
            id="hybrid, memory in v1",
        ),
        pytest.param(
            (V1_CPU, v2("/sys/fs/cgroup/unified")),
            "3:cpu:/b\n0::/c\n",
            Group(2, "/sys/fs/cgroup/unified/c", "/sys/fs/cgroup/unified"),
            id="hybrid, memory in v2",
        ),
        pytest.param(
            (v1(root="/docker/0123"),),
            "4:memory:/docker/0123/inner",
            Group(1, "/sys/fs/cgroup/memory/inner", "/sys/fs/cgroup/memory"),
            id="nested: a container sees its own group as the top",
        ),
        pytest.param(
            (v1(root="/docker/0123"),),
            "4:memory:/docker/0123",
            Group(1, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
            id="nested, in the container's own group",
        ),
        pytest.param(
            (v1(root="/docker/0123"),),
            "4:memory:/docker/01234",
            Group(1, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
            id="a namesake that only begins alike cannot be seen",
        ),
        pytest.param(
            (v2(root="/.."),),
            "0::/../neighbour",
            Group(2, "/sys/fs/cgroup", "/sys/fs/cgroup"),
            id="in another namespace",
        ),
        pytest.param(
            (v2("/mnt/with\\040blank"),),
            "0::/a",
            Group(2, "/mnt/with blank/a", "/mnt/with blank"),
            id="escaped",
        ),
        pytest.param((V1_CPU,), "3:cpu:/b", None, id="no memory controller"),
        pytest.param((), "", None, id="none at all"),
        pytest.param(("garbage", "a b c - d"), "garbage\n::\n0", None, id="garbage"),
    ],
)
def test_the_group_is_found_where_the_hierarchy_is_mounted(
    mountinfo: tuple[str, ...], membership: str, group: Group | None
) -> None:
    assert next(iter(locate("\n".join(mountinfo), membership)), None) == group


def test_mounts_are_told_apart_by_their_kind() -> None:
    assert mounts("\n".join((V1_CPU, v1(), v2("/x", "/y")))) == (
        Mount(1, "/", "/sys/fs/cgroup/memory"),
        Mount(2, "/y", "/x"),
    )


@given(st.text(), st.text())
def test_no_text_whatever_raises(mountinfo: str, membership: str) -> None:
    locate(mountinfo, membership)


# --- Trees -----------------------------------------------------------------------------------------------


class Tree:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, version: int) -> None:
        self.proc = folder / "proc"
        self.top = folder / "cgroup"
        self.version = version
        self.top.mkdir()
        (self.proc / "self").mkdir(parents=True)
        mountinfo = (v2 if version == 2 else v1)(str(self.top))
        (self.proc / "self" / "mountinfo").write_text(mountinfo + "\n")
        self.put("self", "/")

    def put(self, pid: str, path: str) -> None:
        """Put a process into a group."""
        (self.proc / pid).mkdir(exist_ok=True)
        line = f"0::{path}\n" if self.version == 2 else f"4:memory:{path}\n"
        (self.proc / pid / "cgroup").write_text(line)

    def group(self, path: str, files: Mapping[str, str]) -> None:
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


STAT = {"memory.stat": "active_anon 1\ninactive_anon 2\n", "cgroup.procs": ""}
LIMIT_FILE = {1: "memory.limit_in_bytes", 2: "memory.max"}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "smallest"),
    [
        ({"": None, "a": "max", "a/b": "max"}, None),
        ({"": None, "a": UNLIMITED, "a/b": "18446744073709551615"}, None),
        ({"": None, "a": str(512 * MB), "a/b": "max"}, (512 * MB, "a")),
        ({"": None, "a": str(512 * MB), "a/b": str(1024 * MB)}, (512 * MB, "a")),
        ({"": None, "a": str(512 * MB), "a/b": str(256 * MB)}, (256 * MB, "a/b")),
        ({"": str(128 * MB), "a": None, "a/b": "nonsense"}, (128 * MB, "")),
        ({"": "", "a": "-1", "a/b": "1e9"}, None),
        ({"a/b": "9" * 5000}, None),
        ({"a/b": "0"}, (0, "a/b")),
    ],
)
def test_the_smallest_limit_up_the_tree_counts_and_max_is_none(
    version: int, limits: dict[str, str | None], smallest: tuple[int, str] | None, tmp_path: Path
) -> None:
    tree = Tree(tmp_path, version)
    tree.group("a/b", STAT)
    for path, limit in limits.items():
        if limit is not None:
            tree.group(path, {LIMIT_FILE[version]: limit})
    tree.put("7", "/a/b")
    group = cgroup.group_of(7, proc=str(tree.proc))

    assert group == Group(version, str(tree.top / "a/b"), str(tree.top))
    found = cgroup.limit(group)
    assert found == (None if smallest is None else Limit(smallest[0], str(tree.top / smallest[1])))


@pytest.mark.parametrize("version", [1, 2])
def test_a_mount_that_is_hidden_below_another_is_passed_over(version: int, tmp_path: Path) -> None:
    tree = Tree(tmp_path, version)
    tree.group("a", STAT)
    tree.put("7", "/a")
    seen = tree.proc / "self" / "mountinfo"
    hidden = (v2 if version == 2 else v1)("/sys/fs/cgroup/not there")
    seen.write_text(hidden + "\n" + seen.read_text())

    assert cgroup.group_of(7, proc=str(tree.proc)) == Group(version, str(tree.top / "a"), str(tree.top))


def test_what_is_above_the_mount_is_not_looked_at(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    tree.group("", STAT)
    (tmp_path / "memory.max").write_text("1")

    group = cgroup.group_of(proc=str(tree.proc))
    assert group is not None
    assert cgroup.limit(group) is None


def test_a_group_without_the_controller_counts_with_the_one_above_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    tree.group("a", STAT)
    tree.group("a/b/c", {"cgroup.procs": ""})
    tree.put("7", "/a/b/c")

    assert cgroup.group_of(7, proc=str(tree.proc)) == Group(2, str(tree.top / "a"), str(tree.top))


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_is_found_by_its_name_at_the_top_first_and_then_in_our_own(
    version: int, tmp_path: Path
) -> None:
    tree = Tree(tmp_path, version)
    tree.group("own", STAT)
    tree.put("self", "/own")
    places = (str(tree.top / "neon-postgres"), str(tree.top / "own/neon-postgres"))

    assert cgroup.named("neon-postgres", proc=str(tree.proc)) == (None, places)
    tree.group("own/neon-postgres", STAT)
    inner = Group(version, places[1], str(tree.top))
    assert cgroup.named("neon-postgres", proc=str(tree.proc)) == (inner, places)
    assert inner.name == "own/neon-postgres"
    tree.group("neon-postgres", STAT)
    outer = Group(version, places[0], str(tree.top))
    assert cgroup.named("/neon-postgres/", proc=str(tree.proc)) == (outer, places)
    assert outer.name == "neon-postgres"


# --- Texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "used"),
    [
        (b"anon 9\ninactive_anon 2\nactive_anon 1\ninactive_file 7\n", 3),
        (b"inactive_anon 2\nactive_anon 1\ntotal_inactive_anon 20\ntotal_active_anon 10\n", 30),
        (b"active_anon 0\ninactive_anon 0", 0),
        (b"active_anon 1\n", None),
        (b"active_anon x\ninactive_anon 2\n", None),
        (b"workingset_active_anon 1\nworkingset_inactive_anon 2\n", None),
        (b"active_anon 1\nactive_anon 1\ninactive_anon 2\n", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_anonymous_memory_is_active_and_inactive_and_silence_is_no_zero(
    text: bytes, used: int | None
) -> None:
    assert cgroup.anonymous(text) == used


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("MemTotal:       24684096 kB\nMemFree: 1 kB\n", 24684096 * 1024),
        ("MemFree: 1 kB\n", None),
        ("", None),
    ],
)
def test_the_memory_of_the_machine_is_read(text: str, memory: int | None, tmp_path: Path) -> None:
    assert cgroup.machine_memory(proc=str(tmp_path)) is None
    (tmp_path / "meminfo").write_text(text)
    assert cgroup.machine_memory(proc=str(tmp_path)) == memory


def test_this_machine_can_be_read() -> None:
    memory = cgroup.machine_memory()
    assert memory is not None
    assert memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = cgroup.group_of(os.getpid())
    if group is None:
        pytest.skip("there are no cgroups with a memory controller here")
    if not Path(group.path, "memory.stat").exists():
        pytest.skip("the memory controller is off here")
    used = cgroup.anonymous(Path(group.path, "memory.stat").read_bytes())
    assert used is not None
    assert 0 < used <= memory
