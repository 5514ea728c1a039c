"""The drop-in command: one node, until it ends."""

import logging
import sys
import time
from collections.abc import Sequence

from ..messages.lifecycle import EXIT_FAILED
from ..postgres.binaries import begin_discovery
from ..process.signals import SignalPipe
from .options import parse


def run(argv: Sequence[str] | None, signals: SignalPipe) -> int:
    """Run one node in the foreground and return its exit code (see `--help`)."""
    began_s, began_wall_s = time.monotonic(), time.time()
    options = parse(argv)
    found = begin_discovery(options.pgbin)
    from ..actors.supervisor.turn import Moment
    from ..process import logs, node, notify
    from .launching import StartError, prepare

    manager = notify.take()
    writer = logs.configure(options.log_format)
    try:
        launch = prepare(options, Moment(began_s, began_wall_s), lambda: writer.dropped, found)
        return node.run(launch, signals, manager=manager).code
    except StartError as error:
        writer.close()
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILED
    except Exception:
        logging.getLogger("compute_node").exception("the main thread failed; the node is stopped")
        return EXIT_FAILED
    finally:
        writer.close()
