"""Secrets to give to a node under test: all carry one marker, so that one search finds whichever of them leaks.

The marker is hexadecimal: it fits into digests, verifiers and tokens, and survives escaping for URL, JSON and SQL.
"""

import base64
import secrets
from typing import Any, Final

MARKER: Final = f"ca4a41{secrets.token_hex(8)}"
"""Of this run of the tests."""

_CONTEXT: Final = 60
"""Bytes that are shown before a find."""


def canary(place: str) -> str:
    """Make the secret of that place; letters and digits only."""
    return f"{MARKER}{place}"


def md5_digest() -> str:
    """Make the md5 digest of a password, as a spec has it."""
    return MARKER.ljust(32, "0")


def scram_verifier() -> str:
    """Make the SCRAM verifier of a password, as a spec has it."""
    key = f"{MARKER}{'A' * (43 - len(MARKER))}="
    return f"SCRAM-SHA-256$4096:{MARKER}AA${key}:{key}"


def roles() -> list[dict[str, Any]]:
    """Make roles with passwords of each kind."""
    return [
        {"name": "canary_md5", "encrypted_password": md5_digest()},
        {"name": "canary_scram", "encrypted_password": scram_verifier()},
    ]


def settings() -> list[dict[str, str]]:
    """Make settings whose values hold secrets, and that do nothing on a primary."""
    return [
        {"name": name, "value": value, "vartype": "string"}
        for name, value in (
            ("primary_conninfo", f"host=127.0.0.1 user=replica password={canary('conninfo')}"),
            ("archive_command", f"AWS_SECRET_ACCESS_KEY={canary('archive')} true"),
            ("ssl_passphrase_command", f"echo {canary('passphrase')}"),
            ("neon.console_token", canary("setting")),
        )
    ]


def fields() -> dict[str, Any]:
    """Make the secret fields of a spec that a plain node takes."""
    return {
        "storage_auth_token": canary("storage"),
        "endpoint_storage_addr": f"http://node:{canary('endpointaddr')}@127.0.0.1:9993",
        "endpoint_storage_token": canary("endpoint"),
        "pageserver_connstring": f"postgresql://node:{canary('pageserver')}@127.0.0.1:6400",
        "pgbouncer_settings": {"auth_password": canary("pgbouncer")},
    }


def keys() -> list[dict[str, str]]:
    """Make keys with private parts, which nobody should have put into a key set."""
    return [
        {"kid": "private", "kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "d": canary("d")},
        {"kid": "symmetric", "kty": "oct", "alg": "HS256", "k": canary("k")},
    ]


def environment() -> dict[str, str]:
    """Make variables with secrets, for the node and nobody else."""
    names = ("NEON_CONTROL_PLANE_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGBOUNCER_PASSWORD", "PGPASSWORD")
    return {name: canary(name.replace("_", "").lower()) for name in names}


def forged_tokens() -> tuple[str, ...]:
    """Make tokens that no node accepts: one that is none, and one with a strange signature."""
    parts = (b'{"alg":"EdDSA"}', f'{{"sub":"{canary("claim")}"}}'.encode(), canary("signature").encode())
    return (
        canary("bearer"),
        ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts),
    )


def _forms() -> tuple[bytes, ...]:
    plain = MARKER.encode()
    forms = {plain, plain.upper(), plain[::-1], plain.hex().encode()}
    for shift in range(3):  # where in a group of three bytes the marker begins
        coded = base64.b64encode(bytes(shift) + plain)
        whole = coded[-(-8 * shift // 6) : 8 * (shift + len(plain)) // 6]
        forms |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return tuple(forms)


_FORMS: Final = _forms()


def leak(data: bytes | str) -> str | None:
    """Return what surrounds the first canary in there, in whatever form; None when there is none."""
    text = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    for form in _FORMS:
        if (at := text.find(form)) >= 0:
            return text[max(0, at - _CONTEXT) : at + len(form) + 20].decode(errors="replace")
    return None
