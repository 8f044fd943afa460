"""Where checkpoints and data come from: what ships with wq, and the model hub.

The hub's client retries for half a minute, and waits without limit where a network swallows its packets. So
the hub is asked first whether it answers at all; where it does not, the cache decides, at once.
"""

import logging
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Literal

ASSETS = Path(__file__).parent / "assets"

# Seconds for the hub's first answer: many times a transatlantic round trip, little enough to wait for in vain
PATIENCE = 4.0

Kind = Literal["model", "dataset"]

OFFLINE_CHOICES = {
    "model": "model=nano, model.path=DIRECTORY",
    "dataset": "dataset=commands, dataset=manifest dataset.path=FILE",
}


class HubError(ValueError):
    """Something the hub, or its cache, cannot give: one line that names it, why, and what can be done."""


def shipped(path: str) -> Path | None:
    """The place of `wq:NAME`, whether it is there or not; None for any other path."""
    return ASSETS / path.removeprefix("wq:") if path.startswith("wq:") else None


def expanded(path: str) -> Path:
    """A path as it is typed: ~ is home, and ~NAME a user's, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises RuntimeError where there is none


def shipped_names(suffix: str) -> list[str]:
    """`wq:NAME` of every directory under assets/ that holds a file with this suffix."""
    return sorted({f"wq:{file.parent.name}" for file in ASSETS.glob(f"*/*{suffix}")})


def fetch(repo_id: str, kind: Kind, revision: str | None, patterns: Sequence[str]) -> Path:
    """The local snapshot of a repository: the files that match, at one commit, which names the directory.

    Downloads what is missing; without a network, or with HF_HUB_OFFLINE=1, the cache must have all of them.

    Raises:
        HubError: unreachable and not cached, no such repository or revision, no access, or a broken download.
    """
    from huggingface_hub import constants, errors, snapshot_download

    what = f"{kind}.path={repo_id}"
    at = f"revision {revision}" if revision else "the default branch"
    hub = constants.ENDPOINT
    _quieten()
    obstacle = unreachable()
    try:
        directory = snapshot_download(
            repo_id,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=obstacle is not None,
        )
    except errors.LocalEntryNotFoundError as error:
        reason = obstacle or _first_line(error.__cause__ or error)
        raise HubError(
            f"{what}: {hub} cannot be reached ({reason}) and the cache {constants.HF_HUB_CACHE} does not "
            f"hold {at} in full; offline choices: {OFFLINE_CHOICES[kind]}, or a cache filled beforehand "
            "(HF_HOME)"
        ) from error
    except errors.GatedRepoError as error:
        raise HubError(
            f"{what}: {hub} gives access on request only; ask for it on the {kind}'s page and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{what} is neither a local directory nor a public {kind} on {hub}; check the spelling, "
            "or set HF_TOKEN if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{what} has no revision {revision} on {hub}; give a branch, a tag or a commit as {kind}.revision"
        ) from error
    except errors.HFValidationError as error:
        raise HubError(
            f"{what} is neither a local directory nor a hub id, NAMESPACE/NAME; correct {kind}.path"
        ) from error
    except Exception as error:  # whatever a network and its client can raise
        raise HubError(
            f"{what}: the download from {hub} failed ({_first_line(error)}); run the command again"
        ) from error
    return Path(directory)


def files(repo_id: str, kind: Kind, snapshot: Path) -> list[str]:
    """The paths of all files that the repository has at a snapshot's commit, sorted, without a network; where
    the cache was filled without a listing, those of the files that lie there."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return sorted(
            file.path for file in get_cached_repo_tree(repo_id, repo_type=kind, revision=snapshot.name)
        )
    except CachedRepoTreeNotFoundError:
        return sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file())


@cache
def unreachable() -> str | None:
    """Why the hub cannot be asked, or None when it answers; found out once in a process.

    Takes PATIENCE seconds at most (HF_HUB_ETAG_TIMEOUT, where it is set). Resolving a name has no time limit
    of its own, so a thread waits for it.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    patience = float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else PATIENCE
    answers: Queue[str | None] = Queue()
    Thread(target=lambda: answers.put(_ask(constants.ENDPOINT, patience + 1)), daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except Empty:
        return f"no answer within {patience:g} s"


def _ask(endpoint: str, timeout: float) -> str | None:
    """Why a request is not answered. Any answer but a server's failure will do: mirrors differ."""
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=timeout, follow_redirects=False).status_code
    except Exception as error:
        return _first_line(error)
    return f"HTTP status {status}" if status >= 500 else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _quieten() -> None:
    """No line for every request, and no progress bar where there is no terminal."""
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if not sys.stderr.isatty():
        disable_progress_bars()
