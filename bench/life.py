"""Start, bind and stop of a node, beside initdb, Postgres and pg_ctl by hand: `python bench/life.py`."""

from compute_node.bench.rig import (
    ROUNDS,
    Row,
    by_hand,
    compared,
    conf_of_a_node,
    node,
    rounds,
    spec,
    table,
)


def measure(count: int = ROUNDS) -> list[Row]:
    """Let a node with a spec, one that gets it over HTTP, and a cluster by hand live and end by turns."""
    starts: list[float] = []
    binds: list[float] = []
    warm_binds: list[float] = []
    floors: list[float] = []
    stops: list[float] = []
    pg_ctl_stops: list[float] = []
    conf = conf_of_a_node()

    def start() -> None:
        with node(spec()) as made:
            starts.append(made.heard("from init to running") - made.started_s)
            stops.append(made.terminate())

    def bind() -> None:
        with node(None, "--no-memory-prewarm") as made:
            made.heard("no compute spec provided, waiting")
            binds.append(made.configure(spec()))
            made.terminate()

    def warm_bind() -> None:
        with node(None) as made:
            made.heard("done prewarming vm memory")
            warm_binds.append(made.configure(spec()))
            made.terminate()

    def floor() -> None:
        with by_hand(conf) as cluster:
            floors.append(cluster.start())
            pg_ctl_stops.append(cluster.stop())

    rounds("start, bind, stop", count, start, floor, bind, warm_bind)
    return [
        compared("start: exec to `running`, empty spec", starts, floors, "initdb + postgres", 1.10),
        compared("bind: `POST /configure` to `running`", binds, floors, "initdb + postgres", 1.05),
        compared("bind of a warm pool: the same", warm_binds, floors, "initdb + postgres", 0.3),
        compared(
            "bind of a warm pool: what its template saves", warm_binds, binds, "a bind that runs initdb", 0.5
        ),
        compared("stop: `/terminate?mode=immediate`", stops, pg_ctl_stops, "pg_ctl stop -m fast", 1.30),
    ]


if __name__ == "__main__":
    print(table(measure()))
