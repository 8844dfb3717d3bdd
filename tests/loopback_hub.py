"""A Hugging Face Hub on 127.0.0.1, for tests of code that uploads to or loads from the Hub.

    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)  # in this process
        subprocess.run([...], env=hub.env(tmp_path))      # libraries that read HF_ENDPOINT when imported

Covered: model, dataset and static Space repositories, as huggingface_hub, transformers and datasets use them: create, upload
(regular and LFS files), pull requests, branches, private repositories, downloads with ranges, read-only tokens.
Not covered: Xet (clients set HF_HUB_DISABLE_XET=1), multipart LFS, gated repositories, tags, running Spaces, discussions,
pages of long listings, repository ids without a namespace. What is not covered answers 501 and is kept in
`hub.unexpected`, so a test can assert that its code asked for nothing else.

What the answers contain was read from the clients that parse them (huggingface_hub 2.4: hf_api.py, _commit_api.py,
lfs.py, file_download.py), not from the real server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import parse_qs, unquote

import yaml

WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
USER = "tester"
DEFAULT_TOKENS = {WRITE_TOKEN: (USER, True), READ_TOKEN: (USER, False)}

# A new repository on the Hub is not empty: it has a .gitattributes with the suffixes kept in LFS (here, a few).
LFS_SUFFIXES = (".arrow", ".bin", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".safetensors", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
# A new static Space also has a page that says how to change it.
NEW_SPACE = {"README.md": b"---\nsdk: static\n---\n", "index.html": b"<p>Hello</p>\n", "style.css": b"p {}\n"}
LARGEST_REGULAR_FILE = 10 * 2**20

ANONYMOUS = "Invalid username or password."  # what the Hub says when there is no token

RepoType = Literal["model", "dataset", "space"]
Cut = Literal["request", "response", "silence"]


class Request(NamedTuple):
    method: str
    path: str  # with the query
    status: int | None  # None: the connection was cut


class Commit(NamedTuple):
    id: str
    parent: Commit | None
    title: str
    author: str
    files: Mapping[str, bytes]  # the whole tree, never changed afterwards


@dataclass
class Repo:
    type: RepoType
    id: str
    private: bool
    sdk: str | None = None  # of a Space
    commits: list[Commit] = field(default_factory=list)  # of all branches and pull requests, oldest first
    refs: dict[str, Commit] = field(default_factory=dict)  # "main", a branch, or "refs/pr/1"

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a pull request or a full commit id names."""
        by_id = {commit.id: commit for commit in self.commits}
        commit = self.refs.get(revision) or by_id.get(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, files: Mapping[str, bytes], title: str, author: str, ref: str, parent: Commit | None) -> Commit:
        commit_id = hashlib.sha1(f"{self.url_path} {len(self.commits)} {title}".encode()).hexdigest()
        commit = Commit(commit_id, parent, title, author, dict(files))
        self.commits.append(commit)
        self.refs[ref] = commit
        return commit


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    remaining: int
    action: int | Cut  # answer with this status, or cut the connection during that


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """Raised by a handler; the client gets the headers from which huggingface_hub chooses its exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.answer = json_answer({"error": message}, status)
        self.answer.headers |= {"X-Error-Message": message.splitlines()[0]} | headers
        if code is not None:
            self.answer.headers["X-Error-Code"] = code


def json_answer(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR_FILE)


def file_info(path: str, data: bytes) -> dict[str, Any]:
    """A file as the tree and paths-info listings show it."""
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_blob_id(data)}
    if is_lfs(path, len(data)):
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
        info["oid"] = git_blob_id(pointer.encode())
        info["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return info


def folder_info(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def card_metadata(text: str) -> Any:
    """The YAML at the top of a README.md, None when there is none; raises yaml.YAMLError."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


