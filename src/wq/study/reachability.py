"""Whether a tracking URI leads to a store, and whether anybody answers there: known at once, in one line."""

import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

SQLITE = "sqlite:///"

# Where an MLflow store can be: databases, with the port of their server, and servers of MLflow
DATABASES = {"sqlite": None, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SERVERS = ("http", "https", "databricks")
PATIENCE = 5  # seconds in which a server has to answer


class StoreError(ValueError):
    """A store that cannot be used: one line that names it, the reason and the remedy."""


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
    return Path(found[1]) if found else None


def without_password(uri: str) -> str:
    """A URI, or a text with some in it, as messages may show it: all between the first colon and the last @ of
    a place is the password, and so is what a parameter of that name holds."""
    shown = re.sub(r"(://[^/:@\s]*):[^/\s]*@", r"\1:***@", uri)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", shown)


def probe(uri: str) -> None:
    """Raises an error of the operating system, of SQLite or of requests where nobody answers, or no database:
    at once, as MLflow asks again and again, for minutes."""
    address = urlsplit(uri)
    database = database_file(uri)
    if database and database.exists():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("pragma schema_version")
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
                raise StoreError(
                    f"tracking_uri={without_password(uri)} answers {answer.status_code} {answer.reason}; "
                    f"start the server, or give tracking_uri={SQLITE}mlflow.db"
                )
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(_innermost(error)) from error


def _innermost(error: BaseException) -> str:
    """What lies under the layers of an error of requests."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__
