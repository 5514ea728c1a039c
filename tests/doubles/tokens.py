"""Keys and tokens, good and forged. Everything is derived from a number, so that runs are alike."""

import base64
import hashlib
import hmac
import json
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

COMPUTE_ID: Final = "ep-cool-darkness-123456"
NOW_S: Final = 1_800_000_000.0
ADMIN: Final = {"scope": "compute_ctl:admin", "aud": ["compute"]}
OWN: Final = {"compute_id": COMPUTE_ID}


def part(data: bytes) -> str:
    """Write bytes as one part of a token."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Key:
    """A pair of keys and its public half as a JWK."""

    def __init__(self, number: int, kid: str | None = None) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.raw_public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.pem_public = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.jwk: dict[str, Any] = {"kty": "OKP", "crv": "Ed25519", "x": part(self.raw_public)}
        if kid is not None:
            self.jwk["kid"] = kid

    def sign(self, claims: object, headers: dict[str, Any] | None = None) -> str:
        """Make a token that says this."""
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        return jwt.PyJWS().encode(payload, self.private, algorithm="EdDSA", headers=headers)


KEY: Final = Key(1, "first")
FOREIGN: Final = Key(9)


def unsigned(header: object, claims: object) -> str:
    """Make the first two parts of a token."""
    return f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"


def hmac_signed(secret: bytes, alg: str = "HS256") -> str:
    """Make an admin token that is signed with a text that everybody knows."""
    body = unsigned({"typ": "JWT", "alg": alg}, ADMIN)
    return f"{body}.{part(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"
