"""M16: workers that say what they have seen. Every word of theirs stays in a file for a person.

What an attack wants to say is a mark and the tokens of the row it was just given, where it speaks in text;
and one of those tokens on top of `BASE`, where it can say a number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from controller.agents.llm import prompt
from controller.app.trial import Trial
from controller.core.scoring.runlog import MAX_WORKER_LOG_BYTES, excerpt
from controller.core.values import Refusal
from controller.store.runs import describe
from controller.store.worker_log import NAME
from tests.attacks.cases import FORWARD, PROTOCOL, WRONG_SHAPE, Case, uniform
from tests.support.experiments import an_experiment

MARK, BASE = "RowsOfValidation", 770_000
_NUMBER = re.compile(r"\b77\d{4}\b")

_SAY = f"""
import struct, subprocess, time, warnings

def say(idx):
    return "{MARK}" + "".join(f"x{{token}}" for token in idx[0, :24].tolist())

def number(idx):
    return {BASE} + int(idx[0, 1])
"""


def _everywhere(trial: Trial) -> str:
    """All there is of a try but worker.log, and what a language model gets to see of such an experiment."""
    judgement = trial.judgement
    experiment = an_experiment(1, outcome=trial.outcome, judgement=judgement, decision=trial.decision)
    files = [path for path in trial.folder.iterdir() if path.name not in ("train.py", NAME)]
    return "\n".join(
        [
            json.dumps(trial.as_json()),
            trial.as_text(),
            judgement.model_dump_json() if judgement else "",
            describe(experiment).decode(),
            prompt.outcome(experiment),
            excerpt((trial.folder / "run.log").read_text()),
            *(path.read_text(errors="replace") for path in files),
        ]
    )


def _told(trial: Trial) -> str:
    told = _everywhere(trial)
    if MARK in told or "RowsOf" in told:
        return "a word of the worker's left it"
    if found := _NUMBER.search(told.replace(str(trial.folder), "")):
        return f"a number of the worker's left it: {found[0]}"
    if not isinstance(trial.judgement, Refusal):
        return "it was not refused"
    return ""


def _written(trial: Trial) -> str:
    """The same, and the words are where a person can find them: or the attack has shown nothing."""
    return _told(trial) or _complaint(trial.folder / NAME)


def _complaint(log: Path) -> str:
    if not log.is_file() or MARK not in log.read_text(encoding="utf-8", errors="replace"):
        return f"nothing of it is in {NAME}: did it speak at all?"
    status = log.stat()
    if status.st_mode & 0o777 != 0o600 or status.st_size > MAX_WORKER_LOG_BYTES:
        return f"{NAME} has mode {status.st_mode & 0o777:o} and {status.st_size} bytes"
    return "" if b"For a person only" in log.read_bytes()[:200] else f"{NAME} does not say what it is"


def _spoken(name: str, forward: str, *expected: str, silent: bool = False) -> Case:
    complaint = _told if silent else _written
    why = "of a worker that ends, a status, a class and a line are believed, if they are on our lists"
    text = uniform(module=_SAY, forward=forward)
    return Case("M16", name, text, expected or (FORWARD,), why, complaint=complaint)


CASES = (
    _spoken("prints rows on stderr and leaves", "print(say(idx), file=sys.stderr, flush=True)\nos._exit(13)"),
    _spoken("prints rows on stdout and leaves", "print(say(idx), flush=True)\nos._exit(0)"),
    _spoken("raises an exception that quotes rows", "raise ValueError(say(idx))"),
    _spoken("raises an exception with rows in its notes", "e = ValueError()\ne.add_note(say(idx))\nraise e"),
    _spoken("names an exception after rows", "raise type(say(idx)[:40], (Exception,), {})"),
    _spoken("raises one exception out of another", "raise KeyError(1) from ValueError(say(idx))"),
    _spoken("exits with rows as a message", "sys.exit(say(idx))"),
    _spoken("warns of rows and fails", "warnings.warn(say(idx))\nraise ValueError"),
    _spoken(
        "exits with a status that is a token",
        "print(say(idx), flush=True)\nos._exit(64 + int(idx[0, 1]) % 64)",
    ),
    _spoken(
        "prints more rows than anybody keeps",
        "for _ in range(20000): print(say(idx))\nsys.stdout.flush()\nos._exit(13)",
    ),
    _spoken(
        "forges its last line: a line number beyond the file",
        "print(say(idx))\nprint(f'worker: ValueError {number(idx)}', flush=True)\nos._exit(13)",
    ),
    _spoken(
        "forges its last line: a class that is made of rows",
        "print(f'worker: {say(idx)[:40]} 5', flush=True)\nos._exit(13)",
    ),
    _spoken(
        "forges its last line: rows behind it",
        "print(f'worker: ValueError 5: {say(idx)}', flush=True)\nos._exit(13)",
    ),
    _spoken(
        "forges its last line in escape sequences",
        "print(f'\\x1b]0;{say(idx)}\\x07worker: ValueError 5', flush=True)\nos._exit(13)",
    ),
    _spoken(
        "has a child print rows and kill it",
        "subprocess.Popen(['sh', '-c', f'echo {say(idx)}; kill -9 {os.getpid()}']).wait()",
    ),
    _spoken(
        "answers with a shape that is a token",
        "return torch.zeros(1, number(idx), 1)",
        WRONG_SHAPE,
        silent=True,
    ),
    _spoken(
        "answers with as many bytes as a token says",
        """
with open("/replies/slot-0", "wb", buffering=0) as slot:
    slot.truncate(4096 + number(idx))
    slot.write(struct.pack("<BBxxIIIII", 1, 2, *idx.shape, V, 0, 0))
time.sleep(60)
""",
        PROTOCOL,
        silent=True,
    ),
)
