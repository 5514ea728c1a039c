"""Keys and tokens for people without a control plane."""

import hashlib
import os
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import msgspec


def generate(private_key_path: Path) -> dict[str, Any]:
    """Write a new Ed25519 private key (PEM, mode 0600, never over an existing file); return the public key set.

    The set goes under `compute_ctl_config.jwks` of a config. Raises FileExistsError, OSError.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(private_key_path, pem)
    return key_set(private_key_path)


def key_set(private_key_path: Path) -> dict[str, Any]:
    """Return the public key set of a private key, as neon_local writes it. Raises OSError, ValueError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = _load(private_key_path).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = {
        "use": "sig",
        "key_ops": ["verify"],
        "alg": "EdDSA",
        "kid": _base64url(hashlib.sha256(raw).digest()),
        "kty": "OKP",
        "crv": "Ed25519",
        "x": _base64url(raw),
    }
    return {"keys": [key]}


def make_token(private_key_path: Path, *, compute_id: str | None, valid_s: float) -> str:
    """Make a token for one node, or with no compute id for every node that trusts the key.

    Raises OSError, ValueError for a key that cannot be used.
    """
    import jwt

    claims: dict[str, Any] = {"exp": int(time.time() + valid_s)}
    claims |= (
        {"scope": "compute_ctl:admin", "aud": ["compute"]}
        if compute_id is None
        else {"compute_id": compute_id}
    )
    kid = key_set(private_key_path)["keys"][0]["kid"]
    return jwt.encode(claims, _load(private_key_path), algorithm="EdDSA", headers={"kid": kid})


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read. Raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def with_key_set(config: bytes, keys: dict[str, Any]) -> bytes:
    """Put a key set into a config document, keeping all else of it. Raises msgspec.DecodeError, ValueError."""
    document = msgspec.json.decode(config)
    if not isinstance(document, dict):
        msg = "a config is a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - for the caller this is bad content, like the decode error
    inner = document.setdefault("compute_ctl_config", {})
    if not isinstance(inner, dict):
        msg = "`compute_ctl_config` of a config is a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - as above
    inner["jwks"] = keys
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _load(path: Path) -> Any:  # noqa: ANN401 - one of cryptography's many key types
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path} is no private key as `compute-node keygen` makes them (Ed25519, PEM, no passphrase)"
        raise ValueError(msg)  # noqa: TRY004 - bad content of a file, not a wrong argument
    return key


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
