"""A value that must never be printed."""

import re
from typing import Final, NoReturn, final

from typing_extensions import override

MASK: Final = "•••"

_SECRET_SETTING: Final = re.compile(
    r"pass(?:word|wd|phrase)|token|secret|credential|conninfo|connstr|dsn|api_?key", re.IGNORECASE
)
# Counted repetitions, so that no text, and users can write into the server log, costs more than its length.
_USERINFO: Final = re.compile(r"(?<=://)([^\s:/@]{0,256}):\S{0,1024}@")
_ASSIGNMENT: Final = re.compile(
    r"""((?<![\w.-])[\w.-]{0,64}(?:pass(?:word|wd|phrase)|secret|token|credential|key)[\w.-]{0,64}\s{0,8}=\s{0,8})"""
    r"""(?:'(?:[^'\\]|\\.|'')*'|"[^"]*"|[^\s'"]+)""",
    re.IGNORECASE,
)
_HARMLESS: Final = frozenset({"password_encryption", "ssl_passphrase_command_supports_reload"})


def is_secret_setting(name: str) -> bool:
    """Tell by its name whether the value of a setting is, or holds, a secret."""
    return _SECRET_SETTING.search(name) is not None and name.lower() not in _HARMLESS


def mask_credentials(text: str) -> str:
    """Mask passwords of URLs, and values that are assigned to what is called password, token, secret or key."""
    return _ASSIGNMENT.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1:{MASK}@", text))


@final
class Secret:
    """A text that shows as a mask everywhere but through `reveal`.

    Compares and hashes by its content, so that specs that hold one can be compared. Cannot be pickled.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; only for the line that hands it to its consumer."""
        return self._text

    @override
    def __repr__(self) -> str:
        return f"Secret({MASK})"

    @override
    def __str__(self) -> str:
        return MASK

    @override
    def __format__(self, format_spec: str) -> str:
        return format(MASK, format_spec)

    @override
    def __reduce__(self) -> NoReturn:
        msg = "a Secret is not written anywhere"
        raise TypeError(msg)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    @override
    def __hash__(self) -> int:
        return hash((Secret, self._text))
