"""The whole of it, with real containers and real data: prepare, run, be killed, continue, look, verify."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.store.journal import read_records
from tests.support.glovebox import Glovebox, no_leftovers, remove_leftovers

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRAIN = '''\
"""A bigram model with a bottleneck → {width} wide (für {seconds} Sekunden)."""

import time

import torch
import torch.nn.functional as F

from prepare import MAX_SEQ_LEN, SEED, VOCAB_SIZE, Tokenizer, make_dataloader, save_checkpoint

WIDTH = {width}
LR = {lr}


class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB_SIZE, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, idx, targets=None, reduction="mean"):
        logits = self.head(self.embed(idx))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def build_model():
    return Bigram()


if __name__ == "__main__":
    torch.manual_seed(1)
    model = build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    batches = make_dataloader(Tokenizer.from_directory(), 4, MAX_SEQ_LEN, "train")
    began, step = time.monotonic(), 0
    while step < 30 or time.monotonic() - began < {seconds}:
        inputs, targets, _ = next(batches)
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            print(f"seed {{SEED}}")
            print("training", flush=True)
        step += 1
    save_checkpoint(model)
    print("---")
    print("val_bpb:          0.000001")
    print(f"num_steps:        {{step}}")
'''


def train_py(seconds: float = 0, lr: float = 3e-3, width: int = 16) -> str:
    return TRAIN.format(seconds=seconds, lr=lr, width=width)


#: An interpreter that would take names, arguments and streams for ASCII.
NO_UTF8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


def as_an_editor_may(text: str) -> bytes:
    """The same program as some editors save it: with a mark, and a return at the end of each line."""
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


Effort = tuple[Glovebox, list[dict[str, Any]]]
"""A command on a home, and what `run` logged there."""


def make_effort(
    folder: Path, with_data: Callable[[Path], None], baseline: str, ideas: list[str], replicates: int = 0
) -> tuple[Glovebox, list[str]]:
    """A home with data, and the command line that runs `ideas` on top of `baseline` in it.

    `replicates`: how often the baseline runs again.
    """
    (folder / "ideas").mkdir()
    (folder / "baseline.py").write_bytes(as_an_editor_may(baseline))
    for number, idea in enumerate(ideas):
        (folder / "ideas" / f"{number}.py").write_bytes(as_an_editor_may(idea))
    with_data(folder / "home")
    environment = {
        "GLOVEBOX_TRAIN": "baseline.py",
        "GLOVEBOX_JUDGE__SCORE_TOKENS": "2048",
        "GLOVEBOX_JUDGE__HOLDOUT_SCORE_TOKENS": "1024",
        "GLOVEBOX_JUDGE__LEAK_FRACTION": "0.05",  # honest models: few twins will do
        "GLOVEBOX_REPLICATES": json.dumps({"baseline": 1 + replicates, "every": 0}),
        **NO_UTF8,
    }
    run = ["run", "--budget", "30", "--device", "cpu", "--agent", "replay:ideas"]
    run += ["--experiments", str(1 + len(ideas))]
    # What containers read is readable for them, whatever a person's umask.
    return Glovebox(folder / "home", folder, environment, umask=0o077), run


@pytest.fixture(scope="module")
def effort(tmp_path_factory: pytest.TempPathFactory, with_data: Callable[[Path], None]) -> Iterator[Effort]:
    """An effort of three experiments and a replicate at its limit, and what it logged."""
    folder = tmp_path_factory.mktemp("größe→")
    ideas = [train_py(lr=0.03), train_py(lr=0.03).replace("began, step =", "crash, step =")]
    command, run = make_effort(folder, with_data, train_py(), ideas, replicates=1)
    said = command(*run, timeout=240)
    assert said.status == 0 and said.err == "glovebox: limit of 3 experiments reached\n", said
    yield command, [json.loads(line) for line in said.out.splitlines()]
    remove_leftovers(command.home)


def test_a_better_idea_is_kept_and_a_broken_one_is_not(effort: Effort) -> None:
    command, logged = effort
    rows = command("log", "--json").json()
    verdicts = ["keep", "discard", "keep", "crash"]
    assert [row["verdict"] for row in rows] == verdicts, rows
    assert rows[2]["val_bpb"] < rows[0]["val_bpb"] and rows[3]["cause"] == "name"
    names = ["baseline", "experiment 0 again", "0.py", "1.py"]
    assert [row["description"].split(":")[0] for row in rows] == names
    assert [line["verdict"] for line in logged if line["event"] == "decided"] == verdicts
    assert no_leftovers(command.home)


def test_each_run_has_a_seed_of_its_own(effort: Effort) -> None:
    command, _ = effort
    shown = [command("show", str(number), "--json").json() for number in range(4)]
    assert len({row["seed"] for row in shown}) == 4
    for row in shown:
        folder = command.home / "runs" / f"{row['experiment']:06}"
        assert f"torch.manual_seed({row['seed'] + 1})" in (folder / "train.py").read_text(encoding="utf-8")
        assert f"seed {row['seed']}\n" in (folder / "run.log").read_text(encoding="utf-8")
    baseline, again = shown[:2]
    assert (again["cause"], again["repeats"]) == ("replicate", 0)
    assert again["train_sha256"] == baseline["train_sha256"] and again["ran_sha256"] != baseline["ran_sha256"]
    assert again["val_bpb"] != baseline["val_bpb"]
    assert shown[2]["frontier_bpb"] == pytest.approx((again["val_bpb"] + baseline["val_bpb"]) / 2)
    status = command("status", "--json").json()
    assert status["spread"]["df"] == 1 and status["certificates"]["provisional"] == [2]


def test_git_and_the_record_of_every_run(effort: Effort) -> None:
    command, _ = effort
    branch = command("status", "--json").json()["branch"]
    git = ["git", "-C", str(command.home / "repo"), "log", "--format=%H", "--reverse", branch]
    commits = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
    kept = [row["commit"] for row in command("log", "--json").json() if row["verdict"] == "keep"]
    assert commits[1:] == kept
    assert (command.home / "repo" / "train.py").read_bytes() == train_py(lr=0.03).encode()
    subjects = subprocess.run(
        [*git[:3], "log", "--format=%s"], capture_output=True, check=True
    ).stdout.decode()
    assert subjects.startswith("0.py: A bigram model with a bottleneck → 16 wide (für 0 Sekunden).\n")
    assert len((command.home / "results.tsv").read_text().splitlines()) == 5
    for number, row in enumerate(command("log", "--json").json()):
        log = (command.home / "runs" / f"{number:06}" / "run.log").read_text()
        found = [line.split()[1] for line in log.splitlines() if line.startswith("val_bpb:")]
        if row["val_bpb"] is not None:
            assert found == ["0.000001", f"{row['val_bpb']:.6f}"], "the claim, and then the score"


def test_status_report_and_verify(effort: Effort) -> None:
    command, _ = effort
    status = command("status", "--json").json()
    assert (
        status["experiments"] == 4
        and status["replicates"] == 1
        and status["stopped"] == "limit of 3 experiments reached"
    )
    assert command("verify", "--json").json() == {"problems": []}
    assert command("report").out.splitlines() == [
        str(command.home / "report" / name).encode("ascii", "backslashreplace").decode()
        for name in ("report.md", "report.html", "progress.svg", "holdout.svg")
    ]
    assert "NameError" in command("show", "3").out


def test_the_same_command_at_the_limit_changes_nothing(effort: Effort) -> None:
    command, _ = effort
    before = (command.home / "results.tsv").read_bytes()
    run = ["run", "--budget", "30", "--device", "cpu", "--agent", "replay:ideas", "--experiments", "3"]
    assert command(*run).status == 0
    assert (command.home / "results.tsv").read_bytes() == before
    command(*run[:1], "--budget", "20", *run[3:]).refused(2, "budget")
    assert command("verify").status == 0


def test_try_leaves_the_effort_alone(effort: Effort) -> None:
    command, _ = effort
    before = (command.home / "audit.jsonl").read_bytes()
    (command.folder / "mine.py").write_text(train_py(lr=0.01))
    said = command("try", "mine.py", "--budget", "30", "--device", "cpu", "--json").json()
    assert said["verdict"] == "scored" and 1 < said["val_bpb"] < 10 and said["claim"]["val_bpb"] == 0.000001
    assert "holdout" not in json.dumps(said)
    assert f"{said['val_bpb']:.6f}" in Path(said["log"]).read_text(encoding="utf-8")
    assert (command.home / "audit.jsonl").read_bytes() == before
    assert no_leftovers(command.home)


def wait_until_training(process: subprocess.Popen[str], home: Path, number: int) -> None:
    """Until experiment `number` has printed that it trains; fails if the controller ends before that."""
    log = home / "runs" / f"{number:06}" / "run.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "training\n" in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"experiment {number} does not train"
        time.sleep(0.05)


def test_killed_stopped_and_continued(
    tmp_path: Path, with_data: Callable[[Path], None], engine: None
) -> None:
    ideas = [train_py(seconds=4, lr=0.03)]
    command, run = make_effort(tmp_path, with_data, train_py(seconds=4), ideas)
    try:
        _kill_in_the_middle(command, run)
        _stop_in_the_middle(command, run)
        said = command(*run)
        assert said.status == 0, said
        rows = command("log", "--json").json()
        assert [row["attempt"] for row in rows] == [1, 2], "the first run was adopted, the second repeated"
        assert rows[0]["verdict"] == "keep" and rows[1]["val_bpb"] is not None
        assert command("verify", "--json").json() == {"problems": []}
        assert no_leftovers(command.home)
    finally:
        remove_leftovers(command.home)


def _kill_in_the_middle(command: Glovebox, run: list[str]) -> None:
    """SIGKILL while the baseline trains: it trains on, and the journal is good."""
    process = command.start(*run)
    wait_until_training(process, command.home, 0)
    process.kill()
    process.communicate()
    assert command("verify").status == 0
    assert command("status", "--json").json()["open"]["phase"] == "training"
    command("reap")
    assert not no_leftovers(command.home), "a run that is still inside its time is no orphan"


def _stop_in_the_middle(command: Glovebox, run: list[str]) -> None:
    """The same command adopts the baseline and goes on; SIGTERM in the next experiment ends it at once."""
    process = command.start(*run)
    wait_until_training(process, command.home, 1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert time.monotonic() - began < 5
    assert "Traceback" not in said
    assert no_leftovers(command.home)
    events = [record.data.event for record in read_records(command.home)]
    assert events.count("training_started") == 2, "the baseline was not started again"
