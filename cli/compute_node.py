"""The command for people: `compute-node demo | status | plan | configure | terminate | prewarm | offload | validate | …`."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec

import click
import msgspec

from .. import __version__
from . import keys
from .client import DEFAULT_URL, Client, RefusedError, UnreachableError

EXIT_REFUSED: Final = 1
EXIT_CHANGES: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_BAD_FILE: Final = 5
DAY_S: Final = 86_400.0

P = ParamSpec("P")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COMPUTE_NODE"})
@click.version_option(__version__, prog_name="compute-node")
def main() -> None:
    """Work with compute nodes: run one to try it, look at one, change one, end one.

    Exit status: 0 fine, 1 refused, failed or not ready, 2 usage, 3 there are changes (plan), 4 unreachable,
    5 a file that cannot be read or is not JSON.
    """


def _talks_to_a_node(command: Callable[P, None]) -> Callable[P, None]:
    """Add the options that find the node, and turn its refusals into exit codes."""

    @click.option(
        "--url", default=DEFAULT_URL, show_default=True, envvar="COMPUTE_NODE_URL", help="The node's API."
    )
    @click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File that holds the token.  [env var: COMPUTE_NODE_TOKEN for the token itself]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UnreachableError as error:
            _fail(str(error), EXIT_UNREACHABLE)
        except RefusedError as error:
            _fail(str(error), EXIT_REFUSED)

    return guarded


def _client(url: str, token_file: Path | None) -> Client:
    import os

    token = os.environ.get("COMPUTE_NODE_TOKEN")
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8").strip()
    return Client(url, token)


@main.command()
@_talks_to_a_node
def status(url: str, token_file: Path | None, *, as_json: bool) -> None:
    """Show the node's status, and what keeps it from being ready (then the exit status is 1)."""
    client = _client(url, token_file)
    shown = client.get("/status")
    ready = client.get("/ready", also=(503,))
    if as_json:
        click.echo(_json(shown | {"ready": ready}))
    else:
        _table(shown | {"ready": "yes" if ready["ready"] else _conditions(ready["conditions"])})
    if not ready["ready"]:
        sys.exit(EXIT_REFUSED)


@main.command()
@click.argument("file")
@_talks_to_a_node
def configure(file: str, url: str, token_file: Path | None, *, as_json: bool) -> None:
    """Bring the spec in FILE into force, a config or a bare spec ("-": standard input); wait until it is."""
    document = _document(file)
    client = _client(url, token_file)
    shown = client.post("/configure", document)
    if as_json:
        click.echo(_json(shown))
    else:
        click.echo("configured")
        _table(shown)
    if client.pending_restart:
        click.echo(
            f"these settings take effect at the next start of the node: {client.pending_restart}", err=True
        )


@main.command()
@click.argument("file")
@_talks_to_a_node
def plan(file: str, url: str, token_file: Path | None, *, as_json: bool) -> None:
    """Show what `configure FILE` would change, and change nothing.

    The exit status is 0 without changes, 3 with some, and 1 where the node would refuse a part of the spec.
    """
    from . import planning

    document = _document(file)
    shown = _client(url, token_file).post("/plan", document)
    if as_json:
        click.echo(_json(shown))
    else:
        for warning in shown["warnings"]:
            click.echo(f"warning: {warning}", err=True)
        click.echo(planning.text(shown))
    if shown["refused"]:
        sys.exit(EXIT_REFUSED)
    if shown["changes"]:
        sys.exit(EXIT_CHANGES)


@main.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(file: str, *, as_json: bool) -> None:
    """Check FILE, a config or a bare spec ("-": standard input), without a node.

    Strictly: also fields that a node would ignore are problems, and then the exit status is 1.
    """
    from .documents import NotJsonError
    from .validating import validate as judge

    try:
        verdict = judge(_read(file))
    except NotJsonError as error:
        _fail(f"{_named(file)} is not JSON: {error}", EXIT_BAD_FILE)
    if as_json:
        click.echo(_json(verdict))
    else:
        count = len(verdict.problems)
        said = "is valid" if verdict.valid else f"has {count} problem{'' if count == 1 else 's'}"
        click.echo(f"{_named(file)} {said}")
        for kind, findings in (("", verdict.problems), ("warning: ", verdict.warnings)):
            for finding in findings:
                click.echo(f"  {kind}{finding.path}: {finding.text}")
    if not verdict.valid:
        sys.exit(EXIT_REFUSED)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    from .schema import config_schema

    click.echo(_json(config_schema()))


@main.command()
@click.option(
    "--mode",
    type=click.Choice(["fast", "immediate"]),
    default="immediate",
    show_default=True,
    help="fast: the node's API stays for 30 s; immediate: it goes at once. Postgres is stopped alike.",
)
@_talks_to_a_node
def terminate(mode: str, url: str, token_file: Path | None, *, as_json: bool) -> None:
    """Stop Postgres and end the node; wait until Postgres is gone."""
    answer = _client(url, token_file).post(f"/terminate?mode={mode}")
    click.echo(
        _json(answer) if as_json else f"terminated (LSN {answer['lsn']})" if answer["lsn"] else "terminated"
    )


