"""An index that is kept in step with a folder, also by syncs that are killed.

python -m pytest tests/index/test_sync.py -q
"""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TEXTS
from milvus_server import milvus_server
from training_run import context

from tinybert_hf import index as module
from tinybert_hf.errors import InputError
from tinybert_hf.index import SearchIndex
from tinybert_hf.index.folder import FolderStore
from tinybert_hf.index.sync import sync

FIELDS = ("text", "file", "file_sha256", "file_passages", "title", "heading", "line")


@pytest.fixture
def encoder(model_folder: Path) -> Path:
    return model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four documents: two of several passages, in two formats."""
    write(tmp_path / "docs", "guide.md", "# Guide\n\n" + "\n\n".join(2 * TEXTS) + "\n\n## End\n\nThe end.")
    write(tmp_path / "docs", "tools/music.md", f"# Music\n\n{TEXTS[1]}")
    write(tmp_path / "docs", "tools/tar.html", f"<h1>Tar</h1><p>{2 * TEXTS[2]}</p><h2>More</h2><p>{2 * TEXTS[3]}</p>")
    write(tmp_path / "docs", "notes.txt", TEXTS[4])
    return tmp_path / "docs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_server("milvus-lite", tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


@pytest.fixture(params=("folder", pytest.param("milvus", marks=pytest.mark.interop)))
def index(request: pytest.FixtureRequest, encoder: Path, tmp_path: Path) -> SearchIndex:
    """Without documents; a folder needs no server."""
    if request.param == "folder":
        return SearchIndex(tmp_path / "docs.index", encoder)
    return SearchIndex(f"{request.getfixturevalue('server')}/docs_{uuid.uuid4().hex}", encoder)


def write(folder: Path, name: str, content: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def passages(index: SearchIndex) -> dict[str, dict[str, Any]]:
    """What is stored of documents, by id, without the embeddings."""
    fields = [name for name in FIELDS if name in index.store.fields() or name == "text"]
    rows = index.store.rows([("file_sha256", ">=", "")], fields)
    return {row["id"]: {name: value for name, value in row.items() if value is not None} for row in rows}


def embeddings(index: SearchIndex) -> dict[str, list[float]]:
    rows = index.store.rows([("file_sha256", ">=", "")], ["embedding"])
    return {row["id"]: row["embedding"] for row in rows}


def assert_is_as_if_made_at_once(index: SearchIndex, folder: Path, encoder: Path, scratch: Path) -> None:
    fresh = SearchIndex(scratch / uuid.uuid4().hex, encoder)
    sync(fresh, [folder])
    assert passages(index) == passages(fresh)
    found, expected = embeddings(index), embeddings(fresh)
    np.testing.assert_allclose(
        np.array([found[name] for name in sorted(found)]),
        np.array([expected[name] for name in sorted(expected)]),
        atol=1e-5,
    )


def changed(done: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in done.items() if number}


def test_a_first_sync_stores_every_passage_below_its_headings(index: SearchIndex, folder: Path) -> None:
    done = sync(index, [folder])
    assert changed(done) == {"new files": 4, "encoded passages": len(index)}
    stored = passages(index)
    assert {record["file"] for record in stored.values()} == {
        "guide.md",
        "tools/music.md",
        "tools/tar.html",
        "notes.txt",
    }
    assert stored["tools/music.md#1"]["text"] == f"Music\n\n# Music\n\n{TEXTS[1]}"
    assert stored["tools/music.md#1"]["line"] == 1
    assert stored["notes.txt#1"]["text"] == f"notes\n\n{TEXTS[4]}"
    assert stored["tools/tar.html#2"]["heading"] == "Tar > More"
    assert len([name for name in stored if name.startswith("guide.md#")]) > 3


def test_what_is_stored_fits_the_model_and_so_nothing_is_cut_off(
    index: SearchIndex, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, "deep.md", "# " + "A very long heading of many words " * 5 + "\n\n" + " ".join(TEXTS))
    sync(index, [folder])
    lengths = [
        len(ids) for ids in index.pipeline.tokenizer([row["text"] for row in passages(index).values()])["input_ids"]
    ]
    assert 24 < max(lengths) <= 32
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_a_second_sync_reads_and_writes_nothing(index: SearchIndex, folder: Path, encoder: Path) -> None:
    sync(index, [folder])
    again = SearchIndex(index.address)
    assert changed(sync(again, [folder])) == {"unchanged files": 4}
    assert "pipeline" not in vars(again), "the model was loaded"


def test_only_changed_passages_are_encoded(index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path) -> None:
    sync(index, [folder])
    text = (folder / "guide.md").read_text()
    write(folder, "guide.md", text.replace("The end.", "Another end."))
    done = changed(sync(index, [folder]))
    moved = done.pop("moved passages")
    assert done == {"changed files": 1, "unchanged files": 3, "encoded passages": 1}
    assert moved == len([name for name in passages(index) if name.startswith("guide.md#")]) - 1
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)


def test_passages_that_a_shorter_file_no_longer_has_are_removed(
    index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path
) -> None:
    sync(index, [folder])
    before = len(index)
    write(folder, "guide.md", "# Guide\n\nShort.")
    done = sync(index, [folder])
    assert done["removed passages"] == before - len(index) > 1
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)


def test_a_renamed_file_is_not_encoded_again(index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path) -> None:
    sync(index, [folder])
    (folder / "guide.md").rename(folder / "tools" / "handbook.md")
    done = changed(sync(index, [folder]))
    assert done.pop("moved passages") == done.pop("removed passages") > 3
    assert done == {"renamed files": 1, "unchanged files": 3}
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)


def test_files_that_swap_their_names_are_found(index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path) -> None:
    sync(index, [folder])
    guide, music = folder / "guide.md", folder / "tools" / "music.md"
    contents = guide.read_text(), music.read_text()
    guide.write_text(contents[1])
    music.write_text(contents[0])
    done = sync(index, [folder])
    assert (done["changed files"], done["encoded passages"]) == (2, 0)
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)


def test_a_deleted_file_is_removed_and_a_touched_one_is_unchanged(
    index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path
) -> None:
    sync(index, [folder])
    (folder / "tools" / "tar.html").unlink()
    os.utime(folder / "guide.md", (1, 1))
    assert changed(sync(index, [folder])) == {"deleted files": 1, "unchanged files": 3, "removed passages": 2}
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)


def test_a_file_that_can_no_longer_be_read_is_removed_and_counted(
    index: SearchIndex, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sync(index, [folder])
    write(folder, "notes.txt", " ")
    for _ in range(2):
        done = sync(index, [folder])
        assert (done["skipped files"], done["new files"], done["changed files"]) == (1, 0, 0)
    warnings = [record.message for record in caplog.records if record.levelname != "INFO"]
    assert warnings == ["notes.txt was skipped: ValueError: it holds no text"] * 2
    assert not [name for name in passages(index) if name.startswith("notes")]


def test_records_that_no_sync_made_stay(index: SearchIndex, folder: Path) -> None:
    index.add([{"id": "own", "text": TEXTS[0], "file": "guide.md"}, TEXTS[1]])
    sync(index, [folder])
    (folder / "guide.md").unlink()
    sync(index, [folder])
    assert index.store.rows([("id", "in", ["own"])], ["text"]) == [{"id": "own", "text": TEXTS[0]}]
    assert len(index) == len(passages(index)) + 2
    assert index.search("music", top_k=3, filter={"file": {">=": "guide.md", "<=": "guide.md"}})[0]["id"] == "own"


def test_a_record_with_the_id_of_a_passage_is_not_overwritten(index: SearchIndex, folder: Path) -> None:
    index.add([{"id": "guide.md#2", "text": TEXTS[0]}])
    with pytest.raises(InputError, match=r"has a record 'guide.md#2' that no sync made"):
        sync(index, [folder])
    assert index.store.rows([("id", "in", ["guide.md#2"])], ["text"]) == [{"id": "guide.md#2", "text": TEXTS[0]}]


def test_a_sync_of_other_folders_replaces_the_first(
    index: SearchIndex, folder: Path, encoder: Path, tmp_path: Path
) -> None:
    sync(index, [folder])
    done = sync(index, [folder / "tools"])
    assert (done["renamed files"], done["deleted files"], done["encoded passages"]) == (2, 2, 0)
    assert_is_as_if_made_at_once(index, folder / "tools", encoder, tmp_path)


def test_nothing_is_removed_where_a_folder_is_empty(index: SearchIndex, folder: Path, tmp_path: Path) -> None:
    sync(index, [folder])
    before = len(index)
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(InputError, match="no document"):
        sync(index, [tmp_path / "unmounted"])
    assert len(index) == before


# ---- Killed ----


def sync_until(call: int, address: Path, encoder: Path, folder: Path) -> None:
    """In the child: a sync in batches of three, killed before its `call`-th change to the store."""
    left = [call]

    def counted(method: Any) -> Any:
        def change(self: FolderStore, *arguments: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(self, *arguments)

        return change

    module.BATCH = 3
    for name in ("create", "add_fields", "write", "delete", "optimize"):
        setattr(FolderStore, name, counted(getattr(FolderStore, name)))
    sync(SearchIndex(address, encoder), [folder])


def kill_at(call: int, address: Path, encoder: Path, folder: Path) -> None:
    process = context.Process(target=sync_until, args=(call, address, encoder, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "this test would be vacuous: it ended before it was killed"


@pytest.mark.slow
def test_killed_at_any_change_and_run_again_it_ends_as_if_it_was_never_killed(
    encoder: Path, folder: Path, tmp_path: Path
) -> None:
    address = tmp_path / "docs.index"
    for call in (1, 2, 3, 4):  # the first sync: the table, its fields, two batches
        kill_at(call, address, encoder, folder)
    index = SearchIndex(address, encoder)
    assert len(index) > 0, "this test would be vacuous: nothing was written"
    done = sync(index, [folder])
    assert done["unchanged files"] + done["new files"] + done["changed files"] == 4
    assert_is_as_if_made_at_once(index, folder, encoder, tmp_path)

    (folder / "tools" / "music.md").rename(folder / "tools" / "songs.md")
    (folder / "notes.txt").unlink()
    write(folder, "guide.md", "# Guide\n\n" + "\n\n".join(2 * TEXTS[::-1]))
    for call in (1, 2, 3):
        kill_at(call, address, encoder, folder)
    sync(SearchIndex(address), [folder])
    assert_is_as_if_made_at_once(SearchIndex(address), folder, encoder, tmp_path)
