"""An index that is kept in step with documents. Its state is in the records: each has its file, and the file's hash."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import sha256
from ..passages import find_files, passage_splitter, read_files
from . import SearchIndex

VERSION = ("file", "file_sha256", "file_passages")  # what a passage was cut from; the last is a number of passages
HEADING_SHARE = 1 / 8  # of what is encoded are the headings above a passage, at most (docs/decisions.md, D53)


def sync(index: SearchIndex, paths: Sequence[str | Path], show_progress_bar: bool = False) -> dict[str, int]:
    """Make the passages of an index those of the documents at `paths`, encoding only what is not stored.

    Documents are files, and all that is in folders. Passages of any others are removed; records that no sync made stay.
    Killed at any moment and run again, it leaves the same records. A document that cannot be read is named in the log.

    Returns: what became of how many files, and of how many passages; moved are those that kept their embedding.
    Raises: InputError: as `find_files` and `SearchIndex.upsert`, or if a record that no sync made has a passage's id.
    """
    files = find_files(paths)
    now = {(file, sha256(path)) for file, path in files.items() if os.access(path, os.R_OK)}
    known = "file_sha256" in index.store.fields()
    rows = index.store.rows([("file_sha256", ">=", "")], VERSION) if known else []  # all that have one
    stored = {row["id"]: tuple(row[field] for field in VERSION) for row in rows}
    counts = Counter(stored.values())
    whole = {version for version, count in counts.items() if version[2] == count and version[:2] in now}
    current, before = {file for file, _, _ in whole}, {file: sha for file, sha, _ in counts}
    to_read = {file: path for file, path in files.items() if file not in current}
    written: list[tuple] = []  # id, file, its hash, whether the embedding was stored
    if to_read:
        index.upsert(changed_passages(index, to_read, stored, written), show_progress_bar)
    kept = {name for name, version in stored.items() if version in whole} | {name for name, *_ in written}
    removed = index.delete(stored.keys() - kept)

    read = {file: sha for _, file, sha, _ in written}
    arrived = Counter(read[file] for file in read.keys() - before.keys())
    gone = Counter(before[file] for file in before.keys() - files.keys())
    renamed, moved = (arrived & gone).total(), sum(moved for *_, moved in written)
    return {
        "new files": arrived.total() - renamed,
        "changed files": len(read) - arrived.total(),
        "renamed files": renamed,
        "deleted files": gone.total() - renamed,
        "unchanged files": len(current),
        "skipped files": len(to_read) - len(read),
        "encoded passages": len(written) - moved,
        "moved passages": moved,
        "removed passages": removed,
    }


def changed_passages(
    index: SearchIndex, files: Mapping[str, Path], stored: Mapping[str, tuple], written: list[tuple]
) -> Iterator[dict[str, Any]]:
    """The passages of these files, below their headings, with what is stored of their embeddings."""
    known = {value for version in stored.values() for value in version}
    headings = passage_splitter(index.pipeline, HEADING_SHARE)
    for records in read_files(files, passage_splitter(index.pipeline, 1 - HEADING_SHARE)):
        for row in index.store.rows([("id", "in", [record["id"] for record in records])], []):
            if row["id"] not in stored:
                raise InputError(f"{index.address} has a record {row['id']!r} that no sync made. Delete that record.")
        embeddings: dict[str, Any] = {}
        for field in VERSION[:2]:
            if (value := records[0][field]) in known:
                equal = [(field, ">=", value), (field, "<=", value)]  # milvus-lite has no `in` for metadata
                rows = index.store.rows(equal, ["text", "embedding"])
                embeddings |= {row["text"]: row["embedding"] for row in rows}
        for record in records:
            heading = headings.chunks(record["heading"] or record["title"])[0]
            record["text"] = f"{heading}\n\n{record['text']}"
            record["embedding"] = embeddings.get(record["text"])
            written.append((record["id"], record["file"], record["file_sha256"], record["embedding"] is not None))
            yield record