@main.command()
@click.option("--from-endpoint", metavar="ID", help="Take the state of another endpoint, or node.")
@click.option("--cancel", is_flag=True, help="End the prewarm that is under way.")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@_talks_to_a_node
def prewarm(
    url: str,
    token_file: Path | None,
    *,
    from_endpoint: str | None,
    cancel: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Warm the node's cache from its saved state; wait until it is done (exit status 1: it is not)."""
    from . import caching

    if cancel and (from_endpoint is not None or no_wait):
        msg = "--cancel goes with none of the others"
        raise click.UsageError(msg)
    client = _client(url, token_file)
    if cancel:
        shown = caching.cancel(client)
    else:
        shown = caching.prewarm(client, from_endpoint, wait=not no_wait, narrate=not as_json)
    _cache_shown(shown, caching.prewarm_text(shown), as_json=as_json, fine=cancel or caching.is_fine(shown))


@main.command()
@click.option(
    "--force", is_flag=True, help="Although the last prewarm is not complete: a good state may be lost."
)
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@_talks_to_a_node
def offload(url: str, token_file: Path | None, *, force: bool, no_wait: bool, as_json: bool) -> None:
    """Save the state of the node's cache; wait until it is done (exit status 1: it is not)."""
    from . import caching

    shown = caching.offload(_client(url, token_file), force=force, wait=not no_wait)
    _cache_shown(shown, caching.offload_text(shown), as_json=as_json, fine=caching.is_fine(shown))


@main.command()
@click.argument("private_key", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, writable=True, path_type=Path),
    help="Config file to put the key set into.",
)
def keygen(private_key: Path, config: Path | None) -> None:
    """Make a key pair: the private key into the new file PRIVATE_KEY, the key set onto standard output.

    The set belongs under `compute_ctl_config.jwks` of the config; `--config` puts it there.
    """
    try:
        if config is None:
            click.echo(_json(keys.generate(private_key)))
            return
        document = config.read_bytes()
        try:
            keys.with_key_set(document, {})  # a config that cannot take a key set gets no key either
        except (ValueError, msgspec.DecodeError) as error:
            _fail(f"{config} cannot take a key set: {error}; no keys were made", EXIT_REFUSED)
        config.write_bytes(keys.with_key_set(document, keys.generate(private_key)))
        click.echo(f"the private key is in {private_key}, the key set in {config}", err=True)
    except FileExistsError:
        _fail(f"{private_key} exists already; give the name of a new file", EXIT_REFUSED)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        _fail(f"no keys were made: {error}", EXIT_REFUSED)


@main.command()
@click.argument("private_key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--compute-id", help="The node that the token is for (its --compute-id).")
@click.option("--admin", is_flag=True, help="For every node that trusts the key.")
@click.option(
    "--valid-for",
    type=click.FloatRange(min=1),
    default=DAY_S,
    show_default=True,
    metavar="SECONDS",
    help="How long.",
)
def token(private_key: Path, compute_id: str | None, *, admin: bool, valid_for: float) -> None:
    """Make a token for the API with PRIVATE_KEY (of `keygen`) and print it."""
    if admin == (compute_id is not None):
        msg = "give either --compute-id or --admin"
        raise click.UsageError(msg)
    try:
        click.echo(keys.make_token(private_key, compute_id=compute_id, valid_s=valid_for))
    except (OSError, ValueError) as error:
        _fail(f"no token was made: {error}", EXIT_REFUSED)


@main.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the node lives, kept between runs.  [default: a folder of this user's]",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Postgres's port.  [default: 55432, or a free one]"
)
@click.option(
    "--http-port", type=click.IntRange(1, 65535), help="The API's port.  [default: 3080, or a free one]"
)
@click.option("--pgbin", help="The postgres program.  [default: an installed one, else the embedded one]")
@click.option("--fresh", is_flag=True, help="Start with an empty database again.")
def demo(
    directory: Path | None, port: int | None, http_port: int | None, pgbin: str | None, *, fresh: bool
) -> None:
    """Run a node from a sample spec, with nothing else needed, until Ctrl-C."""
    from .demo import Demo, DemoError

    try:
        code = Demo(directory, port=port, http_port=http_port, pgbin=pgbin, fresh=fresh).run()
    except DemoError as error:
        _fail(str(error), EXIT_REFUSED)
    sys.exit(code)


def _cache_shown(shown: dict[str, Any], text: str, *, as_json: bool, fine: bool) -> None:
    click.echo(_json(shown) if as_json else text)
    if not fine:
        sys.exit(EXIT_REFUSED)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        return Path(file).read_bytes()
    except OSError as error:
        _fail(f"cannot read {_named(file)}: {error.strerror or error}", EXIT_BAD_FILE)


def _document(file: str) -> bytes:
    """Return the body of a request with the config, or bare spec, of that file."""
    from .documents import NotJsonError, request

    try:
        return request(_read(file))
    except NotJsonError as error:
        _fail(f"{_named(file)} is not JSON: {error}", EXIT_BAD_FILE)


def _named(file: str) -> str:
    return "standard input" if file == "-" else file


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _table(rows: dict[str, Any]) -> None:
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        text = "-" if value is None else str(value)
        click.echo(f"{name:<{width}}{text}".replace("\n", "\n" + " " * width))


def _conditions(conditions: list[dict[str, str]]) -> str:
    texts = [
        c["condition"] + (f" ({c['detail']})" if c["detail"] and c["condition"] != "failed" else "")
        for c in conditions
    ]
    return "no: " + ", ".join(texts)
