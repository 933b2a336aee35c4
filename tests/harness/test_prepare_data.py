"""One-time preparation: what the data folder holds, and what happens to bad input and interruptions."""

import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import dataset
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shards
from documents import END_OF_TEXT, BadInput, Tally
from folder import Source

import prepare

RunPrepare = Callable[..., "subprocess.CompletedProcess[str]"]


def manifest_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "public" / "manifest.json").read_bytes())
    return content


def shard_texts(folder: Path, tokenizer: prepare.Tokenizer, bos: int) -> list[str]:
    """The passages of a split, decoded."""
    documents = prepare.read_documents(folder, bos)
    return [tokenizer.enc.decode_bytes(d[1:].tolist()).decode("utf-8", "replace") for d in documents]


def test_manifest_lists_every_file_with_its_hash(prepared: Path) -> None:
    for side in ("public", "judge"):
        manifest = json.loads((prepared / side / "manifest.json").read_bytes())
        present = {
            p.relative_to(prepared / side).as_posix() for p in (prepared / side).rglob("*") if p.is_file()
        }
        assert set(manifest["files"]) == present - {"manifest.json"}
        for name, facts in manifest["files"].items():
            content = (prepared / side / name).read_bytes()
            assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_judge_manifest_belongs_to_the_public_one(prepared: Path) -> None:
    public = manifest_of(prepared)
    judge = json.loads((prepared / "judge" / "manifest.json").read_bytes())
    assert judge["public_fingerprint"] == public["fingerprint"]
    for key in ("version", "scale", "max_seq_len", "vocab_size", "bos_token_id", "score_tokens"):
        assert judge[key] == public[key]
    del public["fingerprint"]
    canonical = json.dumps(public, sort_keys=True).encode()
    assert hashlib.sha256(canonical).hexdigest() == judge["public_fingerprint"]


def test_counts_in_the_manifest_are_those_of_the_shards(prepared: Path) -> None:
    manifest = manifest_of(prepared)
    token_bytes = np.load(prepared / "public" / "tokenizer" / "token_bytes.npy")
    for split, folder in shards.FOLDER_OF_SPLIT.items():
        tokens = np.concatenate([np.fromfile(p, "<u2") for p in sorted((prepared / folder).glob("*.bin"))])
        assert len(tokens) == manifest["splits"][split]["tokens"]
        assert int(token_bytes[tokens].sum()) == manifest["splits"][split]["bytes"]


