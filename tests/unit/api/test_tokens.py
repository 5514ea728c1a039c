"""Section 3 of the HTTP API: who may call what."""

import json
import logging
from typing import Any

import jwt
import pytest
from compute_node.http import auth
from compute_node.http.app import EXTERNAL, create_external_app
from compute_node.http.auth import Claims, refusal
from compute_node.http.errors import ApiError
from compute_node.http.table import Scope
from compute_node.messages.lifecycle import GetReadiness, GetStatus, Readiness
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from doubles.node import RUNNING, Client, StubSupervisor, node
from doubles.tokens import ADMIN, COMPUTE_ID, FOREIGN, KEY, NOW_S, OWN, Key, hmac_signed, part, unsigned

NOT_VERIFIED = (401, "failed to verify authorization token")
PUBLIC = {"/metrics", "/live", "/ready", "/openapi.json"}


def _status(client: Client, **request: Any) -> tuple[int, str | None]:
    result = client("GET", "/status", **request)
    return result.status_code, result.json["error"] if result.status_code != 200 else None


# --- The decision


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (Claims(scope="compute_ctl:admin"), (401, "missing audience in authorization token claims")),
        (Claims(scope="compute_ctl:admin", aud=()), (401, "invalid audience in authorization token claims")),
        (
            Claims(scope="compute_ctl:admin", aud=("other",), compute_id=COMPUTE_ID),
            (401, "invalid audience in authorization token claims"),
        ),
        (Claims(), (403, "missing compute_id in authorization token claims")),
        (Claims(aud=("compute",)), (403, "missing compute_id in authorization token claims")),
        (Claims(compute_id="other"), (403, "invalid compute ID in authorization token claims")),
        (Claims(compute_id=""), (403, "invalid compute ID in authorization token claims")),
        (Claims(compute_id=COMPUTE_ID), None),
        (Claims(compute_id=COMPUTE_ID, aud=("other",)), None),
        (Claims(scope="compute_ctl:admin", aud=("x", "compute")), None),
        (Claims(scope="compute_ctl:admin", aud=("compute",), compute_id="other"), None),
    ],
)
def test_claims_are_judged_by_the_table(claims: Claims, expected: tuple[int, str] | None) -> None:
    assert refusal(claims, COMPUTE_ID) == expected


