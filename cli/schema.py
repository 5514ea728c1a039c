"""The JSON Schema of the config, for editors; made from the types that read it."""

from typing import Any

import msgspec

from ..messages.base import schema_hook
from ..messages.spec import ComputeConfig


def config_schema() -> dict[str, Any]:
    """Describe the content of `--config`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compute-node config",
        "description": "The content of the file of --config. Unknown fields are tolerated, and have no effect.",
    } | msgspec.json.schema(ComputeConfig, schema_hook=schema_hook)