@dataclass
class Call:
    """One request: who asks for what. Its public methods are the routes' handlers."""

    hub: LoopbackHub
    user: str  # "": no token was sent
    can_write: bool
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    names: dict[str, str]  # the named groups of the route, unquoted; "" for one that is not there

    @property
    def repo_key(self) -> tuple[RepoType, str]:
        repo_type = {"datasets": "dataset", "spaces": "space"}.get(self.names["type"].rstrip("/"), "model")
        return cast(RepoType, repo_type), self.names["repo"]

    @property
    def revision(self) -> str:
        return self.names.get("revision", "main")

    @property
    def creates_pr(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    def _readable_repo(self) -> Repo:
        repo = self.hub.repos.get(self.repo_key)
        if repo is None or (repo.private and self.user != repo.owner):
            # The Hub does not say whether it exists. It sends this code with 404 only, but huggingface_hub treats a
            # 401 from an https:// address alike, and ours is http://.
            status, message = (404, "Repository not found") if self.user else (401, ANONYMOUS)
            raise HubError(status, message, "RepoNotFound")
        return repo

    def _writable_repo(self, as_pull_request: bool = False) -> Repo:
        """Anyone with a write token may open a pull request; all else is the owner's."""
        repo = self._readable_repo()
        if not self.user:
            raise HubError(401, ANONYMOUS, "RepoNotFound")
        if not self.can_write:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if self.user != repo.owner and not (as_pull_request or self.creates_pr):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def whoami(self) -> Answer:
        if not self.user:
            raise HubError(401, ANONYMOUS)
        auth = {"accessToken": {"role": "write" if self.can_write else "read"}}
        return json_answer({"type": "user", "name": self.user, "orgs": [], "auth": auth})

    def validate_yaml(self) -> Answer:
        """Whether the metadata parses; the real Hub also checks its values (license names and so on)."""
        problems: dict[str, list[dict[str, str]]] = {"errors": [], "warnings": []}
        try:
            metadata = card_metadata(json.loads(self.body)["content"])
            if metadata is None:
                problems["warnings"].append({"message": "empty or missing yaml metadata in repo card"})
            elif not isinstance(metadata, dict):
                problems["errors"].append({"message": "the metadata is not a mapping"})
        except yaml.YAMLError as error:
            problems["errors"].append({"message": str(error)})
        return json_answer(problems, 400 if problems["errors"] else 200)

    def create_repo(self) -> Answer:
        wanted = json.loads(self.body)
        if not self.user:
            raise HubError(401, ANONYMOUS)
        owner = wanted.get("organization") or self.user
        repo_type = wanted.get("type", "model")
        if not self.can_write or owner != self.user:
            raise HubError(403, f"You don't have the rights to create a {repo_type} under {owner!r}")
        is_private = wanted.get("visibility") == "private"
        repo = Repo(repo_type, f"{owner}/{wanted['name']}", is_private, wanted.get("sdk"))
        url = f"{self.hub.url}/{repo.url_path}"
        if (repo.type, repo.id) in self.hub.repos:
            return json_answer({"error": f"You already created this {repo_type} repo", "url": url}, 409)
        files = {".gitattributes": GITATTRIBUTES.encode()} | (NEW_SPACE if repo.sdk == "static" else {})
        repo.commit(files, "initial commit", self.user, "main", None)
        self.hub.repos[repo.type, repo.id] = repo
        return json_answer({"url": url, "name": repo.id, "private": repo.private})

    def repo_info(self) -> Answer:
        repo = self._readable_repo()
        commit = repo.at(self.revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in self.query:
            for sibling in siblings:
                info = file_info(sibling["rfilename"], commit.files[sibling["rfilename"]])
                sibling |= {"size": info["size"], "blobId": info["oid"]}
                if "lfs" in info:
                    sibling["lfs"] = {**info["lfs"], "sha256": info["lfs"]["oid"]}
        card = card_metadata(commit.files.get("README.md", b"").decode())
        info = {"id": repo.id, "author": repo.owner, "sha": commit.id, "private": repo.private}
        sdk = {"sdk": repo.sdk} if repo.type == "space" else {}
        return json_answer({**info, **sdk, "cardData": card, "siblings": siblings})

    def tree(self) -> Answer:
        """All files and folders below a folder, or only its own."""
        files = self._readable_repo().at(self.revision).files
        prefix = f"{self.names['path']}/" if self.names["path"] else ""
        entries = {path: file_info(path, data) for path, data in files.items() if path.startswith(prefix)}
        if prefix and not entries:
            raise HubError(404, f"{prefix} does not exist on {self.revision!r}", "EntryNotFound")
        for path in list(entries):
            for folder in PurePosixPath(path).parents:
                if str(folder).startswith(prefix) and str(folder) != ".":
                    entries[str(folder)] = folder_info(str(folder))
        if self.query.get("recursive") != ["true"]:
            entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(prefix)}
        return json_answer([entries[path] for path in sorted(entries)])

    def paths_info(self) -> Answer:
        """Paths that do not exist are left out, as on the Hub."""
        files = self._readable_repo().at(self.revision).files
        infos = []
        for path in parse_qs(self.body.decode())["paths"]:
            if path in files:
                infos.append(file_info(path, files[path]))
            elif any(other.startswith(path.rstrip("/") + "/") for other in files):
                infos.append(folder_info(path.rstrip("/")))
        return json_answer(infos)

    def list_refs(self) -> Answer:
        refs: dict[str, list[dict[str, str]]] = {"branches": [], "pullRequests": [], "converts": [], "tags": []}
        for name, commit in self._readable_repo().refs.items():
            if name.startswith("refs/pr/"):
                number = name.removeprefix("refs/pr/")
                refs["pullRequests"].append({"name": number, "ref": name, "targetCommit": commit.id})
            else:
                refs["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id})
        return json_answer(refs)

    def create_branch(self) -> Answer:
        repo = self._writable_repo()
        branch = self.revision
        if branch in repo.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.refs[branch] = repo.at(json.loads(self.body).get("startingPoint", "main"))
        return json_answer({})

    def preupload(self) -> Answer:
        """Says which files go through LFS, and what is there already (clients leave out what did not change)."""
        files = self._writable_repo().at(self.revision).files
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            mode = "lfs" if is_lfs(path, wanted["size"]) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in files:
                info = file_info(path, files[path])
                answer["oid"] = info["lfs"]["oid"] if "lfs" in info else info["oid"]
            answers.append(answer)
        return json_answer({"files": answers})

    def lfs_batch(self) -> Answer:
        batch = json.loads(self.body)
        self._writable_repo(as_pull_request="ref" not in batch)  # clients name no ref when they open a PR
        objects = []
        for wanted in batch["objects"]:
            href = f"{self.hub.url}/lfs-storage/{wanted['oid']}"
            if wanted["oid"] not in self.hub.lfs_objects:
                wanted["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(wanted)
        return json_answer({"transfer": "basic", "objects": objects})

    def lfs_put(self) -> Answer:
        """No token is asked for: on the Hub this is a signed address of another host."""
        oid = self.names["oid"]
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, f"the content has not the SHA-256 {oid}")
        self.hub.lfs_objects[oid] = self.body
        return Answer()

    def lfs_verify(self) -> Answer:
        wanted = json.loads(self.body)
        if len(self.hub.lfs_objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(404, f"no object {wanted['oid']} of {wanted['size']} bytes")
        return json_answer({"success": True})

    def commit(self) -> Answer:
        repo = self._writable_repo()
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if self.revision not in repo.refs:
            raise HubError(404, f"Invalid rev id: {self.revision}", "RevisionNotFound")
        parent = repo.refs[self.revision]
        expected_parent = header["value"].get("parentCommit", parent.id)
        if self.creates_pr:
            parent = repo.at(expected_parent)
        elif expected_parent != parent.id:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")

        files = dict(parent.files)
        for operation in operations:
            kind, path = operation["key"], operation["value"]["path"]
            if kind == "file":
                files[path] = base64.b64decode(operation["value"]["content"])
            elif kind == "lfsFile":
                oid = operation["value"]["oid"]
                if oid not in self.hub.lfs_objects:
                    raise HubError(400, f"{path} points to an LFS object that does not exist: {oid}")
                files[path] = self.hub.lfs_objects[oid]
            else:
                folder = path.rstrip("/") + "/"
                deleted = [p for p in files if (p.startswith(folder) if kind == "deletedFolder" else p == path)]
                if not deleted:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for deleted_path in deleted:
                    del files[deleted_path]

        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        ref = f"refs/pr/{number}" if self.creates_pr else self.revision
        new = repo.commit(files, header["value"]["summary"], self.user, ref, parent)
        url = f"{self.hub.url}/{repo.url_path}"
        answer = {"success": True, "commitOid": new.id, "commitUrl": f"{url}/commit/{new.id}", "hookOutput": ""}
        if self.creates_pr:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        return json_answer(answer)

    def resolve(self) -> Answer:
        """A file, or a part of it. The Hub sends LFS files from another host; here they come from the same one."""
        commit = self._readable_repo().at(self.revision)
        path = self.names["path"]
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.id})
        data = commit.files[path]
        info = file_info(path, data)
        etag = f'"{info["lfs"]["oid"] if "lfs" in info else info["oid"]}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        headers["Access-Control-Allow-Origin"] = "*"  # a page of any origin may load a public model
        if "lfs" in info:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Answer(200, data, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(len(data) - int(last), 0)  # "bytes=-5": the last five
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise HubError(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Answer(206, data[start:end], headers)

    def no_dataset_viewer(self) -> Answer:
        """`datasets` asks http://datasets-server.<host of the Hub> for converted data, and carries on without."""
        raise HubError(404, "The dataset viewer is not available.")


API = r"/api/(?P<type>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?P<type>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[Call], Answer]]] = [
    ("GET", r"/api/whoami-v2", Call.whoami),
    ("POST", r"/api/validate-yaml", Call.validate_yaml),
    ("POST", r"/api/repos/create", Call.create_repo),
    ("GET", rf"{API}", Call.repo_info),
    ("GET", rf"{API}/revision/{REVISION}", Call.repo_info),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", Call.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", Call.paths_info),
    ("GET", rf"{API}/refs", Call.list_refs),
    ("POST", rf"{API}/branch/{REVISION}", Call.create_branch),
    ("POST", rf"{API}/preupload/{REVISION}", Call.preupload),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Call.lfs_batch),
    ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})", Call.lfs_put),
    ("POST", r"/lfs-storage/(?P<oid>[0-9a-f]{64})/verify", Call.lfs_verify),
    ("POST", rf"{API}/commit/{REVISION}", Call.commit),
    ("GET", rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", Call.resolve),
    ("HEAD", rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", Call.resolve),
    ("GET", r"http://datasets-server\.[^/]+/(?:info|parquet)", Call.no_dataset_viewer),
]


class LoopbackHub:
    """The Hub of one test; empty at first.

    Args:
        tokens: token -> (user, may it write). A user owns the repositories of the namespace of that name.
    """

    def __init__(self, tokens: Mapping[str, tuple[str, bool]] = DEFAULT_TOKENS):
        self.tokens = dict(tokens)
        self.repos: dict[tuple[RepoType, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}  # SHA-256 -> content
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()  # clients upload several files at a time

    def __enter__(self) -> LoopbackHub:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # A short poll: shutdown() waits for it.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def env(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """The environment of a process that must see this Hub and nothing else of the network.

        Args:
            home: becomes HF_HOME, the caches of all the libraries; use a new folder for an empty cache.
            token: the process logs in with it; None for an anonymous one.
        """
        inherited = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS|DATASETS)_|.*_proxy$", re.IGNORECASE)
        env = {name: value for name, value in os.environ.items() if not inherited.match(name)}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }
        # This server is the proxy for all other hosts: it refuses (501) and records what would have left.
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            env[name] = env[name.lower()] = self.url
        env["NO_PROXY"] = env["no_proxy"] = "127.0.0.1,localhost"
        if token is not None:
            env["HF_TOKEN"] = token
        return env

    def add_repo(
        self,
        repo_type: RepoType,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        sdk: str | None = None,
    ) -> str:
        """A repository with one commit; returns the commit id."""
        repo = self.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private, sdk)
        return repo.commit(files, "initial commit", repo.owner, "main", None).id

    def add_commit(
        self, repo_id: str, files: Mapping[str, bytes], revision: str = "main", *, repo_type: RepoType = "model"
    ) -> str:
        """Someone else's commit, which adds or replaces `files`; returns its id."""
        repo = self.repos[repo_type, repo_id]
        parent = repo.refs[revision]
        return repo.commit({**parent.files, **files}, "update", repo.owner, revision, parent).id

    def files(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> dict[str, bytes]:
        return dict(self.repos[repo_type, repo_id].at(revision).files)

    def commits(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> list[Commit]:
        """The history of `revision`, newest first."""
        history: list[Commit] = []
        commit: Commit | None = self.repos[repo_type, repo_id].at(revision)
        while commit is not None:
            history.append(commit)
            commit = commit.parent
        return history

    def fail_next(self, method: str, path_regex: str, status: int = 503, times: int = 1) -> None:
        """Answer the next `times` requests that match with `status`, and do nothing else for them.

        `path_regex` is searched for in the path with its query, as in `requests`.
        """
        self._faults.append(Fault(method, re.compile(path_regex), times, status))

    def drop_next(self, method: str, path_regex: str, times: int = 1, during: Cut = "request") -> None:
        """Cut the connection of the next `times` requests that match.

        "request": half of the body is read, nothing is done. "response": all is done (a commit is there!), and the
        client gets half of the answer's body, or nothing of an answer that has none. "silence": nothing is done, and
        there is no answer until the client gives up.
        """
        self._faults.append(Fault(method, re.compile(path_regex), times, during))

    @property
    def unexpected(self) -> list[Request]:
        """Requests that no route knows, and those to other hosts."""
        return [request for request in self.requests if request.status == 501]

    def take_fault(self, method: str, path: str) -> int | Cut | None:
        with self._lock:
            for fault in self._faults:
                if fault.remaining > 0 and fault.method == method and fault.path.search(path):
                    fault.remaining -= 1
                    return fault.action
        return None

    def answer(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        """Find the route and call its handler."""
        address, _, query = path.partition("?")
        for route_method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, address)
            if method != route_method or match is None:
                continue
            try:
                names = {name: unquote(value) for name, value in match.groupdict("").items()}
                call = Call(self, *self._login(headers), parse_qs(query), headers, body, names)
                with self._lock:
                    return handler(call)
            except HubError as error:
                return error.answer
            except Exception:  # a bug in here: 501, since clients retry 500 for half a minute
                return Answer(501, traceback.format_exc().encode())
        return HubError(501, f"LoopbackHub has no route {method} {path}").answer

    def _login(self, headers: Message) -> tuple[str, bool]:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[token] if token else ("", False)


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LoopbackHub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def server_close(self) -> None:
        """Also end the connections that clients keep, else they go on being served."""
        super().server_close()
        for connection in self.connections:
            with suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a request otherwise
    server: _Server

    def _serve(self) -> None:
        hub = self.server.hub
        fault = hub.take_fault(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if fault == "request":
            self.rfile.read(length // 2)
            hub.requests.append(Request(self.command, self.path, None))
            self._reset_connection()
            return
        body = self.rfile.read(length)
        if fault == "silence":
            self.rfile.read(1)  # it waits for the client's next word, which is that it leaves
            self.close_connection = True
            return
        if not isinstance(fault, int):
            answer = hub.answer(self.command, self.path, self.headers, body)
        elif fault >= 502:  # the load balancer speaks, and it speaks HTML
            answer = Answer(fault, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
        else:
            answer = HubError(fault, "Injected fault").answer
        cut = fault == "response"
        hub.requests.append(Request(self.command, self.path, None if cut else answer.status))
        self._send(answer, cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = _serve

    def _send(self, answer: Answer, cut: bool) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        self.close_connection |= cut
        if cut and not body:
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def _reset_connection(self) -> None:
        """Close with RST, as when a machine on the way fails; a plain close may let the client send on unaware."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # before the server's own close, which says goodbye (FIN) first
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: see `LoopbackHub.requests`."""
