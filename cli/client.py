"""A small client of the node's own API, for the command line."""

import http.client
import urllib.error
import urllib.request
from typing import Any, Final

import msgspec

from ..messages.secret import mask_credentials

DEFAULT_URL: Final = "http://127.0.0.1:3080"
TIMEOUT_S: Final = 10.0
WAIT_S: Final = 620.0
"""For the routes that wait: a little more than the node itself lets them wait."""


class UnreachableError(Exception):
    """There is no node at that address, or it does not answer."""


class RefusedError(Exception):
    """The node answered, and said no."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the node refused ({status}): {reason}")
        self.status = status


class Client:
    """Calls one node; `token` goes with every request."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._shown = mask_credentials(self._url)
        self._token = token
        self.pending_restart: str | None = None

    def get(self, path: str, *, also: tuple[int, ...] = ()) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a GET; statuses in `also` count as answers. Raises RefusedError, UnreachableError."""
        return self._call("GET", path, None, TIMEOUT_S, also)

    def post(self, path: str, body: bytes | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a POST that may take long; `pending_restart` then holds what it awaits.

        Raises RefusedError, UnreachableError.
        """
        return self._call("POST", path, body or b"", WAIT_S, ())

    def delete(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a DELETE. Raises RefusedError, UnreachableError."""
        return self._call("DELETE", path, None, TIMEOUT_S, ())

    def _call(
        self, method: str, path: str, body: bytes | None, timeout_s: float, also: tuple[int, ...]
    ) -> Any:  # noqa: ANN401 - JSON
        if not self._url.startswith(("http://", "https://")):
            msg = f"{self._shown} is not the address of a node; give one such as {DEFAULT_URL} by --url"
            raise UnreachableError(msg)
        request = urllib.request.Request(self._url + path, data=body, method=method)  # noqa: S310 - http(s) only
        if body:
            request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 - http(s) only
                data = response.read()
                self.pending_restart = response.headers.get("X-Pending-Restart")
        except urllib.error.HTTPError as error:
            with error:
                data = error.read()
            if error.code not in also:
                raise RefusedError(error.code, _reason(error.code, data)) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            msg = f"no node answers at {self._shown} ({cause}); is it running, and is --url right?"
            raise UnreachableError(msg) from None
        try:
            return msgspec.json.decode(data) if data else None
        except msgspec.DecodeError:
            msg = f"what answers at {self._shown} is not a compute node"
            raise UnreachableError(msg) from None


def _reason(status: int, data: bytes) -> str:
    try:
        reason = msgspec.json.decode(data)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        reason = "no reason given" if not data else data[:200].decode(errors="replace")
    hint = {
        400: "; give a token by --token-file or COMPUTE_NODE_TOKEN" if "authorization" in str(reason) else "",
        401: "; is the token made with the key of this node's config, and not expired?",
        403: "; the token is for another node: make one for this compute id, or one with --admin",
    }.get(status, "")
    return f"{reason}{hint}"
