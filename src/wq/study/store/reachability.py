"""Whether a tracking URI leads to a store, and whether anybody answers there: known at once, in one line.

Two things are told apart. An address that can lead to no store, or to something else, is a mistake and an
error: StoreError. A store that may be right, and does not answer or lets nobody write now, is an
UnreachableError: jobs go on without it.
"""

import errno
import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from wq.console import without_password

SQLITE = "sqlite:///"

# Where an MLflow store can be: databases, with the port of their server, and servers of MLflow
DATABASES = {"sqlite": None, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SERVERS = ("http", "https", "databricks")
PATIENCE = 5  # seconds in which a server has to answer
WRITERS = 20  # seconds in which others have to let go of an SQLite file, as MLflow waits too

# Of SQLite: somebody writes and writes; the file or its place is read-only; the disk is full, or fails
SHUT = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class StoreError(ValueError):
    """A store that cannot be used: one line that names it, the reason and the remedy."""


class UnreachableError(StoreError):
    """A store that may be right, and does not answer or lets nobody write now."""

    told = False  # to the user
    state, end = "cannot be reached", "it is back"  # as the user is told

    def __init__(self, uri: str, reason: str) -> None:
        self.uri, self.reason = without_password(uri), reason
        remedy = "free it" if database_file(uri) else "start the server, or correct its address"
        super().__init__(
            f"tracking_uri={self.uri} cannot be used ({reason}); {remedy}, or give "
            f"tracking_uri={SQLITE}mlflow.db"
        )


class RefusedError(UnreachableError):
    """A store that answers, and does not take what it is given."""

    state, end = "does not take what is to be recorded", "that is mended"


def check_scheme(uri: str) -> None:
    """Raises StoreError for a URI that leads to no store. A mere path is one: MLflow would take it for a
    folder of files, which it no longer writes."""
    scheme = uri.partition(":")[0].lower()
    database = scheme.partition("+")[0]
    known = database in DATABASES or scheme in SERVERS
    if not known or (":" not in uri and uri != "databricks"):  # which alone means its default profile
        raise StoreError(
            f"tracking_uri={without_password(uri)} leads to no store; it starts with one of "
            f"{', '.join((*DATABASES, *SERVERS))}: give {SQLITE}mlflow.db for a file, http://HOST:PORT for "
            "a server"
        )
    if database == "sqlite" and database_file(uri) is None:
        raise StoreError(f"tracking_uri={uri} names no file; give {SQLITE}mlflow.db")


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    found = re.match(r"sqlite(?:\+\w+)?:///(?!:memory:)([^?]+)", uri, re.IGNORECASE)
    if found and "%" in found[1]:  # which it depends on its version whether SQLAlchemy decodes
        from sqlalchemy.engine import make_url

        return Path(make_url(uri).database or found[1])
    return Path(found[1]) if found else None


def uri_of(database: Path) -> str:
    """The address of an SQLite file, whatever its directory is called. A name that an address cannot hold as
    it is, and that SQLAlchemy's versions and MLflow each decode otherwise, is kept out of it: it is then
    relative to where this process works."""
    text = str(database)
    if not text.isprintable() or set(text) & {"?", "%"}:
        text = os.path.relpath(database)
    return f"{SQLITE}{text}"


def refuse_foreign_database(database: Path) -> None:
    """Raises StoreError for an SQLite file that holds something else: MLflow would add its tables to it."""
    with closing(sqlite3.connect(database)) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    if tables and not tables & {"experiments", "alembic_version"}:  # the latter's version MLflow judges
        raise StoreError(
            f"tracking_uri={SQLITE}{database} is a database of something else, with the table "
            f"{min(tables)}; give tracking_uri={SQLITE}FILE for a file that is not there yet"
        )


def is_shut(error: BaseException) -> bool:
    """Whether an error, or what lies under it, says that nobody answers, or that nobody may write now."""
    import requests

    silent = (
        *(ConnectionError, TimeoutError, socket.gaierror),
        *(requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError),
    )
    each: BaseException | None = error
    while each is not None:
        code = getattr(each, "sqlite_errorcode", 0) & 0xFF  # the rest says more exactly why
        if isinstance(each, silent) or code in SHUT:
            return True
        if getattr(each, "error_code", "") == "TEMPORARILY_UNAVAILABLE":
            return True  # a server without its database
        if isinstance(each, OSError) and each.errno in FORBIDDEN:
            return True
        each = each.__cause__ or each.__context__
    return False


def probe(uri: str, *, writes: bool = False) -> None:
    """Raises an error of the operating system, of SQLite or of requests where nobody answers, or no database,
    or, where it is to be written, one that cannot be: soon, as MLflow asks again and again, for minutes."""
    address = urlsplit(uri)
    database = database_file(uri)
    if database and database.exists():
        with closing(sqlite3.connect(database, WRITERS)) as connection:
            connection.execute("pragma schema_version")
            if writes:
                connection.execute("begin immediate")  # which nobody refuses where the file is read-only
                connection.execute("create table wq_probe (x)")
                connection.rollback()
    elif address.scheme in ("http", "https"):
        _probe_server(uri)
    elif address.hostname and address.scheme != "databricks":
        port = address.port or DATABASES[address.scheme.partition("+")[0]]
        socket.create_connection((address.hostname, port), PATIENCE).close()


def _probe_server(uri: str) -> None:
    import requests

    try:
        with requests.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE, stream=True) as answer:
            if answer.status_code >= 500:
                raise UnreachableError(uri, f"it answers {answer.status_code} {answer.reason}")
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates
    except (requests.ConnectionError, requests.Timeout) as error:
        raise ConnectionError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """An error in one line; of a store that is shut, what lies under the layers of libraries."""
    if isinstance(error, UnreachableError):
        return error.reason
    if is_shut(error):
        while below := error.__cause__ or error.__context__:
            error = below
    return without_password(" ".join(str(error).split())[:300]) or type(error).__name__
