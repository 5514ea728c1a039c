#!/usr/bin/env python3
"""Process entrypoint: arguments, then the actor system, then the exit code."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def _import_from_here() -> None:
    """Let `python run.py` work from a checkout: this folder is the package `compute_node`."""
    import importlib.util

    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    if importlib.util.find_spec("compute_node") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "compute_node", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    if spec is None or spec.loader is None:
        msg = f"{here} is not the checkout of compute-node"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compute_node"] = module
    spec.loader.exec_module(module)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one node and leave with its exit code."""
    gc.set_threshold(20_000)  # what is loaded at the start stays: looking for garbage in it only takes time
    from compute_node.process import init, signals

    init.enter()  # before there are threads; comes back in the process that is the node
    pipe = signals.SignalPipe()
    pipe.install()
    try:
        from compute_node.cli.compute_ctl import run
    except ModuleNotFoundError as error:
        sys.exit(
            f"Error: {error.name} is not installed for {sys.executable}: install compute-node (pip install .), "
            "or use the virtual environment that make sets up (.venv/bin/python run.py)"
        )
    code = run(argv, pipe)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing that a thread holds may keep the process from ending


if __name__ == "__main__":
    _import_from_here()
    main()
