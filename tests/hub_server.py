"""A local HTTP server that speaks the hub's protocol, as far as listing and downloading need it.

Revisions are directories on disk. Faults can be switched on: silence, failure, downloads that break off.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A model or dataset repository: `revisions` maps branches, tags and commits to the directories that hold
    their files."""

    kind: str
    id: str
    revisions: dict[str, Path]
    gated: bool = False

    @cached_property
    def commits(self) -> dict[str, Path]:
        return {_commit(name, directory): directory for name, directory in self.revisions.items()}

    def resolve(self, revision: str) -> tuple[str, Path] | None:
        """The commit and the directory of a branch, tag or commit."""
        directory = self.revisions.get(revision)
        commit = _commit(revision, directory) if directory else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """What the server has, how it fails, and what it was asked for (methods and paths, in order)."""

    repositories: list[Repository]
    silent: bool = False
    status: int | None = None
    cut_after: int | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""
    closing: Event = field(default_factory=Event)

    def downloads(self) -> list[str]:
        """The names of the files whose content was sent, sorted."""
        return sorted(
            {
                request.rsplit("/", 1)[-1]
                for request in self.requests
                if request.startswith("GET /") and "/resolve/" in request
            }
        )

    def find(self, kind: str, path: str) -> tuple[Repository, list[str]] | None:
        """The repository that an address begins with, and what follows its id."""
        for repository in self.repositories:
            if repository.kind == kind and f"{path}/".startswith(f"{repository.id}/"):
                return repository, path[len(repository.id) + 1 :].split("/")
        return None


@contextmanager
def serve(*repositories: Repository) -> Iterator[Hub]:
    """A running server; its address is `hub.url`, to be given as HF_ENDPOINT."""
    hub = Hub(list(repositories))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


def _commit(revision: str, directory: Path) -> str:
    """40 hexadecimal digits: the revision itself where it is a commit."""
    is_commit = re.fullmatch("[0-9a-f]{40}", revision)
    return revision if is_commit else hashlib.sha1(str(directory).encode()).hexdigest()


def _files(directory: Path) -> list[str]:
    return sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            hub.requests.append(f"{self.command} /{unquote(path)}")
            if hub.silent:
                hub.closing.wait()
                self.close_connection = True
            elif hub.status:
                self.send(hub.status, b"")
            elif not path:
                self.send(200, b"a hub")
            elif path.startswith(("api/models/", "api/datasets/")):
                _, kinds, rest = path.split("/", 2)
                self.answer_listing(kinds.removesuffix("s"), rest)
            elif path.startswith("api/"):
                self.send(404, b"")
            else:
                kind = "dataset" if path.startswith("datasets/") else "model"
                self.answer_file(kind, path.removeprefix("datasets/"))

        def answer_listing(self, kind: str, path: str) -> None:
            """ID, ID/revision/REVISION and ID/tree/REVISION."""
            found = self.find(kind, path)
            if not found:
                return
            repository, (what, revision, *_) = (
                found[0],
                [*found[1], "", ""] if found[1] != [""] else ["", "main"],
            )
            resolved = repository.resolve(unquote(revision or "main"))
            if not resolved:
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            commit, directory = resolved
            names = _files(directory)
            if what == "tree":
                listing = [
                    {
                        "type": "file",
                        "path": name,
                        "size": (directory / name).stat().st_size,
                        "oid": hashlib.sha1((directory / name).read_bytes()).hexdigest(),
                    }
                    for name in names
                ]
                self.send_json(listing)
            else:
                self.send_json(
                    {"id": repository.id, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                )

        def answer_file(self, kind: str, path: str) -> None:
            """ID/resolve/REVISION/FILE."""
            found = self.find(kind, path)
            if not found:
                return
            repository, (_, revision, *parts) = found
            resolved = repository.resolve(unquote(revision))
            file = resolved[1] / unquote("/".join(parts)) if resolved else None
            if not resolved or not file or not file.is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound" if resolved else "RevisionNotFound"})
                return
            content = file.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": resolved[0],
                "Accept-Ranges": "bytes",
            }
            asked = self.headers.get("Range")
            if asked:
                start = int(asked.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send(206, content[start:], headers)
            else:
                self.send(200, content, headers)

        def find(self, kind: str, path: str) -> tuple[Repository, list[str]] | None:
            found = hub.find(kind, path)
            if not found:
                self.send(401, b"", {"X-Error-Code": "RepoNotFound"})  # as the hub answers the anonymous
            elif found[0].gated:
                self.send(403, b"", {"X-Error-Code": "GatedRepo"})
                return None
            return found

        def send_json(self, content: object) -> None:
            self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after is not None and "ETag" in (headers or {}):
                self.wfile.write(content[: hub.cut_after])
                self.close_connection = True
            else:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: pytest shows `hub.requests` where a test fails."""

    return Handler
