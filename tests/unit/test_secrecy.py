"""The search for secrets finds what is planted; see fix_secrets.py. The real thing: integration/test_secrets.py."""

import subprocess
from pathlib import Path

import psutil
import pytest

from doubles.canaries import canary
from doubles.tokens import KEY, OWN
from fix_postgres import wait_until
from fix_secrets import Secrecy


@pytest.mark.parametrize(
    "where", ["a log line", "the journal", "a metric's label", "an error body", "a header"]
)
@pytest.mark.parametrize("form", ["{}", '{{"error": "\\"{}\\""}}', "postgresql%3A%2F%2Fu%3A{}%40h"])
def test_a_secret_in_a_text_is_found(where: str, form: str) -> None:
    secrecy = Secrecy()
    secrecy.look(where, "harmless")
    secrecy.judge()
    secrecy.look(where, form.format(canary("planted")))
    with pytest.raises(AssertionError, match=f"a secret leaks into {where}"):
        secrecy.judge()


def test_a_token_is_found_by_its_signature() -> None:
    signature = KEY.sign(OWN).rpartition(".")[2]
    secrecy = Secrecy()
    secrecy.also(signature)
    secrecy.look("a log line", f"header: Bearer x.y.{signature}")
    assert len(secrecy.leaks) == 1


@pytest.mark.parametrize("what", ["cmdline", "environ"])
def test_a_secret_in_arguments_or_environment_of_a_process_is_found(what: str) -> None:
    secrecy = Secrecy()
    arguments = [canary("argument")] if what == "cmdline" else []
    env = {"LEAK": canary("variable")} if what == "environ" else {}
    with subprocess.Popen(["/bin/sh", "-c", "read x", *arguments], env=env, stdin=subprocess.PIPE) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"/bin/sh"), "exec")
        secrecy.look_at_processes([psutil.Process(process.pid)])
        assert process.stdin is not None
        process.stdin.close()
    with pytest.raises(AssertionError, match=f"{what} of process"):
        secrecy.judge()


@pytest.mark.parametrize("name", ["postmaster.opts", "pg_hba.conf", "log/postgresql.csv"])
def test_a_secret_in_a_file_beside_the_data_is_found(name: str, tmp_path: Path) -> None:
    secrecy = Secrecy()
    (tmp_path / "log").mkdir()
    (tmp_path / "postgresql.conf").write_text(canary("setting"))
    (tmp_path / "postgresql.conf").chmod(0o600)
    secrecy.look_at_pgdata(tmp_path)
    assert secrecy.leaks == [], "there it belongs"
    (tmp_path / name).write_text(canary("file"))
    secrecy.look_at_pgdata(tmp_path)
    with pytest.raises(AssertionError, match=name):
        secrecy.judge()


def test_a_configuration_file_that_others_may_read_is_found(tmp_path: Path) -> None:
    secrecy = Secrecy()
    (tmp_path / "postgresql.conf").write_text(canary("setting"))
    (tmp_path / "postgresql.conf").chmod(0o640)
    secrecy.look_at_pgdata(tmp_path)
    with pytest.raises(AssertionError, match="open to others"):
        secrecy.judge()
