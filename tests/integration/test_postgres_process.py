"""The PostgresProcess with real folders and real Postgres."""

import pytest
from compute_node.messages.postgres import (
    ConfigurationAccepted,
    PgdataInspected,
    PgdataKind,
    PostgresReady,
    StopRung,
)
from compute_node.postgres.binaries import Binaries

from fix_process import MakeProcess, fast_spec


@pytest.mark.slow
def test_a_first_start_makes_a_cluster_and_a_stop_leaves_it(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries)
    assert process.inspect() == PgdataInspected(PgdataKind.ABSENT)
    assert isinstance(process.check(fast_spec()), ConfigurationAccepted)
    assert process.prepare().kept is False
    ready = process.launch()
    assert isinstance(ready, PostgresReady)
    assert process.sink.alive == [ready.pid]
    assert process.query("SELECT current_user, current_setting('server_version_num')::int / 10000") == [
        ("cloud_admin", binaries.major)
    ]
    assert process.stop().rung is StopRung.FAST
    assert process.sink.alive == []