# --- Row 1: the header


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "token", "Bearer a b", "Bearer a, Bearer b"],
)
def test_a_missing_or_malformed_header_is_400(client: Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    assert _status(client, token="", headers=headers) == (400, "invalid authorization token")


def test_the_scheme_is_matched_without_case(client: Client) -> None:
    assert _status(client, token="", headers={"Authorization": f"bearer {KEY.sign(OWN)}"}) == (200, None)


# --- Row 2: forged, foreign and broken tokens


def _tampered() -> str:
    head, _, signature = KEY.sign({"compute_id": "other"}).split(".")
    return f"{head}.{part(json.dumps(OWN).encode())}.{signature}"


def _rs256() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(ADMIN, key, algorithm="RS256")


def _es256() -> str:
    return jwt.encode(ADMIN, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")


def _key_in_header() -> str:
    return FOREIGN.sign(ADMIN, headers={"jwk": FOREIGN.jwk, "kid": "first"})


FORGED = {
    "expired": KEY.sign({**OWN, "exp": NOW_S - 61}),
    "expired admin": KEY.sign({**ADMIN, "exp": int(NOW_S) - 61}),
    "foreign key": FOREIGN.sign(OWN),
    "foreign key that it brings along": _key_in_header(),
    "HS256 with the raw public key": hmac_signed(KEY.raw_public),
    "HS256 with the PEM public key": hmac_signed(KEY.pem_public),
    "HS256 with the text of x": hmac_signed(KEY.jwk["x"].encode()),
    "HS256 with the JWK": hmac_signed(json.dumps(KEY.jwk).encode()),
    "HS256 with nothing": hmac_signed(b""),
    "EdDSA that is an HMAC": hmac_signed(KEY.raw_public, alg="EdDSA"),
    "none": unsigned({"typ": "JWT", "alg": "none"}, ADMIN) + ".",
    "none with a signature": unsigned({"alg": "none"}, ADMIN) + "." + KEY.sign(ADMIN).rsplit(".", 1)[1],
    "None": unsigned({"alg": "None"}, ADMIN) + ".",
    "no algorithm": unsigned({"typ": "JWT"}, ADMIN) + ".",
    "EdDSA without a signature": unsigned({"alg": "EdDSA"}, ADMIN) + ".",
    "two parts": unsigned({"alg": "EdDSA"}, ADMIN),
    "RS256": _rs256(),
    "ES256": _es256(),
    "tampered claims": _tampered(),
    "another case of the algorithm": unsigned({"alg": "EDDSA"}, ADMIN)
    + "."
    + KEY.sign(ADMIN).rsplit(".", 1)[1],
    "garbage": "garbage",
    "dots": "..",
    "three words": "not.a.token",
    "a header that is a list": part(b"[]") + ".e30." + part(b"x" * 64),
    "a deep header": part(b"[" * 20_000) + ".e30." + part(b"x" * 64),
    "a critical extension": KEY.sign(ADMIN, headers={"crit": ["exp"], "exp": 1}),
    "claims that are no JSON": KEY.sign(b"\xff\xfe"),
    "claims that are a list": KEY.sign([]),
    "deep claims": KEY.sign(b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    "an audience that is a text": KEY.sign({**ADMIN, "aud": "compute"}),
    "a scope nobody knows": KEY.sign({**OWN, "scope": "compute_ctl:everything"}),
    "a scope that is a list": KEY.sign({**ADMIN, "scope": ["compute_ctl:admin"]}),
    "a compute id that is a number": KEY.sign({"compute_id": 7}),
    "an expiry that is a text": KEY.sign({**OWN, "exp": str(int(NOW_S) + 60)}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_broken_token_is_401(client: Client, name: str) -> None:
    assert _status(client, token=FORGED[name]) == NOT_VERIFIED


@pytest.mark.parametrize("name", FORGED)
def test_neither_the_answer_nor_the_log_repeats_a_refused_token(
    client: Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        result = client("GET", "/status", token=FORGED[name])
    for piece in FORGED[name].split("."):
        assert len(piece) < 8 or piece not in result.text + caplog.text


def test_why_a_token_was_refused_is_logged_by_key_id(
    supervisor: StubSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(create_external_app(node(supervisor, keys=(KEY.jwk, Key(2).jwk))))
    client("GET", "/status", token=FOREIGN.sign(OWN))
    assert "key 'first': InvalidSignatureError, key '#1': InvalidSignatureError" in caplog.text


# --- Row 7: what passes


@pytest.mark.parametrize(
    "claims",
    [
        OWN,
        ADMIN,
        {**ADMIN, "compute_id": "another"},
        {**OWN, "scope": None, "aud": None, "exp": None},
        {**OWN, "exp": NOW_S + 1},
        {**OWN, "exp": int(NOW_S) - 59},
        {**OWN, "exp": NOW_S - 60},
        {**OWN, "nbf": NOW_S + 10_000, "iss": 5, "sub": None, "iat": "later", "else": [1]},
    ],
)
def test_a_good_token_opens_every_route(client: Client, claims: dict[str, Any]) -> None:
    assert _status(client, token=KEY.sign(claims)) == (200, None)


@pytest.mark.parametrize("claims", [{}, {"compute_id": None}, {"compute_id": "ep-other"}])
def test_a_token_for_another_compute_is_403(client: Client, claims: dict[str, Any]) -> None:
    assert _status(client, token=KEY.sign(claims))[0] == 403


def test_an_admin_token_without_its_audience_is_401(client: Client) -> None:
    missing, wrong = ({"scope": "compute_ctl:admin"}, {**ADMIN, "aud": ["computes"]})
    assert _status(client, token=KEY.sign(missing)) == (401, "missing audience in authorization token claims")
    assert _status(client, token=KEY.sign(wrong)) == (401, "invalid audience in authorization token claims")


# --- Keys


def test_all_keys_are_tried_in_order_whatever_the_key_id_says(supervisor: StubSupervisor) -> None:
    second = Key(2, kid="second")
    client = Client(create_external_app(node(supervisor, keys=(Key(1).jwk, second.jwk))))
    assert _status(client, token=second.sign(OWN)) == (200, None)
    assert _status(client, token=second.sign(OWN, headers={"kid": "nobody"})) == (200, None)
    assert _status(client, token=KEY.sign(OWN, headers={"kid": "second"})) == (200, None)


def _rsa_jwk() -> dict[str, Any]:
    public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return dict(jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True))


UNUSABLE: dict[str, dict[str, Any]] = {
    "RSA": _rsa_jwk(),
    "oct": {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    "Ed448": {"kty": "OKP", "crv": "Ed448", "x": "AAAA"},
    "X25519": {"kty": "OKP", "crv": "X25519", "x": KEY.jwk["x"]},
    "empty": {},
    "bad x": {"kty": "OKP", "crv": "Ed25519", "x": "not base64 !"},
    "short x": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
    "no x": {"kty": "OKP", "crv": "Ed25519"},
    "x of another type": {"kty": "OKP", "crv": "Ed25519", "x": 5},
    "another algorithm": {**KEY.jwk, "alg": "HS256"},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_keys_of_other_types_are_skipped_with_a_warning(
    supervisor: StubSupervisor, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(create_external_app(node(supervisor, keys=(UNUSABLE[name], Key(2).jwk))))
    assert "of the key set is skipped: " in caplog.text
    assert _status(client, token=Key(2).sign(OWN)) == (200, None)
    assert _status(client, token=KEY.sign(OWN)) == NOT_VERIFIED


def test_a_private_key_in_the_key_set_verifies_and_is_reported(
    supervisor: StubSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    private = jwt.algorithms.OKPAlgorithm.to_jwk(KEY.private, as_dict=True)
    client = Client(create_external_app(node(supervisor, keys=(dict(private),))))
    assert _status(client) == (200, None)
    assert "private part" in caplog.text
    assert private["d"] not in caplog.text


@pytest.mark.parametrize("keys", [(), (UNUSABLE["RSA"],)])
def test_without_a_usable_key_every_route_that_needs_a_token_answers_401(
    supervisor: StubSupervisor, keys: tuple[dict[str, Any], ...]
) -> None:
    client = Client(create_external_app(node(supervisor, keys=keys)))
    for route in client.app.routes:
        if route.scope is Scope.TOKEN:
            assert client(route.method, route.path).status_code == 401


def test_the_open_api_of_a_dev_node_asks_for_no_token(supervisor: StubSupervisor) -> None:
    client = Client(create_external_app(node(supervisor, keys=(), required=False)), token="")
    assert _status(client) == (200, None)


# --- Deny by default


def test_only_these_routes_are_public() -> None:
    assert {route.path for route in EXTERNAL if route.scope is Scope.PUBLIC} == PUBLIC


def test_no_route_opens_without_a_token_by_any_method_or_spelling(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[GetReadiness] = Readiness(ready=True, conditions=())
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    spellings = ("{}", "{}/", "{}//", "//{}", "/.{}", "{}/.", "{};x", "{}%00", "{}%2f", "{}?x=1", "{}#x")
    for route in client.app.routes:
        for spelling in spellings:
            for method in methods:
                target = spelling.format(route.path)
                result = client(method, target, token="")
                opened = result.status_code < 400
                assert not opened or route.path in PUBLIC, (method, target)
    assert {type(request) for request, _ in supervisor.asked} <= {GetReadiness}


# --- Remembered tokens


def test_a_verified_token_is_not_verified_again_and_still_expires(
    supervisor: StubSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW_S]
    client = Client(create_external_app(node(supervisor, wall=lambda: now[0])))
    token = KEY.sign({**OWN, "exp": NOW_S})
    verifications = []
    decode = jwt.PyJWS.decode

    def counted(self: jwt.PyJWS, *args: Any, **kwargs: Any) -> Any:
        verifications.append(1)
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(jwt.PyJWS, "decode", counted)
    for _ in range(3):
        assert _status(client, token=token) == (200, None)
    assert len(verifications) == 1
    now[0] += 61
    assert _status(client, token=token) == NOT_VERIFIED
    now[0] -= 61
    assert _status(client, token=token) == (200, None)
    assert len(verifications) == 2


def test_only_so_many_verified_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_VERIFIED", 3)
    supervisor = StubSupervisor()
    supervisor.answers[GetStatus] = RUNNING
    judge = auth.Authenticator(node(supervisor).auth, lambda: NOW_S)
    for number in range(10):
        judge.check(f"Bearer {KEY.sign({**OWN, 'n': number})}")
    assert len(judge._verified) == 3


def test_a_refused_token_is_never_remembered() -> None:
    judge = auth.Authenticator(node(StubSupervisor()).auth, lambda: NOW_S)
    for token in FORGED.values():
        with pytest.raises(ApiError):
            judge.check(f"Bearer {token}")
    assert len(judge._verified) == 0
