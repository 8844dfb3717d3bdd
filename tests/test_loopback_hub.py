"""The loopback Hub behaves as the real clients expect: huggingface_hub here, datasets and transformers in fresh
processes, since they read HF_ENDPOINT when imported.

    python -m pytest tests/test_loopback_hub.py -q
"""

import hashlib
import io
import json
from pathlib import Path

import fresh_process
import hub_datasets
import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import close_session, httpx
from loopback_hub import READ_TOKEN, WRITE_TOKEN, LoopbackHub

pytestmark = pytest.mark.slow  # they test what other tests use

MODEL = "tester/tiny"
LARGE = bytes(range(256)) * (48 * 1024)  # 12 MiB: over the size at which the Hub puts a file into LFS
FILES = {"README.md": b"---\nlicense: mit\n---\n# Tiny\n", "folder/vocab.txt": b"[PAD]\n", "model.safetensors": LARGE}


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=WRITE_TOKEN)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def run_python(hub: LoopbackHub, home: Path, code: str) -> str:
    """What `code` prints in a fresh process that sees only this Hub."""
    return fresh_process.run_stranger(code, home, hub.env(home))


def posts(hub: LoopbackHub, part_of_path: str) -> list[int | None]:
    return [status for method, path, status in hub.requests if method == "POST" and part_of_path in path]


# ---- Upload ----


def test_whoami_names_the_user_of_the_token(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == "tester"
    assert api.whoami(token=READ_TOKEN)["auth"]["accessToken"]["role"] == "read"


def test_a_new_repository_holds_only_gitattributes(hub: LoopbackHub, api: HfApi) -> None:
    url = api.create_repo(MODEL)
    assert (url, url.repo_id, url.repo_type) == (f"{hub.url}/{MODEL}", MODEL, "model")
    assert api.list_repo_files(MODEL) == [".gitattributes"]


def test_creating_a_repository_twice_is_an_error_unless_exist_ok(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("tester/data", repo_type="dataset")
    assert api.create_repo("tester/data", repo_type="dataset", exist_ok=True).repo_type == "dataset"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("tester/data", repo_type="dataset")
    assert error.value.response.status_code == 409


def test_upload_folder_makes_one_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(MODEL)
    info = api.upload_folder(repo_id=MODEL, folder_path=write_files(tmp_path, FILES), commit_message="Upload")
    assert [commit.title for commit in hub.commits(MODEL)] == ["Upload", "initial commit"]
    assert info.oid == hub.commits(MODEL)[0].id
    assert {path: data for path, data in hub.files(MODEL).items() if path != ".gitattributes"} == FILES
    assert [r.status for r in hub.requests if r.method == "PUT"] == [200]  # the weights, and only they, were LFS


def test_upload_to_a_dataset(hub: LoopbackHub, api: HfApi) -> None:
    url = api.create_repo("tester/data", repo_type="dataset")
    upload = CommitOperationAdd("data/train.parquet", b"rows")
    info = api.create_commit("tester/data", [upload], commit_message="Add rows", repo_type="dataset")
    assert info.commit_url == f"{url}/commit/{info.oid}"
    assert hub.files("tester/data", info.oid, repo_type="dataset")["data/train.parquet"] == b"rows"
    assert api.repo_info("tester/data", repo_type="dataset").sha == info.oid


def test_upload_to_a_static_space(hub: LoopbackHub, api: HfApi) -> None:
    url = api.create_repo("tester/demo", repo_type="space", space_sdk="static")
    assert (url, url.repo_type) == (f"{hub.url}/spaces/tester/demo", "space")
    assert "index.html" in api.list_repo_files("tester/demo", repo_type="space")  # the Hub's own
    uploads = [CommitOperationAdd("index.html", b"<p>Mine</p>"), CommitOperationAdd("logo.zip", b"lfs")]
    info = api.create_commit("tester/demo", uploads, commit_message="Add a page", repo_type="space")
    assert info.commit_url == f"{url}/commit/{info.oid}"
    files = hub.files("tester/demo", repo_type="space")
    assert (files["index.html"], files["logo.zip"]) == (b"<p>Mine</p>", b"lfs")
    space = api.space_info("tester/demo")
    assert (space.sdk, space.sha, space.private) == ("static", info.oid, False)
    assert ("model", "tester/demo") not in hub.repos


def test_uploading_the_same_folder_again_makes_no_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(MODEL)
    folder = write_files(tmp_path, FILES)
    first = api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert api.upload_folder(repo_id=MODEL, folder_path=folder).oid == first.oid
    assert len(hub.commits(MODEL)) == 2


def test_delete_patterns_remove_files_in_the_same_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("model", MODEL, {"old.txt": b"old", "folder/older.txt": b"older"})
    folder = write_files(tmp_path, {"new.txt": b"new"})
    api.upload_folder(repo_id=MODEL, folder_path=folder, delete_patterns=["*.txt"])
    assert hub.files(MODEL) == {"new.txt": b"new"}
    assert len(hub.commits(MODEL)) == 2


def test_deleting_a_file_that_is_not_there_is_an_error(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"a"})
    with pytest.raises(EntryNotFoundError):
        api.create_commit(MODEL, [CommitOperationDelete("b.txt")], commit_message="delete")


def test_commits_are_immutable_snapshots(hub: LoopbackHub, api: HfApi) -> None:
    files = {"a.txt": b"one"}
    first = hub.add_repo("model", MODEL, files)
    files["a.txt"] = hub.files(MODEL)["a.txt"] = b"no effect"
    second = hub.add_commit(MODEL, {"a.txt": b"two"})
    assert [hub.files(MODEL, revision)["a.txt"] for revision in (first, second, "main")] == [b"one", b"two", b"two"]
    assert len(first) == 40 and first != second


def test_a_commit_on_an_outdated_parent_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    parent = hub.add_repo("model", MODEL, {"a.txt": b"a"})
    hub.add_commit(MODEL, {"b.txt": b"someone else's"})
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=MODEL, parent_commit=parent)
    assert error.value.response.status_code == 412
    assert "c.txt" not in hub.files(MODEL)


