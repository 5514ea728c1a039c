"""The walls of the house: who may import whom, and what is done nowhere.

Each rule is checked on the package and, lest it check nothing, on a small tree in which it is broken.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "compute_node"
NOT_OURS = {"tests", "bench", "docs", "build", "dist"}

EVERYTHING = frozenset({"*"})
RULES: dict[str, frozenset[str]] = {
    "messages": frozenset(),
    "postgres": frozenset({"messages"}),
    "http": frozenset({"messages"}),
    "actors/kit": frozenset({"messages"}),
    "actors/*": frozenset({"messages", "postgres", "actors/kit"}),
    "actors/system.py": EVERYTHING,
    "process": frozenset({"messages", "postgres", "actors/kit", "actors/system.py"}),
    "cli": EVERYTHING,
    "run.py": EVERYTHING,
    "__init__.py": frozenset(),
    "actors/__init__.py": frozenset(),
}
"""Room → the rooms it may import, besides itself."""


# --- Reading ---------------------------------------------------------------------------------------------


@cache
def sources(root: Path) -> tuple[tuple[Path, ast.Module], ...]:
    """Return every module of the package, with its path from the root."""
    entries = [entry for entry in root.iterdir() if entry.name not in NOT_OURS and entry.name[0] != "."]
    files = [file for entry in entries for file in (entry.rglob("*.py") if entry.is_dir() else [entry])]
    return tuple(
        (file.relative_to(root), ast.parse(file.read_text(), str(file)))
        for file in sorted(files)
        if file.suffix == ".py"
    )


def room(path: Path) -> str:
    """Return the room of a module: a folder of the root, an actor's folder, or a file that is its own."""
    if path.as_posix() in RULES:
        return path.as_posix()
    if path.parts[0] == "actors" and len(path.parts) > 2:
        return f"actors/{path.parts[1]}"
    return path.parts[0]


def allowed(name: str) -> frozenset[str]:
    rule = RULES.get(name)
    if rule is None and name.startswith("actors/"):
        rule = RULES["actors/*"]
    assert rule is not None, f"{name} is a new room: give it a rule"
    return rule


def imported(root: Path, path: Path, tree: ast.Module) -> Iterator[tuple[int, Path, bool]]:
    """Yield line, target and whether it is relative, for every import of a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == PACKAGE:
                    yield node.lineno, found(root, parts[1:]), False
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                base = [*path.parent.parts[: len(path.parent.parts) - node.level + 1], *module]
            elif module[:1] == [PACKAGE]:
                base = module[1:]
            else:
                continue
            for alias in node.names:
                yield node.lineno, found(root, [*base, alias.name]), bool(node.level)


def found(root: Path, parts: list[str]) -> Path:
    """Return the file of the module that these names reach; the last ones may be names within it."""
    while parts:
        module = Path(*parts)
        if (root / module).with_suffix(".py").is_file():
            return module.with_suffix(".py")
        if (root / module).is_dir():
            return module / "__init__.py"
        parts = parts[:-1]
    return Path("__init__.py")


# --- The rules -------------------------------------------------------------------------------------------


def import_breaches(root: Path) -> list[str]:
    """Imports that go through a wall, and those within the package that are not relative."""
    breaches = []
    for path, tree in sources(root):
        here = room(path)
        for line, target, relative in imported(root, path, tree):
            there = room(target)
            if not relative and here != "run.py":
                breaches.append(f"{path}:{line}: imports of the package's own modules are relative")
            if there not in {here, "__init__.py"} and not may(here, there):
                breaches.append(f"{path}:{line}: {here} must not import {there}")
    return breaches


def may(here: str, there: str) -> bool:
    rule = allowed(here)
    return there in rule or "*" in rule


def shadow_breaches(root: Path) -> list[str]:
    """Folders and files of the root that would hide the standard library when the root is on the path."""
    return [
        f"{entry.name} at the root hides the standard library's"
        for entry in sorted(root.iterdir())
        if entry.stem in sys.stdlib_module_names
        and entry.stem != "__init__"
        and (entry.suffix == ".py" or (entry / "__init__.py").exists())
    ]


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for such an expression, with `?` for what has no name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
    return "?"


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


SLEEPS = {"sleep", "time.sleep"}
NOWS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
WALL_CLOCK = {
    "actors/kit/clock.py": "where the others have it from",
    "actors/http_facade/channels.py": "waitress itself compares with it",
    "actors/postgres_process/running.py": "for comparing with the times of files",
    "http/port.py": "tokens expire by it",
}
"""Who may read a clock that people can set, and why: never for a duration."""


SLEEPER = "nobody sleeps; use a timer or Cancellation.wait"


def time_breaches(root: Path) -> list[str]:
    """Sleeping, and reading the calendar or the wall clock, where time comes from the kit."""
    return [
        f"{path}:{line}: {breach}"
        for path, tree in sources(root)
        if path.parts[0] in {"actors", "http"}
        for line, name in uses_of_time(tree)
        if (breach := time_breach(name, path.as_posix())) is not None
    ]


def uses_of_time(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of whatever may come from a module of the standard library about time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from ((node.lineno, f"time.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, dotted(node)


def time_breach(name: str, path: str) -> str | None:
    if name in SLEEPS:
        return SLEEPER
    if name in {"time.time", "time.time_ns"} and path not in WALL_CLOCK:
        return "the wall clock comes from the kit"
    return f"time comes from the kit, not from {name}" if name.endswith(NOWS) else None


REAPER = Path("process/init.py")
"""The one module that waits for any child: its process has no process objects."""


def process_breaches(root: Path) -> list[str]:
    """Ways to deal with child processes that break threads or steal other people's children."""
    breaches = []
    for path, tree in sources(root):
        breaches += [
            f"{path}:{line}: never a fork beside threads" for line in imports_of("multiprocessing", tree)
        ]
        breaches += [
            f"{path}:{node.lineno}: never a fork beside threads"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and any(alias.name == "ProcessPoolExecutor" for alias in node.names)
        ]
        for call, name in calls(tree):
            where = f"{path}:{call.lineno}"
            if path != REAPER and name in {"fork", "os.fork", "os.forkpty", "pty.fork"}:
                breaches.append(f"{where}: never a fork beside threads")
            if any(keyword.arg == "preexec_fn" for keyword in call.keywords):
                breaches.append(f"{where}: no preexec_fn beside threads")
            if path == REAPER:
                continue
            if name in {"os.wait", "os.wait3", "os.wait4"} or (
                name.endswith("waitpid") and call.args and ast.unparse(call.args[0]) == "-1"
            ):
                breaches.append(f"{where}: never wait for «any child»")
            if name.endswith("waitid") and call.args and ast.unparse(call.args[0]).endswith("P_ALL"):
                breaches.append(f"{where}: never wait for «any child»")
    return breaches


