"""Opening the state file: WAL, numbered migrations, transactions that end whole or not at all."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubbot.bot.ledger.schema import MIGRATIONS
from hubbot.errors import LedgerFailed

BUSY_SECONDS = 30.0  # how long a writer waits for another one


@dataclass(frozen=True, slots=True)
class Ledger:
    """An open state file. One connection; use it from one thread at a time."""

    path: Path
    connection: sqlite3.Connection
    clock: Callable[[], float] = time.time  # seconds since the epoch; may jump, nothing here trusts it far

    def now(self) -> float:
        return self.clock()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is written at once and durably, or not at all."""
        with spoken(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                if self.connection.in_transaction:  # a full disk rolls back by itself
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def read(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Every row of an answer. None is left open: a transaction could not begin beside it once another process wrote."""
        with spoken(self.path):
            return self.connection.execute(query, values).fetchall()

    def close(self) -> None:
        self.connection.close()


@contextmanager
def open_ledger(path: Path, *, clock: Callable[[], float] = time.time, check: bool = True) -> Iterator[Ledger]:
    """The state file at `path`, made if it is absent, brought up to date if an older hubbot wrote it.

    check: read the whole file for damage first, for whoever opens it rarely.
    Raises LedgerFailed where it is no state file, is damaged or was written by a newer hubbot, all before anything is
    written to it, or cannot be written.
    """
    with spoken(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            _look(path, whole=check)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a committed event outlives the power
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    ledger = Ledger(path, connection, clock)
    try:
        yield ledger
    finally:
        ledger.close()


def _look(path: Path, *, whole: bool) -> None:
    """Refuse what is no state file of hubbot, or a damaged one, through a connection that cannot write to it."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db:
        db.execute("BEGIN")  # one state of the file: another bot may be making it
        version = _version(db, path)
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not version:
            raise LedgerFailed(f"{path} is a database of another program. {_advice('not a database')}")
        if absent := set(re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS[:version]))) - tables:
            raise LedgerFailed(f"{path} lacks the table {min(absent)}. {_advice('malformed')}")
        if whole and (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            words = " ".join(str(found).split())[:200]
            raise LedgerFailed(f"{path} is damaged ({words}) and was left as it is. {_advice('malformed')}")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection, path) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")  # the other bot may be migrating: look again once it is our turn
    try:
        for number, script in enumerate(MIGRATIONS[_version(connection, path) :], start=_version(connection, path) + 1):
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        msg = (
            f"{path} was written by a newer hubbot (state version {version}, this one knows {len(MIGRATIONS)}). "
            "Update hubbot, or name another file with --state."
        )
        raise LedgerFailed(msg)
    return version


def _statements(script: str) -> Iterator[str]:
    """executescript() would commit on its own: the statements go one by one into our transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def sound(path: Path, table: str, key: object) -> Iterator[None]:
    """Turns what goes wrong with the content of one row into LedgerFailed that names the row."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        msg = (
            f"{path}: the row of {ascii(key)[:120]} in the table {table} is damaged ({type(error).__name__}). "
            "Remove that row with sqlite3, or restore the file from a copy; the rest of it is sound."
        )
        raise LedgerFailed(msg) from None


@contextmanager
def spoken(path: Path) -> Iterator[None]:
    """Turns SQLite's and the system's errors into LedgerFailed with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerFailed(f"{path}: {error}. {_advice(str(error))}") from error
    except OSError as error:
        raise LedgerFailed(f"{path} cannot be used: {error.strerror or error}. {_advice(str(error))}") from error


def _advice(text: str) -> str:
    if "full" in text or "No space" in text:
        return "Nothing was lost; free some space and start again."
    if "not a database" in text or "malformed" in text:
        return "It is no state file of hubbot, or a damaged one; name another with --state, or move it away."
    if "locked" in text:
        return f"Another process held it for over {BUSY_SECONDS:.0f} s; see what runs and start again."
    return "See that the folder exists, is local and may be written to, or name another file with --state."
