"""Who may call: the decision over a token's claims, and the keys that vouch for them.

EdDSA (Ed25519) only, with key objects, never with raw key text. Refusals are logged by key id, and no part
of a token is ever kept or printed.
"""

import hashlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal

import jwt
import msgspec

from .errors import ApiError
from .port import AuthSettings

ALGORITHM: Final = "EdDSA"
AUDIENCE: Final = "compute"
LEEWAY_S: Final = 60
MAX_VERIFIED: Final = 1024
"""Verified tokens that are remembered."""

_BEARER: Final = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_KEY_ALGORITHMS: Final = frozenset({ALGORITHM, "Ed25519"})

BAD_HEADER: Final = "invalid authorization token"
NOT_VERIFIED: Final = "failed to verify authorization token"

log = logging.getLogger("compute_node.http")


class Claims(msgspec.Struct, frozen=True):
    """What a token says. Other claims (`nbf`, `iss`, `sub`, …) are not looked at."""

    compute_id: str | None = None
    scope: Literal["compute_ctl:admin"] | None = None
    aud: tuple[str, ...] | None = None
    exp: int | float | None = None
    """Seconds since the epoch."""


_claims_decoder: Final = msgspec.json.Decoder(Claims)


def refusal(claims: Claims, compute_id: str) -> tuple[int, str] | None:
    """Decide over verified claims: None lets the request pass, else its status and error text."""
    if claims.scope is not None:
        if claims.aud is None:
            return 401, "missing audience in authorization token claims"
        if AUDIENCE not in claims.aud:
            return 401, "invalid audience in authorization token claims"
        return None
    if claims.compute_id is None:
        return 403, "missing compute_id in authorization token claims"
    if claims.compute_id != compute_id:
        return 403, "invalid compute ID in authorization token claims"
    return None


def bearer(header: str | None) -> str | None:
    """Return the token of an `Authorization` header; None when it is missing or malformed."""
    match = _BEARER.fullmatch(header or "")
    return match[1] if match else None


def load_keys(keys: tuple[dict[str, Any], ...]) -> tuple[tuple[tuple[str, jwt.PyJWK], ...], tuple[str, ...]]:
    """Return the usable keys by key id (`#0` and so on where there is none), and why others are not."""
    usable: list[tuple[str, jwt.PyJWK]] = []
    warnings: list[str] = []
    for number, key in enumerate(keys):
        kid = key.get("kid")
        name = kid if isinstance(kid, str) else f"#{number}"
        if (reason := _unusable(key)) is not None:
            warnings.append(f"key {name!r} of the key set is skipped: {reason}")
            continue
        if "d" in key:
            warnings.append(f"key {name!r} of the key set holds its private part, which is not needed here")
        try:
            usable.append((name, jwt.PyJWK({**{k: v for k, v in key.items() if k != "d"}}, ALGORITHM)))
        except jwt.PyJWTError:
            warnings.append(f"key {name!r} of the key set is skipped: `x` is not an Ed25519 public key")
    return tuple(usable), tuple(warnings)


def _unusable(key: dict[str, Any]) -> str | None:
    if key.get("kty") != "OKP" or key.get("crv") != "Ed25519":
        return f"only kty OKP with crv Ed25519 is used, not {key.get('kty')!r} with {key.get('crv')!r}"
    if key.get("alg") not in {None, *_KEY_ALGORITHMS}:
        return f"it is for the algorithm {key.get('alg')!r}, and only {ALGORITHM} is used"
    return None


class _RefusedError(Exception):
    """A token was not verified; the text is for the log."""


class Authenticator:
    """Judges the `Authorization` header of requests. `wall` gives seconds since the epoch."""

    def __init__(self, settings: AuthSettings, wall: Callable[[], float]) -> None:
        self._settings = settings
        self._wall = wall
        self._keys, warnings = load_keys(settings.keys)
        self._jws = jwt.PyJWS()
        self._lock = threading.Lock()
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        for warning in warnings:
            log.warning("%s", warning)
        if settings.required and not self._keys:
            log.warning(
                "the key set holds no usable key: every request that needs a token will be refused; "
                "give `compute_ctl_config.jwks` a key (`compute-node keygen` makes one)"
            )

    def check(self, header: str | None) -> bool:
        """Let an authorized request pass; returns whether its token opens every node. Raises ApiError for any other."""
        if not self._settings.required:
            return False
        token = bearer(header)
        if token is None:
            raise ApiError(400, BAD_HEADER)
        try:
            claims = self._verify(token)
        except _RefusedError as error:
            log.warning("a token was refused: %s", error)
            raise ApiError(401, NOT_VERIFIED) from None
        if (refused := refusal(claims, self._settings.compute_id)) is not None:
            raise ApiError(*refused)
        return claims.scope is not None

    def opens(self, header: str | None) -> bool:
        """Whether `check` would let this request pass; nothing is logged."""
        if not self._settings.required:
            return True
        token = bearer(header)
        try:
            return token is not None and refusal(self._verify(token), self._settings.compute_id) is None
        except _RefusedError:
            return False

    def _verify(self, token: str) -> Claims:
        fingerprint = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(fingerprint)
        known = claims is not None
        if claims is None:
            claims = self._read(token)
        expired = claims.exp is not None and claims.exp < self._wall() - LEEWAY_S
        if known and not expired:
            return claims
        with self._lock:
            if expired:
                self._verified.pop(fingerprint, None)
            else:
                self._verified[fingerprint] = claims
                while len(self._verified) > MAX_VERIFIED:
                    self._verified.popitem(last=False)
        if expired:
            msg = "it has expired"
            raise _RefusedError(msg)
        return claims

    def _read(self, token: str) -> Claims:
        reasons = []
        for name, key in self._keys:
            try:
                payload = self._jws.decode(token, key, algorithms=[ALGORITHM])
            except jwt.PyJWTError as error:
                reasons.append(f"key {name!r}: {type(error).__name__}")
                continue
            try:
                return _claims_decoder.decode(payload)
            except (ValueError, RecursionError):
                msg = f"key {name!r} verifies it, but its claims do not parse"
                raise _RefusedError(msg) from None
        raise _RefusedError(", ".join(reasons) or "there is no usable key")