def imports_of(library: str, tree: ast.Module) -> Iterator[int]:
    """Yield the lines on which a library is imported."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if any(alias.name.split(".")[0] == library for alias in names):
                yield node.lineno
            case ast.ImportFrom(module=str(module), level=0) if module.split(".")[0] == library:
                yield node.lineno


def actor_breaches(root: Path) -> list[str]:
    """Asking from within an actor, and Pykka outside the kit."""
    breaches = []
    for path, tree in sources(root):
        here = room(path)
        if here != "actors/kit":
            breaches += [f"{path}:{line}: only the kit knows Pykka" for line in imports_of("pykka", tree)]
        for call, name in calls(tree):
            if name.endswith((".proxy", "ActorProxy")):
                breaches.append(f"{path}:{call.lineno}: no proxies; actors exchange messages")
            if (
                path.parts[0] == "actors"
                and here not in {"actors/kit", "actors/system.py"}
                and name.endswith(".ask")
            ):
                breaches.append(f"{path}:{call.lineno}: actors only tell; the edge asks")
    return breaches


EXECUTING = {"execute", "executemany", "copy", "stream", "SQL"}


def sql_breaches(root: Path) -> list[str]:
    """SQL that is put together as text on its way to the server."""
    breaches = []
    for path, tree in sources(root):
        for call, name in calls(tree):
            if name.rpartition(".")[2] in EXECUTING and call.args and is_formatted(call.args[0]):
                breaches.append(f"{path}:{call.lineno}: SQL is composed with psycopg.sql, not formatted")
    return breaches


def is_formatted(node: ast.expr) -> bool:
    match node:
        case ast.JoinedStr(values=values):
            return any(isinstance(value, ast.FormattedValue) for value in values)
        case ast.BinOp(op=ast.Mod() | ast.Add(), left=left, right=right):
            return any(is_text(side) or is_formatted(side) for side in (left, right))
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return is_text(value)
    return False


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


CHECKS: list[Callable[[Path], list[str]]] = [
    import_breaches,
    shadow_breaches,
    time_breaches,
    process_breaches,
    actor_breaches,
    sql_breaches,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rule(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_the_walk_sees_every_room() -> None:
    rooms = {room(path) for path, _ in sources(ROOT)}
    assert {
        "messages",
        "postgres",
        "http",
        "cli",
        "process",
        "actors/kit",
        "actors/supervisor",
        "run.py",
    } <= rooms
    assert not rooms & NOT_OURS


def test_the_folder_http_has_no_init() -> None:
    assert (ROOT / "http").is_dir()
    assert not (ROOT / "http" / "__init__.py").exists()


HOUSE = {
    "__init__.py": "",
    "run.py": "import compute_node.actors.system",
    "messages/__init__.py": "",
    "messages/base.py": "import msgspec",
    "postgres/__init__.py": "",
    "postgres/conf.py": "from ..messages.base import Message",
    "http/app.py": "from ..messages import base\nfrom .port import Node",
    "http/port.py": "",
    "http/routes/status.py": "from ..port import Node\nfrom ...messages.base import Message",
    "actors/__init__.py": "",
    "actors/kit/__init__.py": "",
    "actors/kit/actor.py": "import pykka\nfrom ...messages.base import Message",
    "actors/a/__init__.py": "",
    "actors/a/actor.py": "from ...messages import base\nfrom ..kit.actor import Actor\nfrom .private import x",
    "actors/a/private.py": "from ...postgres.conf import render",
    "actors/b/__init__.py": "",
    "actors/b/actor.py": "from ..kit import actor",
    "actors/system.py": "from .a.actor import A\nfrom .b import actor\nfrom ..http.app import app",
    "process/__init__.py": "",
    "process/node.py": "from ..actors.system import System",
    "cli/__init__.py": "",
    "cli/main.py": "from .. import __version__\nfrom ..process import node",
    "tests/unit/test_x.py": "import time\ntime.sleep(1)\nfrom compute_node.actors.a import actor",
    ".venv/lib/pykka.py": "import os\nos.waitpid(-1, 0)",
}


def planted(folder: Path, **changes: str) -> Path:
    """Build the small house, with some of its modules changed (`__` for `/`)."""
    files = HOUSE | {
        name.replace("__init__", "@").replace("__", "/").replace("@", "__init__") + ".py": text
        for name, text in changes.items()
    }
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_house_in_order_breaks_no_rule(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert check(planted(tmp_path)) == []


@pytest.mark.parametrize(
    ("check", "where", "text", "breach"),
    [
        (import_breaches, "actors__a__actor", "from ..b.actor import B", "actors/a must not import actors/b"),
        (import_breaches, "actors__a__actor", "from ..b import actor", "actors/a must not import actors/b"),
        (import_breaches, "actors__a__actor", "from .. import b", "actors/a must not import actors/b"),
        (
            import_breaches,
            "actors__a__actor",
            "from ..system import x",
            "actors/a must not import actors/system.py",
        ),
        (import_breaches, "actors__a__actor", "from ...http.app import x", "actors/a must not import http"),
        (import_breaches, "actors__a__actor", "from ...cli.main import x", "actors/a must not import cli"),
        (
            import_breaches,
            "actors__a__deep__x",
            "from ...b.actor import B",
            "actors/a must not import actors/b",
        ),
        (
            import_breaches,
            "actors__a__actor",
            "def late():\n    from ..b.actor import B",
            "actors/a must not import actors/b",
        ),
        (
            import_breaches,
            "actors__a__actor",
            "if TYPE_CHECKING:\n    from ..b.actor import B",
            "actors/a must not import actors/b",
        ),
        (
            import_breaches,
            "actors__kit__actor",
            "from ...postgres.conf import x",
            "actors/kit must not import postgres",
        ),
        (
            import_breaches,
            "actors__kit__actor",
            "from ..a.actor import A",
            "actors/kit must not import actors/a",
        ),
        (import_breaches, "http__app", "from ..actors.a.actor import A", "http must not import actors/a"),
        (
            import_breaches,
            "http__app",
            "from ..actors.kit.actor import Ref",
            "http must not import actors/kit",
        ),
        (
            import_breaches,
            "http__routes__status",
            "from ...postgres.conf import x",
            "http must not import postgres",
        ),
        (
            import_breaches,
            "messages__base",
            "from ..postgres.conf import x",
            "messages must not import postgres",
        ),
        (
            import_breaches,
            "messages__base",
            "from .. import actors",
            "messages must not import actors/__init__.py",
        ),
        (
            import_breaches,
            "postgres__conf",
            "from ..actors.kit.actor import x",
            "postgres must not import actors/kit",
        ),
        (import_breaches, "process__node", "from ..cli.main import x", "process must not import cli"),
        (import_breaches, "postgres__conf", "from compute_node.messages.base import Message", "are relative"),
        (import_breaches, "postgres__conf", "import compute_node.messages.base", "are relative"),
        (shadow_breaches, "http____init__", "", "http at the root hides the standard library's"),
        (shadow_breaches, "queue____init__", "", "queue at the root hides"),
        (shadow_breaches, "types", "", "types.py at the root hides"),
        (time_breaches, "actors__a__actor", "import time\ntime.sleep(1)", "nobody sleeps"),
        (time_breaches, "actors__a__actor", "from time import monotonic, sleep", "nobody sleeps"),
        (time_breaches, "actors__a__actor", "import time\nnap = time.sleep", "nobody sleeps"),
        (time_breaches, "http__app", "import datetime\ndatetime.datetime.now()", "time comes from the kit"),
        (
            time_breaches,
            "http__app",
            "from datetime import datetime\ndatetime.now(UTC)",
            "time comes from the kit",
        ),
        (time_breaches, "actors__a__actor", "import time\ntime.time()", "the wall clock comes from the kit"),
        (time_breaches, "http__app", "from time import time", "the wall clock comes from the kit"),
        (process_breaches, "process__node", "Popen(a, preexec_fn=os.setsid)", "no preexec_fn"),
        (process_breaches, "process__node", "import multiprocessing", "never a fork beside threads"),
        (
            process_breaches,
            "cli__main",
            "from concurrent.futures import ProcessPoolExecutor",
            "never a fork beside threads",
        ),
        (process_breaches, "actors__a__actor", "import os\nos.fork()", "never a fork beside threads"),
        (process_breaches, "process__node", "os.waitpid(-1, os.WNOHANG)", "any child"),
        (process_breaches, "process__init", "Popen(a, preexec_fn=os.setsid)", "no preexec_fn"),
        (process_breaches, "process__node", "os.fork()", "never a fork beside threads"),
        (process_breaches, "process__deep__init", "os.waitpid(-1, os.WNOHANG)", "any child"),
        (process_breaches, "process__node", "from os import waitpid\nwaitpid(-1, 0)", "any child"),
        (process_breaches, "process__node", "os.waitid(os.P_ALL, 0, os.WEXITED)", "any child"),
        (process_breaches, "process__node", "os.wait()", "any child"),
        (actor_breaches, "actors__a__actor", "self.other.ask(x, 1)", "actors only tell"),
        (actor_breaches, "actors__a__private", "f(refs['b']).ask(x, 1)", "actors only tell"),
        (actor_breaches, "actors__a__actor", "ref.proxy()", "no proxies"),
        (actor_breaches, "http__app", "import pykka", "only the kit knows Pykka"),
        (actor_breaches, "process__node", "from pykka import ActorRegistry", "only the kit knows Pykka"),
        (sql_breaches, "actors__a__actor", "cursor.execute(f'DROP ROLE {name}')", "SQL is composed"),
        (sql_breaches, "actors__a__actor", "await c.execute('DROP ROLE %s' % name)", "SQL is composed"),
        (sql_breaches, "actors__a__actor", "cursor.execute('DROP ROLE ' + name)", "SQL is composed"),
        (sql_breaches, "actors__a__actor", "cursor.execute('DROP ROLE {}'.format(name))", "SQL is composed"),
        (sql_breaches, "actors__a__actor", "sql.SQL(f'DROP ROLE {name}')", "SQL is composed"),
    ],
)
def test_a_broken_rule_is_found(
    check: Callable[[Path], list[str]], where: str, text: str, breach: str, tmp_path: Path
) -> None:
    breaches = check(planted(tmp_path, **{where: text}))
    assert len(breaches) == 1
    assert breach in breaches[0]


def test_a_new_room_needs_a_rule(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="attic is a new room: give it a rule"):
        import_breaches(planted(tmp_path, attic__x="from ..messages.base import Message"))


def test_the_init_alone_may_wait_for_any_child(tmp_path: Path) -> None:
    text = "import os\nos.fork()\nos.waitpid(-1, os.WNOHANG)"
    assert process_breaches(planted(tmp_path, process__init=text)) == []


def test_the_init_and_the_signals_are_of_the_standard_library_alone() -> None:
    for name in ("init", "signals"):
        tree = ast.parse((ROOT / "process" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else ["." * node.level + (node.module or "")]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "text", ["cursor.execute('SELECT 1')", "cursor.execute(sql.SQL('x {}').format(a))", "c.execute(q)"]
)
def test_composed_sql_is_no_breach(text: str, tmp_path: Path) -> None:
    assert sql_breaches(planted(tmp_path, actors__a__actor=text)) == []


HEAVY = ("falcon", "waitress", "jwt", "prometheus_client", "psycopg", "psutil", "asyncio", "click")


@pytest.mark.slow
def test_importing_the_actors_loads_nothing_heavy() -> None:
    modules = [
        ".".join((PACKAGE, *path.with_suffix("").parts))
        for path, _ in sources(ROOT)
        if path.parts[0] == "messages" or (path.parts[0] == "actors" and path.name == "actor.py")
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(set(HEAVY) & set(done.stdout.split())) == []
