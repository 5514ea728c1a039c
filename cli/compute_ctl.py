"""The drop-in command: one node, until it ends."""

import logging
import sys
import time
from collections.abc import Sequence

from ..messages.lifecycle import EXIT_FAILED, EXIT_OK
from ..postgres.binaries import begin_discovery
from ..process.signals import SignalPipe, StoppedError
from .options import parse


def run(argv: Sequence[str] | None, signals: SignalPipe) -> int:
    """Run one node in the foreground and return its exit code (see `--help`)."""
    began_s, began_wall_s = time.monotonic(), time.time()
    options = parse(argv)
    found = begin_discovery(options.pgbin)
    from ..actors.kit.turn import Moment
    from ..process import logs, node, notify
    from .launching import StartError, prepare

    manager = notify.take()
    writer = logs.configure(options.log_format)
    try:
        launch = prepare(options, Moment(began_s, began_wall_s), signals, lambda: writer.dropped, found)
        return node.run(launch, signals, manager=manager).code
    except StoppedError as stopped:
        logging.getLogger("compute_node").info(
            "received %s while the control plane was asked for the config: shutting down", stopped
        )
        return EXIT_OK
    except StartError as error:
        writer.close()
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILED
    except Exception:
        logging.getLogger("compute_node").exception("the main thread failed; the node is stopped")
        return EXIT_FAILED
    finally:
        writer.close()
