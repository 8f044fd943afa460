"""The way to a store: one at a time, explained where it does not work, given up where nobody answers."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from wq.console import without_password
from wq.study.store.reachability import (
    SQLITE,
    RefusedError,
    StoreError,
    UnreachableError,
    database_file,
    is_shut,
    probe,
    reason_of,
)

# Why a store could not be reached, by its URI: nobody in this process waits for it again
failures: dict[str, UnreachableError] = {}


@dataclass(frozen=True)
class Connection:
    """This process and a tracking URI."""

    uri: str

    @property
    def failure(self) -> UnreachableError | None:
        """Why the store could not be reached, if it could not; from then on it is left alone."""
        return failures.get(self.uri)

    @contextmanager
    def optional(self) -> Iterator[None]:
        """What is done in here is given up where the store fails, which takes its record from a job, and
        not its results."""
        if not self.failure:
            try:
                probe(self.uri, writes=True)
            except Exception as error:
                self._give_up(error)
        try:
            yield
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Leave the store alone from now on; raises what is no fault of it."""
        of_mlflow = type(error).__module__.startswith("mlflow.")
        if not of_mlflow and not isinstance(error, StoreError | OSError | sqlite3.Error):
            raise error
        kind = UnreachableError if is_shut(error) or isinstance(error, UnreachableError) else RefusedError
        failures.setdefault(self.uri, kind(self.uri, reason_of(error)))

    def tell_failure(self, directory: Path) -> None:
        """Say, once in a process, that the store does without what lies in this directory, and the remedy."""
        failure = self.failure
        if failure and not failure.told:
            failure.told = True
            print(
                f"warning: tracking_uri={failure.uri} {failure.state} ({failure.reason}): results are kept "
                f"as files; when {failure.end}, record them with: wq sync {os.path.relpath(directory)}",
                file=sys.stderr,
            )

    def migration_lock(self) -> AbstractContextManager[object]:
        """A fresh SQLite file is migrated by everyone who finds it so: one process at a time may look."""
        database = database_file(self.uri)
        if database is None:
            return nullcontext()
        database.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{database}.lock")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What MLflow, a driver or the file system say of a store that does not work, as a StoreError."""
        try:
            yield
        except StoreError as error:
            if isinstance(error, UnreachableError):
                failures.setdefault(self.uri, error)
            raise
        except Exception as error:
            if is_shut(error):
                raise failures.setdefault(self.uri, UnreachableError(self.uri, reason_of(error))) from error
            remedy = "restore it" if database_file(self.uri) else "look after it, or correct its address"
            raise StoreError(
                f"tracking_uri={without_password(self.uri)} cannot be used ({reason_of(error)}); {remedy}, "
                f"or give tracking_uri={SQLITE}mlflow.db"
            ) from error
