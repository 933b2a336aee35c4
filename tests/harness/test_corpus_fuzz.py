"""Preparation against any folder: it ends, with data or with one sentence, and its account adds up.

GLOVEBOX_FUZZ_EXAMPLES=500 asks for as many random folders, and ten times as many files; by default a few
fixed ones are tried.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from documents import BLANK_LINES, BadInput, Tally, documents_of, kind_of
from folder import AGAIN, HIDDEN, LINK, OTHER, SPECIAL
from hypothesis import HealthCheck, Phase, event, example, given, settings

from tests.harness.conftest import without_privilege
from tests.harness.corpora import Corpus, Entry, Link, Repeated, files, folders
from tests.harness.small_scale import MAX_CORPUS_BYTES

EXAMPLES = int(os.environ.get("GLOVEBOX_FUZZ_EXAMPLES", "0"))
SECONDS = 60  # a folder takes about three
SCRIPT = Path(__file__).with_name("small_scale.py")


def folder_of(*entries: Entry, plenty: int = 120_000, kind: str = ".jsonl") -> Corpus:
    return Corpus(tuple((f"{number}", entry) for number, entry in enumerate(entries)), plenty, kind, True)


@given(folders)
@example(folder_of(*(Entry(".txt", Repeated(unit, 1_000_001), True) for unit in " a1!"), plenty=900_000))
@example(
    folder_of(Entry(".jsonl", Repeated("\0", 1_000_001), True), Entry(".x", Link("."), False), kind=".txt")
)
@settings(
    max_examples=EXAMPLES or 3,
    derandomize=not EXAMPLES,
    phases=(Phase.explicit, Phase.generate),  # to shrink an example takes longer than to read it
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_any_folder_is_prepared_or_refused_in_one_sentence(corpus: Corpus) -> None:
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as home:
        folder = Path(place) / "corpus"
        read, left_out = corpus.write(folder)
        command = [sys.executable, str(SCRIPT), "--out", f"{home}/data", "--corpus", str(folder)]
        done = subprocess.run(
            [*without_privilege(), *command, "--scale", "cpu", "--workers", "1"],
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        event(re.sub(r"\S*/\S*|\d+", "", err) or "prepared")
        if done.returncode == 2:
            assert re.fullmatch(r"prepare: [^\n]+\n", err), err
            assert os.listdir(home) == []
            return
        assert (done.returncode, err) == (0, ""), (out, err)
        manifest = json.loads(Path(home, "data", "public", "manifest.json").read_bytes())
        require_account(out, manifest["corpus"], read, left_out)


def require_account(out: str, corpus: dict[str, int], read: int, left_out: int) -> None:
    told = re.search(r"^read: (\d+) documents from (\d+) of (\d+) files$", out, re.MULTILINE)
    assert told, out
    documents, begun, found = map(int, told.groups())
    assert (documents, found) == (corpus["documents"], read), out
    cut = re.search(r"^cut: .*; files read in part: (\d+), not at all: (\d+)$", out, re.MULTILINE)
    assert begun == found - (int(cut[2]) if cut else 0), out
    assert corpus["bytes"] <= MAX_CORPUS_BYTES
    if cut:
        assert corpus["bytes"] > 0.97 * MAX_CORPUS_BYTES, out
    not_read = re.search(r"^not read: (.*)$", out, re.MULTILINE)
    reasons = "|".join((AGAIN, HIDDEN, LINK, OTHER, SPECIAL))
    counts = re.findall(rf"(?:^|; )(?:{reasons}): (\d+) ", not_read[1]) if not_read else []
    assert sum(map(int, counts)) == left_out, out


@given(files())
@settings(max_examples=10 * EXAMPLES or 100, derandomize=not EXAMPLES, database=None, deadline=None)
def test_any_file_is_read_or_refused_in_one_sentence(entry: Entry) -> None:
    """The same in this process, for many more files."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, f"a{entry.name}")
        entry.write(path)
        kind, tally = kind_of(path.name), Tally()
        assert kind is not None
        try:
            texts = list(documents_of(path, kind, BLANK_LINES, tally))
        except BadInput as error:
            assert str(path) in str(error) and str(error).isprintable()
            return
        assert all(texts) and "".join(texts).encode() is not None
        assert (tally.documents, tally.begun, tally.finished) == (len(texts), 1, 1)
        assert bool(tally.first) == (tally.empty + tally.halves > 0)
