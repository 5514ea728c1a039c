"""What is decided about configurations: they are checked, compared, installed and settled beside the phases."""

from ....messages.planning import CannotPlan, CompareSettings
from ....messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InstallConfiguration,
    SettleConfiguration,
)
from ....messages.promotion import PostgresPromoted, PostgresPromotionFailed, PromotePostgres
from ..private import (
    BecamePrimary,
    Checked,
    CheckRefused,
    Compared,
    InstallationFailed,
    Installed,
    NotPromoted,
)
from ..state import Answer, Begin
from ..work import Work
from .turn import Turn

# --- Those that change nothing


def check(turn: Turn, message: CheckConfiguration) -> None:
    if turn.does(Work.CHECK):
        text = "another configuration is being checked: try again"
        turn.tell(ConfigurationRefused(message.operation, text))
        return
    turn.set(check_operation=message.operation)
    turn.begin(Begin(Work.CHECK, message.spec, promoting=message.promoting))


def checked(turn: Turn, outcome: Checked | CheckRefused) -> None:
    if turn.is_stopping:
        return
    operation = turn.state.check_operation
    match outcome:
        case Checked(warnings):
            turn.tell(ConfigurationAccepted(operation, warnings))
        case CheckRefused(error):
            turn.tell(ConfigurationRefused(operation, error))


def compare(turn: Turn, message: CompareSettings) -> None:
    if turn.does(Work.COMPARE):
        refuse_to_compare(turn, "another plan is being made; try again in a moment")
    else:
        turn.begin(Begin(Work.COMPARE, message.spec))


def compared(turn: Turn, message: Compared) -> None:
    turn.effects.append(Answer(message.outcome))


def refuse_to_compare(turn: Turn, reason: str) -> None:
    outcome = CannotPlan(f"the settings cannot be compared: {reason}", busy=True)
    turn.effects.append(Answer(outcome, refused=True))


# --- Those that write, one at a time


def install(turn: Turn, message: InstallConfiguration) -> None:
    if _is_being_written(turn):
        text = "another configuration is being installed: try again"
        turn.tell(ConfigurationInstallFailed(message.operation, text))
    elif turn.does(Work.SETTLE):
        turn.set(after_settling=message)
    else:
        turn.set(install_operation=message.operation)
        turn.begin(Begin(Work.INSTALL, message.spec))


def installed(turn: Turn, outcome: Installed | InstallationFailed) -> None:
    if turn.is_stopping:
        return
    operation = turn.state.install_operation
    match outcome:
        case Installed(pending_restart):
            turn.tell(ConfigurationInstalled(operation, pending_restart))
        case InstallationFailed(error):
            turn.tell(ConfigurationInstallFailed(operation, error))


def promote(turn: Turn, message: PromotePostgres) -> None:
    if _is_being_written(turn):
        text = "a configuration is being installed: try again"
        turn.tell(PostgresPromotionFailed(message.operation, text))
    elif turn.does(Work.SETTLE):
        turn.set(after_settling=message)
    else:
        turn.set(promote_operation=message.operation)
        turn.begin(Begin(Work.PROMOTE, message.spec, wal_flush_lsn=message.wal_flush_lsn))


def promoted(turn: Turn, outcome: BecamePrimary | NotPromoted) -> None:
    if turn.is_stopping:
        return
    operation = turn.state.promote_operation
    match outcome:
        case BecamePrimary(lsn_wait_time_ms, pg_promote_time_ms):
            turn.tell(PostgresPromoted(operation, lsn_wait_time_ms, pg_promote_time_ms))
        case NotPromoted(error):
            turn.tell(PostgresPromotionFailed(operation, error))


def settle(turn: Turn, message: SettleConfiguration) -> None:
    if _is_being_written(turn):
        return  # it is overtaken
    if turn.does(Work.SETTLE):
        turn.set(after_settling=message)
    else:
        turn.begin(Begin(Work.SETTLE, message.spec, subscribers=message.subscribers))


def _is_being_written(turn: Turn) -> bool:
    awaited = isinstance(turn.state.after_settling, (InstallConfiguration, PromotePostgres))
    return awaited or turn.does(Work.INSTALL, Work.PROMOTE)
