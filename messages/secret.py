"""A value that must never be printed."""

from typing import Final, NoReturn, final

from typing_extensions import override

MASK: Final = "•••"


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
