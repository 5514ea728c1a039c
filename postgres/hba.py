"""The text of `pg_hba.conf`, as far as this program has a say in it."""

from typing import Final

MD5_LINE: Final = "host\tall\t\tall\t\tall\t\tmd5"
"""Everybody from everywhere, by password; it admits SCRAM verifiers too."""


def with_line(text: str, line: str) -> str:
    """Return the text with that exact line in it: appended, without a newline after it, where it is missing."""
    if line in _lines(text):
        return text
    return f"{text}\n{line}" if text else line


def open_to_passwords(text: str) -> str:
    """Return a `pg_hba.conf` that lets everybody in by password, whatever else it says before."""
    return with_line(text, MD5_LINE)


def trusting(text: str, user: str) -> str:
    """Return a `pg_hba.conf` that first lets this user in from the machine itself, as what initdb makes does."""
    name = '"' + user.replace('"', '""') + '"'
    ours = [
        f"local\tall\t{name}\t\ttrust",
        f"host\tall\t{name}\t127.0.0.1/32\ttrust",
        f"host\tall\t{name}\t::1/128\ttrust",
    ]
    if _lines(text)[: len(ours)] == ours:
        return text
    return "\n".join([*ours, text])


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
