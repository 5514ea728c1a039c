"""What Postgres and its programs say, for logs and errors."""


def one_line(said: object, limit: int | None = None) -> str:
    """Put what an exception or a program said into one line, cut after `limit` characters."""
    line = " ".join(str(said).split())
    return line if limit is None or len(line) <= limit else f"{line[:limit]} …"