def test_a_pull_request_leaves_main_alone(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    main = hub.add_repo("model", MODEL, {"a.txt": b"a"})
    folder = write_files(tmp_path, {"model.safetensors": b"weights"})
    info = api.upload_folder(repo_id=MODEL, folder_path=folder, create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert info.pr_url == f"{hub.url}/{MODEL}/discussions/1"
    assert api.model_info(MODEL).sha == main
    assert api.model_info(MODEL, revision="refs/pr/1").sha == info.oid
    assert hub.files(MODEL, "refs/pr/1") == {"a.txt": b"a", "model.safetensors": b"weights"}

    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=MODEL, revision="refs/pr/1")
    assert len(hub.commits(MODEL, "refs/pr/1")) == 3
    (pull_request,) = api.list_repo_refs(MODEL, include_pull_requests=True).pull_requests or []
    assert (pull_request.name, pull_request.ref) == ("1", "refs/pr/1")


def test_a_branch_starts_at_its_revision_and_takes_commits(hub: LoopbackHub, api: HfApi) -> None:
    first = hub.add_repo("model", MODEL, {"a.txt": b"one"})
    hub.add_commit(MODEL, {"a.txt": b"two"})
    api.create_branch(MODEL, branch="v1/x", revision=first)
    api.create_branch(MODEL, branch="v1/x", exist_ok=True)
    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=MODEL, revision="v1/x")
    assert hub.files(MODEL, "v1/x") == {"a.txt": b"one", "b.txt": b"b"}
    assert hub.files(MODEL) == {"a.txt": b"two"}
    assert {branch.name for branch in api.list_repo_refs(MODEL).branches} == {"main", "v1/x"}


@pytest.mark.parametrize("readme", ["---\nlicense: [mit\n---\n", "---\njust text\n---\n"])
def test_a_readme_with_bad_metadata_is_refused_before_the_upload(hub: LoopbackHub, api: HfApi, readme: str) -> None:
    hub.add_repo("model", MODEL, {})
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=readme.encode(), path_in_repo="README.md", repo_id=MODEL)
    assert posts(hub, "/commit/") == []


