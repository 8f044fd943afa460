"""An SQLite store that was moved or copied: its artifacts lie beside its database, whatever its records say.

MLflow keeps the places of artifacts as absolute addresses. After `mv` it would make the old directory anew,
and after `cp -r` write into the directory that was copied.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = "mlruns"  # of artifacts, beside the database


def artifact_root(database: Path) -> Path:
    return database.absolute().parent / FOLDER


def local_path(address: str | None) -> Path | None:
    """The place of artifacts on this machine; None where they are elsewhere."""
    parts = urlsplit(address or "")
    path = Path(unquote(parts.path) if parts.scheme else address or "")
    return path if parts.scheme in ("", "file") and path.is_absolute() else None


def moved(place: Path, root: Path) -> Path | None:
    """Where what was recorded as .../mlruns/REST is below this root; None where it was not recorded so."""
    depth = len(place.parts) - 1 - place.parts[::-1].index(FOLDER) if FOLDER in place.parts else None
    return None if depth is None else root.joinpath(*place.parts[depth + 1 :])


def found(place: Path, database: Path | None) -> Path:
    """Where the artifacts of a run are: beside the database if they are there, else where its record says."""
    beside = moved(place, artifact_root(database)) if database else None
    return beside if beside and beside.is_dir() else place


def readdress(database: Path) -> None:
    """Make the records of a store that was moved or copied say where its artifacts are now, and tell of it.

    What lies elsewhere on purpose stays there: a place is left alone that exists and belongs to no other
    database, unless its runs are beside this one.
    """
    root = artifact_root(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        places = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for experiment, address in places:
            old, new = _old_and_new(address, root)
            if new is None or not _is_left(old, new, database):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (new.as_uri(), experiment),
            )
            runs = connection.execute(
                "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?", (experiment,)
            ).fetchall()
            for run, its in runs:
                before, after = _old_and_new(its, root)
                if after is not None and (after.is_dir() or not before.is_dir()):
                    connection.execute(
                        "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (after.as_uri(), run)
                    )
            if runs:
                print(
                    f"{database} has been moved: its artifacts are no longer {old}, but {new}",
                    file=sys.stderr,
                )


def _old_and_new(address: str | None, root: Path) -> tuple[Path, Path | None]:
    """A recorded place, and the one below the root, where that is another."""
    old = local_path(address)
    new = moved(old, root) if old else None
    return old or Path(), new if old and new and old.resolve() != new.resolve() else None


def _is_left(old: Path, new: Path, database: Path) -> bool:
    """Whether artifacts are no longer kept at the old place."""
    depth = len(old.parts) - 1 - old.parts[::-1].index(FOLDER)
    belongs_to_another = Path(*old.parts[:depth], database.name).is_file()
    has_runs = new.is_dir() and any(new.iterdir())
    return belongs_to_another or has_runs or not old.is_dir()
