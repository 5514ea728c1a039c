"""The source `initdb`: a new, local cluster, which then stays."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from typing_extensions import override

from ....messages.failpoints import Failpoint
from ....messages.postgres import PgdataStages
from ....messages.settings import SourceName
from ....messages.spec import ComputeSpec
from ....postgres.binaries import Binaries
from ...kit.jobs import Cancellation
from ...kit.programs import ProgramError, Starter, run
from .. import segments
from . import Source, SourceError

LOCALE: Final = "C.UTF-8"
TIMEOUT_S: Final = 300.0
"""It takes about a second; a slow disk may need more for the sync at its end."""

_BAD_LOCALE: Final = re.compile(r"invalid locale (?:name|settings)")


class InitdbSource(Source):
    """Runs initdb; its superuser is the user of `-C`."""

    name = SourceName.INITDB

    def __init__(
        self,
        binaries: Binaries,
        starter: Starter,
        superuser: str,
        env: Mapping[str, str],
        *,
        locale: str = LOCALE,
    ) -> None:
        self._binaries = binaries
        self._starter = starter
        self._superuser = superuser
        self._env = dict(env)
        self._locale = locale

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        command = [
            self._binaries.sibling("initdb"),
            *("-D", target, "-A", "trust", "-U", self._superuser),
            *("--encoding=UTF8", f"--locale={self._locale}", "--no-instructions"),
            "--no-clean",  # the folder is ours to delete, and names what a Postgres that died left in memory
            *(() if sync else ("--no-sync",)),
        ]
        try:
            result = run(
                command,
                starter=self._starter,
                env=self._env,
                cwd=str(Path(target).parent),
                timeout_s=TIMEOUT_S,
                cancellation=cancellation,
                step=Failpoint.INITDB_RUNNING,
                leftovers=segments.of_servers,
            )
        except ProgramError as error:
            msg = f"no new cluster could be made: {error}"
            raise SourceError(msg) from error
        if result.code != 0:
            raise SourceError(self._explain(result.code, result.output))
        cancellation.reach(Failpoint.INITDB_DONE)
        return PgdataStages()

    def _explain(self, code: int, output: str) -> str:
        lines = [line for line in output.splitlines() if re.search(r"error:|FATAL|PANIC|hint:|detail:", line)]
        said = "; ".join(lines or output.strip().splitlines()[-5:]) or "nothing"
        if _BAD_LOCALE.search(output):
            return (
                f"no new cluster could be made: this machine does not know the locale {self._locale} "
                f"(initdb said: {said}); install it (package locales, or glibc 2.35 and later, which bring it)"
            )
        return f"no new cluster could be made: initdb ended with {code} and said: {said}"


class TemplateSource(Source):
    """Takes what an earlier initdb of this process has made, durable and untouched since; once."""

    name = SourceName.INITDB

    def __init__(self, template: str) -> None:
        self._template = template

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        cancellation.check()
        try:
            Path(self._template).rename(target)
        except OSError as error:
            msg = f"the cluster that was made in advance cannot be used: {error.strerror or error}"
            raise SourceError(msg) from error
        return PgdataStages()