def test_a_readme_without_metadata_is_a_warning(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# Tiny", path_in_repo="README.md", repo_id=MODEL)


def test_model_card_push_to_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("model", MODEL, {})
    run_python(
        hub,
        tmp_path,
        f"""
        from huggingface_hub import ModelCard
        ModelCard("---\\nlicense: mit\\n---\\n# Tiny").push_to_hub("{MODEL}")
        assert ModelCard.load("{MODEL}").data.license == "mit"
        """,
    )
    assert posts(hub, "/api/validate-yaml") == [200, 200]  # the card's own check and the commit's


# ---- Download ----


def test_listings_agree_with_git_and_sha256(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"hello\n", "x/y/w.bin": b"weights"})
    small, large = api.get_paths_info(MODEL, ["a.txt", "x/y/w.bin", "missing"])
    assert isinstance(small, RepoFile) and isinstance(large, RepoFile)
    # The expected id is what `echo hello | git hash-object --stdin` prints.
    assert (small.blob_id, small.lfs) == ("ce013625030ba8dba906f756967f9e9ca394464a", None)
    assert large.lfs is not None and large.lfs.sha256 == hashlib.sha256(b"weights").hexdigest()
    siblings = {s.rfilename: s for s in api.model_info(MODEL, files_metadata=True).siblings or []}
    assert siblings["a.txt"].blob_id == small.blob_id
    assert siblings["x/y/w.bin"].lfs == large.lfs
    assert [entry.path for entry in api.list_repo_tree(MODEL)] == ["a.txt", "x"]
    assert [entry.path for entry in api.list_repo_tree(MODEL, recursive=True)] == ["a.txt", "x", "x/y", "x/y/w.bin"]
    assert [entry.path for entry in api.list_repo_tree(MODEL, "x", recursive=True)] == ["x/y", "x/y/w.bin"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(MODEL, "missing"))


@pytest.mark.parametrize("path", FILES)
def test_hf_hub_download_returns_the_same_bytes(hub: LoopbackHub, api: HfApi, tmp_path: Path, path: str) -> None:
    hub.add_repo("model", MODEL, FILES)
    assert Path(api.hf_hub_download(MODEL, path, cache_dir=tmp_path)).read_bytes() == FILES[path]


def test_a_dataset_may_have_the_name_of_a_model(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"model"})
    hub.add_repo("dataset", MODEL, {"a.txt": b"dataset"})
    path = api.hf_hub_download(MODEL, "a.txt", repo_type="dataset", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"dataset"
    assert api.dataset_info(MODEL).sha == hub.commits(MODEL, repo_type="dataset")[0].id


@pytest.mark.parametrize(
    ("wanted", "expected"), [("2-4", b"234"), ("7-", b"789"), ("-2", b"89"), ("8-99", b"89"), ("0-0", b"0")]
)
def test_a_range_is_a_part_of_the_file(hub: LoopbackHub, wanted: str, expected: bytes) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"0123456789"})
    url = f"{hub.url}/{MODEL}/resolve/main/a.txt"
    answer = huggingface_hub.get_session().get(url, headers={"Range": f"bytes={wanted}"})
    assert (answer.status_code, answer.content) == (206, expected)
    first = b"0123456789".index(expected)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/10"


def test_a_range_past_the_end_is_refused(hub: LoopbackHub) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"0123456789"})
    url = f"{hub.url}/{MODEL}/resolve/main/a.txt"
    assert huggingface_hub.get_session().get(url, headers={"Range": "bytes=10-"}).status_code == 416