def test_nothing_is_lost_and_no_document_is_in_two_splits(prepared: Path, corpus_folder: Path) -> None:
    lines = (corpus_folder / "texts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    manifest = manifest_of(prepared)
    assert manifest["corpus"]["documents"] == len(texts)
    assert manifest["corpus"]["bytes"] == sum(len(text.encode()) for text in texts)
    expected = {split: 0 for split in shards.SPLITS}
    for text in texts:
        expected[shards.split_of(hashlib.sha256(text.encode()).digest())] += 1
    assert {split: facts["documents"] for split, facts in manifest["splits"].items()} == expected


def test_passages_start_with_bos_and_fit_a_row(prepared: Path) -> None:
    manifest = manifest_of(prepared)
    for document in prepare.read_documents(prepared / "public" / "train", manifest["bos_token_id"]):
        assert document[0] == manifest["bos_token_id"]
        assert 2 <= len(document) <= manifest["max_seq_len"] + 1


def test_the_judge_finds_as_many_rows_as_the_manifest_promises(prepared: Path) -> None:
    judge = json.loads((prepared / "judge" / "manifest.json").read_bytes())
    for folder, promised in (("val", judge["score_tokens"]), ("holdout", judge["holdout_score_tokens"])):
        documents = prepare.read_documents(prepared / "judge" / folder, judge["bos_token_id"])
        rows = list(prepare.pack_rows(documents, judge["max_seq_len"] + 1, prepare.PACKING_BUFFER))
        assert len(rows) * judge["max_seq_len"] >= promised > 0


def test_less_text_than_wanted_is_scored_as_far_as_it_goes(prepared: Path) -> None:
    scale, wanted = dataset.SCALES["cpu"], 10_000_000
    tokens = manifest_of(prepared)["splits"]["train"]["tokens"]
    assert 0.95 * tokens < dataset.score_tokens_of(prepared, "train", scale, 2 * tokens) < tokens
    with pytest.raises(BadInput, match=f"{wanted // 4} are needed"):
        dataset.score_tokens_of(prepared, "train", scale, wanted)


def test_documents_are_cut_except_where_scores_must_compare_with_upstream() -> None:
    library, climbmix = (corpus.Corpus(name, "", []) for name in ("stdlib", "climbmix"))
    lengths = [
        dataset.passage_tokens_of(c, dataset.SCALES[s]) for c in (library, climbmix) for s in dataset.SCALES
    ]
    assert lengths == [2048, 1024, 512, 256, None, 1024, 512, 256]
    ids = np.arange(5, dtype=np.uint16)
    assert shards.with_bos(ids, 9, 2).tolist() == [9, 0, 1, 9, 2, 3, 9, 4]
    assert shards.with_bos(ids, 9, None).tolist() == [9, 0, 1, 2, 3, 4]


def test_another_user_may_read_everything(prepared: Path) -> None:
    for path in [prepared, *prepared.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_the_result_does_not_depend_on_workers(
    prepared: Path, corpus_folder: Path, tmp_path: Path, run_prepare: RunPrepare
) -> None:
    done = run_prepare(
        "--out", tmp_path / "data", "--corpus", corpus_folder, "--scale", "cpu", "--workers", 1
    )
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "data")["fingerprint"] == manifest_of(prepared)["fingerprint"]


def test_same_request_again_does_nothing(
    prepared: Path, corpus_folder: Path, run_prepare: RunPrepare
) -> None:
    before = (prepared / "public" / "manifest.json").stat()
    again = run_prepare("--out", prepared, "--corpus", corpus_folder, "--scale", "cpu")
    assert (again.returncode, "already prepared" in again.stdout) == (0, True)
    after = (prepared / "public" / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_data_in_the_way_is_named(
    prepared: Path, corpus_folder: Path, tmp_path: Path, run_prepare: RunPrepare
) -> None:
    scale = run_prepare("--out", prepared, "--corpus", corpus_folder, "--scale", "gpu")
    origin = run_prepare("--out", prepared, "--corpus", "stdlib", "--scale", "cpu")
    (tmp_path / "data" / "photos").mkdir(parents=True)
    foreign = run_prepare("--out", tmp_path / "data", "--corpus", "stdlib", "--scale", "cpu")
    for result, reason in ((scale, "scale cpu"), (origin, "another corpus"), (foreign, "not prepared data")):
        assert result.returncode == 2
        assert reason in result.stderr and "remove" in result.stderr
        assert result.stderr.count("\n") == 1


def test_data_of_another_version_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "manifest.json").write_text(
        '{"version": 0, "scale": "cpu", "corpus": {"origin": "x"}}'
    )
    with pytest.raises(BadInput, match=r"another version.*remove"):
        dataset.check_prepared(tmp_path, "x", "cpu")


def write_lines(name: str, *lines: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("\n".join(lines))


def write_parquet_without_text(folder: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), folder / "a.parquet")


def write_parquet_of_numbers(folder: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), folder / "a.parquet")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda folder: None, "no .parquet, .jsonl, .json or .txt file"),
        (write_lines("a.jsonl", '{"body": "x"}'), 'line 1 has no field "text"'),
        (write_lines("a.jsonl", '{"text": "x"}', "", "[1]"), 'line 3 has no field "text"'),
        (write_lines("a.jsonl", "{"), "line 1 is not JSON"),
        (write_parquet_without_text, 'no column "text"'),
        (write_parquet_of_numbers, "does not hold strings"),
        (write_lines("a.parquet", "PAR1"), "not a readable parquet file"),
        (lambda folder: (folder / "a.txt").write_bytes(b"caf\xe9"), "not UTF-8"),
        (write_lines("a.txt", "one short text"), "too little text"),
    ],
)
def test_bad_folders_get_one_sentence(
    tmp_path: Path, run_prepare: RunPrepare, write: Callable[[Path], object], sentence: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder)
    result = run_prepare("--out", tmp_path / "data", "--corpus", folder, "--scale", "cpu")
    assert result.returncode == 2
    assert sentence in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"corpus"}


