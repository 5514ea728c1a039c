"""Secrets in the words of Postgres, which repeats settings and commands. Pure."""

import re
from typing import Final

from ..messages.secret import MASK, is_secret_setting, mask_credentials

_SETTING: Final = re.compile(r'(parameter "([^"]+)"(?: changed to|:) )"(.*)"', re.DOTALL)
_COMMAND: Final = re.compile(r'(\bcommand )".*"(?= failed)', re.DOTALL)
_CONNINFO: Final = re.compile(r'(missing "=" after )".*"(?= in connection info)', re.DOTALL)
_SUSPECTS: Final = ('parameter "', "command", "connection info")
"""No message of Postgres that repeats a setting is without one of these."""


def mask_server_words(message: str) -> str:
    """Mask the secrets of settings in a message of Postgres; one that speaks of other things stays as it is.

    Postgres repeats values when it loads or refuses a configuration, and commands that failed.
    """
    if not any(suspect in message for suspect in _SUSPECTS):
        return message
    message = _SETTING.sub(_masked_setting, message)
    message = _COMMAND.sub(rf'\1"{MASK}"', _CONNINFO.sub(rf'\1"{MASK}"', message))
    return mask_credentials(message)


def _masked_setting(found: re.Match[str]) -> str:
    return f'{found[1]}"{MASK}"' if is_secret_setting(found[2]) else found[0]