def test_an_interrupted_download_resumes(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**20)  # what a cut chunk had is lost; the default is 10 MB
    hub.add_repo("model", MODEL, FILES)
    hub.drop_next("GET", r"/model\.safetensors", during="response")
    path = api.hf_hub_download(MODEL, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    assert [status for method, _, status in hub.requests if method == "GET"] == [None, 206]


def test_snapshot_download_at_a_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    first = hub.add_repo("model", MODEL, FILES)
    hub.add_commit(MODEL, {"README.md": b"later"})
    folder = Path(api.snapshot_download(MODEL, revision=first, cache_dir=tmp_path))
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")} == FILES


def test_file_exists(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {"folder/a b.txt": b"a"})
    assert api.file_exists(MODEL, "folder/a b.txt")
    assert not api.file_exists(MODEL, "b.txt")
    assert not api.file_exists(MODEL, "folder/a b.txt", revision="none")
    assert not api.file_exists("tester/none", "folder/a b.txt")


def test_what_is_not_there_has_its_own_exception(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"a"})
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(MODEL, "b.txt", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(MODEL, revision="none")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/none")


# ---- Who may do what ----


def test_a_private_repository_is_its_owners(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(MODEL, private=True)
    assert api.model_info(MODEL).private
    assert api.model_info(MODEL, token=READ_TOKEN).private
    hub.tokens["hf_other"] = ("other", True)
    for token, status in ((False, 401), ("hf_other", 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info(MODEL, token=token)
        assert error.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(MODEL, ".gitattributes", token=token, cache_dir=tmp_path)


@pytest.mark.parametrize(("token", "status"), [(False, 401), (READ_TOKEN, 403), ("hf_other", 403), ("hf_bad", 401)])
def test_who_may_not_write(hub: LoopbackHub, api: HfApi, token: str | bool, status: int) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"a"})
    hub.tokens["hf_other"] = ("other", True)
    calls = (
        lambda: api.create_repo("tester/new", token=token),
        lambda: api.create_branch(MODEL, branch="b", token=token),
        lambda: api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=MODEL, token=token),
    )
    for call in calls:
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert error.value.response.status_code == status
    assert len(hub.repos) == 1 and hub.files(MODEL) == {"a.txt": b"a"}


def test_anyone_with_a_write_token_may_open_a_pull_request(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", "other/model", {"a.txt": b"a"})
    weights = CommitOperationAdd("model.safetensors", b"weights")
    info = api.create_commit("other/model", [weights], commit_message="Add weights", create_pr=True)
    assert hub.files("other/model", info.pr_revision or "")["model.safetensors"] == b"weights"


# ---- Faults ----


def test_a_503_before_the_commit_is_retried_by_the_client(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    hub.fail_next("POST", "/preupload/")
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert posts(hub, "/preupload/") == [503, 200]


def test_a_503_on_the_commit_is_not(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    hub.fail_next("POST", "/commit/")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert error.value.response.status_code == 503
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert posts(hub, "/commit/") == [503, 200]


def test_a_cut_commit_request_leaves_nothing_and_may_be_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    hub.drop_next("POST", "/commit/")
    with pytest.raises(httpx.ReadError):  # not an HfHubHTTPError
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert hub.files(MODEL) == {}
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert hub.files(MODEL) == {"a.txt": b"a"}


def test_a_cut_commit_answer_hides_a_commit_that_was_made(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    hub.drop_next("POST", "/commit/", during="response")
    with pytest.raises(httpx.RemoteProtocolError):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL)
    assert hub.files(MODEL) == {"a.txt": b"a"}
    assert api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=MODEL).oid == hub.commits(MODEL)[0].id
    assert len(hub.commits(MODEL)) == 2


def test_a_cut_lfs_upload_is_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("model", MODEL, {})
    hub.drop_next("PUT", "/lfs-storage/")
    api.upload_file(path_or_fileobj=io.BytesIO(LARGE), path_in_repo="model.safetensors", repo_id=MODEL)
    assert [status for method, _, status in hub.requests if method == "PUT"] == [None, 200]
    assert hub.files(MODEL)["model.safetensors"] == LARGE


def test_lfs_content_must_have_its_sha256(hub: LoopbackHub) -> None:
    answer = huggingface_hub.get_session().put(f"{hub.url}/lfs-storage/{'0' * 64}", content=b"damaged")
    assert answer.status_code == 400
    assert hub.lfs_objects == {}


def test_a_download_that_cannot_start_is_not_found_locally(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("model", MODEL, {"a.txt": b"a"})
    hub.fail_next("HEAD", "/resolve/", status=500, times=9)
    monkeypatch.setattr("time.sleep", lambda _: None)  # five retries take 23 seconds
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(MODEL, "a.txt", cache_dir=tmp_path)


def test_a_hub_that_is_closed_is_gone() -> None:
    close_session()
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
        assert api.whoami()["name"] == "tester"
    for _ in range(2):  # the first on the connection that was kept, the second on a new one
        with pytest.raises(httpx.TransportError):
            api.whoami()


def test_an_unknown_request_is_kept_and_refused() -> None:
    with LoopbackHub() as hub:
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.url, token=WRITE_TOKEN).create_tag(MODEL, tag="v1")
        assert error.value.response.status_code == 501
        assert hub.unexpected == [("POST", f"/api/models/{MODEL}/tag/main", 501)]


def test_other_hosts_are_out_of_reach_in_a_process_of_this_hub(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        run_python(
            hub,
            tmp_path,
            """
            from huggingface_hub import get_session
            assert get_session().get("http://example.com/").status_code == 501
            try:
                get_session().get("https://huggingface.co/")
            except Exception as error:
                assert type(error).__name__ == "ProxyError", error
            else:
                raise AssertionError("reached")
            """,
        )
        assert hub.unexpected == [("GET", "http://example.com/", 501), ("CONNECT", "huggingface.co:443", 501)]


# ---- datasets and transformers ----


def test_load_dataset_reads_a_repository_like_sst2(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("dataset", "stanfordnlp/sst2", hub_datasets.sst2([("good", 1), ("bad", 0)], [("fine", 1)]))
    printed = run_python(
        hub,
        tmp_path,
        """
        import json
        from datasets import load_dataset
        splits = load_dataset("stanfordnlp/sst2")
        validation = load_dataset("stanfordnlp/sst2", split="validation")
        print(json.dumps([splits["train"][:], validation[:], validation.features["label"].names]))
        """,
    )
    train, validation, names = json.loads(printed)
    assert train == {"idx": [0, 1], "sentence": ["good", "bad"], "label": [1, 0]}
    assert validation == {"idx": [0], "sentence": ["fine"], "label": [1]}
    assert names == ["negative", "positive"]


def test_load_dataset_reads_a_configuration_at_a_pinned_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    repo_id = "sentence-transformers/natural-questions"
    pinned = hub.add_repo("dataset", repo_id, hub_datasets.natural_questions([("who", "old")]))
    hub.add_commit(repo_id, hub_datasets.natural_questions([("who", "new")]), repo_type="dataset")
    printed = run_python(
        hub,
        tmp_path,
        f"""
        import json
        from datasets import load_dataset
        rows = [load_dataset("{repo_id}", "pair", split="train", revision=r)[:] for r in ("{pinned}", None)]
        print(json.dumps(rows))
        """,
    )
    assert json.loads(printed) == [{"query": ["who"], "answer": ["old"]}, {"query": ["who"], "answer": ["new"]}]


def test_transformers_pushes_and_loads_a_model(hub: LoopbackHub, tmp_path: Path) -> None:
    printed = run_python(
        hub,
        tmp_path,
        f"""
        import torch
        from transformers import AutoModel, BertConfig, BertModel
        size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        model = BertModel(BertConfig(**size)).eval()
        model.push_to_hub("{MODEL}")
        loaded = AutoModel.from_pretrained("{MODEL}").eval()
        ids = torch.tensor([[1, 2, 3]])
        print(torch.equal(model(ids).last_hidden_state, loaded(ids).last_hidden_state))
        """,
    )
    assert printed == "True\n"
    assert {"config.json", "model.safetensors"} <= set(hub.files(MODEL))


def test_a_hub_that_falls_silent_does_nothing_until_the_client_gives_up(hub: LoopbackHub) -> None:
    hub.add_repo("model", MODEL, FILES)
    hub.drop_next("GET", "/api/models/", during="silence")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{hub.url}/api/models/{MODEL}", timeout=0.2)
    assert hub.requests == []
    assert httpx.get(f"{hub.url}/api/models/{MODEL}", timeout=20).status_code == 200