def test_too_few_documents_get_one_sentence(
    corpus_folder: Path, tmp_path: Path, run_prepare: RunPrepare
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one.txt").write_text((corpus_folder / "texts.jsonl").read_text()[:1_000_000])
    result = run_prepare("--out", tmp_path / "data", "--corpus", tmp_path / "corpus", "--scale", "cpu")
    assert result.returncode == 2
    assert "too few documents" in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_unknown_corpus_and_misplaced_shards(tmp_path: Path, run_prepare: RunPrepare) -> None:
    nowhere = run_prepare("--out", tmp_path / "data", "--corpus", tmp_path / "nowhere", "--scale", "cpu")
    assert (nowhere.returncode, "stdlib, climbmix, a folder or a file" in nowhere.stderr) == (2, True)
    shards = run_prepare("--out", tmp_path / "data", "--corpus", "stdlib", "--scale", "cpu", "--shards", 3)
    assert (shards.returncode, "--shards" in shards.stderr) == (2, True)


def test_a_full_disk_gets_one_sentence_and_leaves_nothing(
    corpus_folder: Path, tmp_path: Path, run_prepare: RunPrepare
) -> None:
    def small_files_only() -> None:  # the tokenizer fits, the shards do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    arguments = ("--out", tmp_path / "data", "--corpus", corpus_folder, "--scale", "cpu")
    result = run_prepare(*arguments, preexec_fn=small_files_only)
    assert result.returncode == 2
    assert "no room left" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_preparation_waits_for_nobody(
    corpus_folder: Path, tmp_path: Path, run_prepare: RunPrepare
) -> None:
    (tmp_path / "data.partial").mkdir()
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run_prepare("--out", tmp_path / "data", "--corpus", corpus_folder, "--scale", "cpu")
    finally:
        os.close(lock)
    assert (result.returncode, "another preparation is running" in result.stderr) == (2, True)
    assert (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("moment", ["data.partial/public", "data.partial/public/tokenizer/tokenizer.json"])
def test_a_killed_preparation_is_never_used_and_starts_clean(
    corpus_folder: Path, prepared: Path, tmp_path: Path, run_prepare: RunPrepare, moment: str
) -> None:
    arguments = ["--out", str(tmp_path / "data"), "--corpus", str(corpus_folder), "--scale", "cpu"]
    command = [sys.executable, str(Path(prepare.__file__)), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not (tmp_path / moment).exists():
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "data.partial").exists() and not (tmp_path / "data").exists()
    (tmp_path / "data.partial" / "left-over").touch()
    assert run_prepare(*arguments).returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"data"}
    assert manifest_of(tmp_path / "data")["fingerprint"] == manifest_of(prepared)["fingerprint"]
    assert not (tmp_path / "data" / "left-over").exists()


def test_folder_of_three_formats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p1", None, "", "p2"], "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.jsonl").write_text('{"text": "j1"}\n\n{"text": "j2\\u00e9", "id": 7}\n')
    (tmp_path / "c.txt").write_text("t1\nstill t1")
    (tmp_path / "ignored.md").write_text("no")
    found = corpus.open_corpus(corpus.Request(str(tmp_path)), tmp_path / "downloads", 1, None)
    texts = [text for part in found.parts for text in part.documents(Tally())]
    assert sorted(texts) == ["j1", "j2é", "p1", "p2", "t1\nstill t1"]
    assert {part.split for part in found.parts} == {None}


def test_folder_origin_notices_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    request = corpus.Request(str(tmp_path))
    before = corpus.origin_of(request)
    assert corpus.origin_of(corpus.Request(str(tmp_path), separator="blank-lines")) != before
    (tmp_path / "b.txt").write_text("b")
    assert corpus.origin_of(request) != before


def test_library_corpus_is_bounded_distinct_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LIBRARY_SUFFIXES", {".pyi"})  # all of them take ten seconds to read
    first, second = corpus.library_corpus(2_000_000), corpus.library_corpus(2_000_000)
    assert first == second
    texts = [text for part in first.parts for text in part.documents(Tally())]
    size = sum(len(text.encode()) for text in texts)
    assert 1_500_000 < size <= 2_000_000
    assert len(set(texts)) == len(texts) > 100


def test_selection_by_hash_does_not_skew_the_splits() -> None:
    digests = sorted(hashlib.sha256(str(i).encode()).digest() for i in range(20_000))[:5_000]
    shares = {split: sum(shards.split_of(d) == split for d in digests) / 5_000 for split in shards.SPLITS}
    for split, share in shards.SHARE_OF_SPLIT.items():
        assert shares[split] == pytest.approx(share, abs=0.012)


def test_large_parts_are_written_in_blocks(
    prepared: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part too large for memory gives the same documents, sorted within blocks only."""
    bos = manifest_of(prepared)["bos_token_id"]
    for name in ("public/tokenizer", "public/train", "public/dev", "judge/val", "judge/holdout"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("tokenizer.json", "token_bytes.npy"):
        (tmp_path / "public/tokenizer" / name).write_bytes(
            (prepared / "public/tokenizer" / name).read_bytes()
        )
    monkeypatch.setattr(shards, "SORT_TOKENS", 50_000)
    source = Source("texts.jsonl", corpus_folder / "texts.jsonl", ".jsonl", 0)
    share = shards.Share(corpus.Texts((source,), END_OF_TEXT))
    shards.tokenize(shards.Job(0, share, 256, tmp_path))
    tokenizer = prepare.Tokenizer.from_directory(prepared / "public" / "tokenizer")
    whole = shard_texts(prepared / "public" / "train", tokenizer, bos)
    blocks = shard_texts(tmp_path / "public" / "train", tokenizer, bos)
    assert whole != blocks and sorted(whole) == sorted(blocks)
