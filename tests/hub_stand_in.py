"""A stand-in for the Hub's HTTP interface, of what its client calls to make, fill, list and read a repository."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_standin"


class Hub:
    """What the stand-in holds: files by repository, and which are private."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.url = ""

    def commit(self, repo: str) -> str:
        """The commit that a repository is at: a hash of what is in it."""
        return hashlib.sha1(repr(sorted(self.files[repo].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers from one stand-in."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    @property
    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        place = unquote(urlparse(self.path).path)
        is_preupload = "/preupload/" in place
        if not self.may_write:
            self.refuse(401, "Unauthorized")
        elif place == "/api/repos/create":
            self.create(json.loads(body))
        elif place == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif is_preupload:
            files = json.loads(body)["files"]
            said = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self.answer(200, {"files": said})
        else:
            self.commit(place.removeprefix("/api/models/").partition("/commit/")[0], body)

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
        if repo.startswith("somebody-else/"):
            self.refuse(403, "You are not allowed to write there")
            return
        is_new = repo not in self.hub.files
        if is_new:
            self.hub.files[repo] = {}
            self.hub.private |= {repo} if wanted.get("visibility") == "private" else set()
        self.answer(200 if is_new else 409, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def commit(self, repo: str, body: bytes) -> None:
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                self.hub.files[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        oid = self.hub.commit(repo)
        self.answer(200, {"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "success": True})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
            return
        repo, file = "/".join(parts[:2]), "/".join(parts[4:])  # USER/NAME/resolve/REVISION/FILE
        data = self.hub.files.get(repo, {}).get(file)
        if data is None:
            self.refuse(404, "EntryNotFound" if repo in self.hub.files else "RepoNotFound")
        else:
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.answer(200, data, X_Repo_Commit=self.hub.commit(repo), ETag=etag)

    def describe(self, repo: str, rest: list[str]) -> None:
        if repo not in self.hub.files or (repo in self.hub.private and not self.may_write):
            self.refuse(404 if self.may_write else 401, "RepoNotFound")
            return
        sha, files = self.hub.commit(repo), self.hub.files[repo]
        if rest[:1] == ["revision"] and rest[1] not in ("main", sha):
            self.refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            hashes = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
            self.answer(
                200, [{"type": "file", "path": name, "size": len(files[name]), "oid": hashes[name]} for name in files]
            )
        else:
            said = {"id": repo, "modelId": repo, "sha": sha, "private": repo in self.hub.private, "tags": []}
            self.answer(200, said | {"siblings": [{"rfilename": name} for name in files]})


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """The stand-in, on this machine alone, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
