"""The numbers of a node, kept in memory so that a scrape only reads."""

import math
import threading
from collections.abc import Mapping

from ...messages.metrics import FAMILIES, HANDLED, HANDLER_SECONDS, Family

Labels = tuple[str, ...]


class Metrics:
    """A sink that every thread may write to and the metrics route reads; one per node.

    Labels are given in the order of the family's `labels`; raises ValueError when their number is wrong.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {
            family.name: {} if family.labels else {(): 0.0} for family in FAMILIES
        }

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Give one sample of a gauge its value."""
        _check(family, labels)
        with self._lock:
            self._values[family.name][labels] = value

    def add(self, family: Family, amount: float, *labels: str) -> None:
        """Let one sample of a counter grow."""
        _check(family, labels)
        with self._lock:
            values = self._values[family.name]
            values[labels] = values.get(labels, 0.0) + amount

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Count one value into a histogram: into the buckets (cumulative) and the sum that `read` shows.

        There, `le`, the upper bound as text, or `sum` stands behind the labels.
        """
        _check(family, labels)
        with self._lock:
            values = self._values[family.name]
            if (*labels, "sum") not in values:
                values |= {(*labels, str(bound)): 0.0 for bound in (*family.bounds, math.inf)}
                values[*labels, "sum"] = 0.0
            values[*labels, "sum"] += value
            for bound in (*family.bounds, math.inf):
                values[*labels, str(bound)] += value <= bound

    def replace(self, family: Family, values: Mapping[Labels, float]) -> None:
        """Replace all samples of a family at once, so that none of an earlier state stays behind."""
        for labels in values:
            _check(family, labels)
        with self._lock:
            self._values[family.name] = dict(values)

    def handled(self, actor: str, message: str, seconds: float) -> None:
        """Count one handled message and its time."""
        labels = (actor, message)
        with self._lock:
            counts = self._values[HANDLED.name]
            counts[labels] = counts.get(labels, 0.0) + 1
            times = self._values[HANDLER_SECONDS.name]
            times[labels] = times.get(labels, 0.0) + seconds

    def read(self, family: Family) -> dict[Labels, float]:
        """Return a copy of all samples of a family."""
        with self._lock:
            return dict(self._values[family.name])


def _check(family: Family, labels: Labels) -> None:
    if len(labels) != len(family.labels):
        msg = f"{family.name} has the labels {', '.join(family.labels)}; the sample has {len(labels)}"
        raise ValueError(msg)
