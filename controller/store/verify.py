"""`glovebox verify`: do journal, blobs, git, ledger and runs agree? Offline, read-only.

The hash chain shows that no line of the journal was changed. Git shows that its end was not cut off: kept
commits name the journal's head of their time. Verdicts are recomputed from scores. A consistent rewrite of
everything is not detected; keep the head hash elsewhere if that matters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from controller.core.decision import decide
from controller.core.errors import ImpossibleHistory, InfrastructureError, VerificationFailed
from controller.core.events import (
    AnyEvent,
    ApiAnswered,
    ApiFailed,
    ApiRequested,
    CertificateDecided,
    CertificateSettled,
    Committed,
    Decided,
    ExperimentMoved,
    ExperimentOpened,
    ProposalMade,
    ProposalRebased,
    ProposalRehearsed,
    Pruned,
    Record,
    RolledBack,
    Steered,
    TrainingFinished,
)
from controller.core.experiment import Experiment, Phase
from controller.core.plan import conclusion
from controller.core.scoring.runlog import summary
from controller.core.spending import ImpossibleCall
from controller.core.state import ResearchState, apply
from controller.core.statistics.certificate import is_same, note
from controller.core.statistics.hopeless import hopeless
from controller.core.untrusted import clean_line
from controller.core.values import Cause
from controller.store import journal, ledger
from controller.store import lock as home_lock
from controller.store.repository import GitRepository
from controller.store.runs import Runs, describe
from controller.store.snapshot import SNAPSHOT, Archive, contradicts

_PROBLEM_CHARACTERS = 1000
_ROUNDING_USD = 1e-6
"""Floating-point sums of money are not exact."""


@dataclass
class _Pass:
    """One pass over the journal, line by line; its memory does not grow with the experiments."""

    home: Path
    pinned: str | None
    """A head that was kept elsewhere; None: there is none."""
    problems: list[str] = field(default_factory=list)
    state: ResearchState = field(default_factory=ResearchState)
    archive: Archive = field(init=False)
    """How much of the journal was read."""
    heads: dict[int, set[str]] = field(default_factory=dict)
    """By kept experiment: the heads of the journal between its verdict and its commit."""
    settling: dict[int, set[str]] = field(default_factory=dict)
    """By certificate: the same between what came of it and the repository's hearing of it."""
    rolling_back: dict[str, set[str]] = field(default_factory=dict)
    """By request: the same between a person's wish to roll back and the repository's hearing of it."""
    rolled_back: dict[str, str] = field(default_factory=dict)
    """By request: the commit of it."""
    branch: list[int | CertificateDecided | Steered] = field(default_factory=list)
    """What the commits of the branch are, base aside: kept experiments, chains that were taken back by a
    certificate, and rollbacks."""
    latest: dict[int, int] = field(default_factory=dict)
    """By slot: its latest experiment, the only one on it that may not be closed yet."""

    def __post_init__(self) -> None:
        self.archive = Archive(self.home)

    def read(self) -> None:
        """Raises VerificationFailed where the chain breaks, ImpossibleHistory where events contradict."""
        archive = self.archive
        found, pruned = self.pinned is None, _calls_pruned(self.home)
        for record in archive.follow():
            if isinstance(record.data, Decided):
                self.problems.extend(_decide_again(record, record.data, self.state))
            if isinstance(record.data, TrainingFinished):
                self.problems.extend(_end_again(record, record.data, self.state))
            if isinstance(record.data, CertificateDecided):
                self.problems.extend(_certify_again(record, record.data, self.state))
            self.problems.extend(_spend_again(record, self.state))
            pending = self.state.steering.rollback
            try:
                apply(self.state, record)
            except (ImpossibleHistory, ImpossibleCall) as error:
                raise ImpossibleHistory(f"{journal.NAME} line {record.seq + 1}: {error}") from error
            archive.forget(self.state)
            if isinstance(record.data, ExperimentOpened | ExperimentMoved):
                self.latest[record.data.slot] = record.data.experiment
            self.problems.extend(_check_blobs(self.home, record, pruned))
            self._follow_branch(record, pending)
            if self.state.unsettled is not None:
                self.settling.setdefault(self.state.unsettled.certificate, set()).add(record.hash)
            if (asked := self.state.steering.rollback) is not None:
                self.rolling_back.setdefault(asked.request, set()).add(record.hash)
            for experiment in self.state.open:
                if experiment.phase is Phase.DECIDED:
                    self.heads.setdefault(experiment.number, set()).add(record.hash)
            found = found or record.hash == self.pinned
        size = (self.home / journal.NAME).stat().st_size
        if torn := size - archive.position.offset:
            where = f"{journal.NAME} line {archive.position.seq + 2}"
            self.problems.append(f"{where} is torn after {torn} bytes; the next start cuts it off")
        if not found:
            self.problems.append(
                f"{journal.NAME} never had the head {clean_line(str(self.pinned), 64)}: "
                "lines were cut off its end, or it was written anew"
            )

    def _follow_branch(self, record: Record, rollback: Steered | None) -> None:
        """`rollback`: the one that was asked for before this record."""
        event = record.data
        if isinstance(event, Committed):
            self.branch.append(event.experiment)
        elif isinstance(event, RolledBack) and rollback is not None:
            self.branch.append(rollback)
            self.rolled_back[event.request] = event.commit
        elif isinstance(event, CertificateSettled):
            decided = self.state.certificates[-1]
            if decided.outcome != "certified":
                self.branch.append(decided)


@dataclass(frozen=True)
class Finding:
    """The result of a verification."""

    problems: list[str]
    """Every contradiction found, one line each; empty if all agree."""
    state: ResearchState
    """The state that the journal alone gives; if it is broken, up to the first problem."""


def verify(home: Path, pinned: str | None = None) -> list[str]:
    """The problems that `examine` finds."""
    return examine(home, pinned).problems


def examine(home: Path, pinned: str | None = None) -> Finding:
    """Check everything in a home against everything else. Raises NotReady without git.

    `pinned` is a former head of the journal that was kept elsewhere.
    """
    told = _Pass(home, pinned)
    problems = [clean_line(problem, _PROBLEM_CHARACTERS) for problem in _problems(told)]
    return Finding(problems, told.state)


def _problems(told: _Pass) -> list[str]:
    home = told.home
    if not (home / journal.NAME).is_file():
        return [f"{journal.NAME} is missing"]
    try:
        told.read()
    except (VerificationFailed, ImpossibleHistory) as error:
        # Nothing after a broken link can be trusted; comparing more with it would only confuse.
        return [str(error)]
    at_work = home_lock.home_in_use(home)
    return [
        *told.problems,
        *_check_snapshot(told),
        *_check_runs(home, told, at_work),
        *_check_ledger(home, told, at_work),
        *_check_git(home, told, at_work),
    ]


def _check_snapshot(told: _Pass) -> Iterator[str]:
    if contradicts(told.home, told.state, told.archive):
        yield f"{SNAPSHOT} tells another story than {journal.NAME}; remove it, and no start believes it"


def _decide_again(record: Record, event: Decided, state: ResearchState) -> Iterator[str]:
    experiment = next((known for known in state.open if known.number == event.experiment), None)
    frontier = state.frontier
    if experiment is None or frontier is None:
        return  # apply() has the words for it
    where = f"{journal.NAME} line {record.seq + 1}: experiment {event.experiment}"
    if event.frontier_bpb != frontier.val_bpb:
        yield f"{where} was measured against {event.frontier_bpb}, not the frontier"
    if event.decision.cause is Cause.KILLED:
        if experiment.number not in state.steering.killed:
            yield f"{where} was killed, and nobody asked for that"
        return
    if experiment.outcome is None:
        return
    for other in state.open:
        if other.phase is Phase.DECIDED and experiment.score is not None:
            yield f"{where} was decided before experiment {other.number} was committed"
    try:
        quarantined = experiment.quarantine.score if experiment.quarantine else None
        again = decide(
            frontier,
            experiment.outcome,
            experiment.judgement,
            quarantined,
            state.lineage,
            is_replicate=experiment.repeats is not None,
            margin=event.margin,
        )
    except ValueError as error:
        yield f"{where} was decided too early: {error}"
        return
    if (again.verdict, again.cause) != (event.decision.verdict, event.decision.cause):
        yield f"{where} was decided {event.decision.verdict}; by the rules it is {again.verdict}"


def _end_again(record: Record, event: TrainingFinished, state: ResearchState) -> Iterator[str]:
    """A run that was ended early had reported a loss beyond its limits."""
    slot = next((known.slot for known in state.open if known.number == event.experiment), None)
    if event.outcome.cause is not Cause.HOPELESS or slot is None:
        return
    if hopeless(event.outcome.curve, state.slot(slot).limits) is None:
        yield (
            f"{journal.NAME} line {record.seq + 1}: experiment {event.experiment} was ended early; by the "
            "losses that it reported it was not hopeless"
        )


def _certify_again(record: Record, event: CertificateDecided, state: ResearchState) -> Iterator[str]:
    """Each certificate is recomputed from the scores of its pairs and of all other replicates."""
    certificate = state.certificate
    if certificate is None or certificate.number != event.certificate:
        return  # apply() has the words for it
    where = f"{journal.NAME} line {record.seq + 1}: certificate {event.certificate}"
    again = conclusion(state, certificate, event.most_pairs)
    if again is None:
        yield f"{where} was decided too early"
    elif again[0] != event.outcome or not is_same(again[2], event.evidence):
        yield f"{where} says {event.outcome}, {event.rule}; by its pairs it is {again[0]}, {again[1]}"


def _calls_pruned(home: Path) -> int:
    """The texts of calls below this number are removed on record, later in the journal."""
    pruned = 0
    with (home / journal.NAME).open("rb") as file:
        for line in file:
            with contextlib.suppress(VerificationFailed):  # the pass over the chain names the line
                if b'"event":"pruned"' in line:
                    event = journal.parse_line(line.removesuffix(b"\n")).data
                    if isinstance(event, Pruned) and event.what == "calls":
                        pruned = event.before
    return pruned


def _check_blobs(home: Path, record: Record, calls_pruned: int) -> Iterator[str]:
    for name in _blobs(record.data):
        of_old_call = isinstance(record.data, ApiRequested | ApiAnswered) and record.data.call < calls_pruned
        if of_old_call and not journal.blob_path(home, name).exists():
            continue  # removed on record
        try:
            journal.read_blob(home, name)
        except VerificationFailed as error:
            yield f"{journal.NAME} line {record.seq + 1}: {error}"


def _blobs(event: AnyEvent) -> tuple[str, ...]:
    match event:
        case ExperimentOpened():
            return event.train_sha256, event.ran_sha256, event.diff_sha256
        case ProposalMade() | ProposalRebased() | ProposalRehearsed():
            return (event.train_sha256,)
        case Steered(train_sha256=name) if name:
            return (name,)
        case ApiRequested():
            return (event.request_sha256,)
        case ApiAnswered():
            return (event.reply_sha256,)
        case _:
            return ()


def _spend_again(record: Record, state: ResearchState) -> Iterator[str]:
    """No request exceeded the limits of its session, and none has a negative cost or usage."""
    where, event = f"{journal.NAME} line {record.seq + 1}", record.data
    if isinstance(event, ApiRequested):
        spending = state.spending
        spent = {"dollars": spending.total, "dollars_per_day": spending.on(record.time[:10])}
        for name, total in spent.items():
            limit = state.limit(name)
            if limit is not None and total.committed_usd + event.reserved_usd > limit + _ROUNDING_USD:
                yield f"{where}: call {event.call} was sent beyond the limit limits.{name} of {limit:g}"
        if event.reserved_usd < 0:
            yield f"{where}: call {event.call} reserved less than nothing"
    elif isinstance(event, ApiAnswered | ApiFailed) and (
        event.cost_usd < 0 or min(event.usage.model_dump().values()) < 0
    ):
        yield f"{where}: call {event.call} cost or used less than nothing"


def _check_runs(home: Path, told: _Pass, at_work: bool) -> Iterator[str]:
    state = told.state
    closing = {*told.latest.values()} if at_work else set()
    for experiment in state.experiments:
        number = experiment.number
        if experiment.phase is Phase.DONE and number not in closing:
            pruned = number < state.logs_pruned and number not in state.kept
            yield from _check_result(home, experiment, pruned)
        if experiment.attempt == 0:
            continue  # its folder is written just before the first attempt
        folder = Runs(home).folder(experiment.number)
        for name, blob in (("train.py", experiment.ran_sha256), ("change.diff", experiment.diff_sha256)):
            path = folder / name
            where = path.relative_to(home)
            if path.is_symlink() or not path.is_file():
                yield f"{where} is missing"
            elif journal.sha256(path.read_bytes()) != blob:
                yield f"{where} is not what the journal says ran"


def _check_result(home: Path, experiment: Experiment, pruned: bool) -> Iterator[str]:
    folder = Runs(home).folder(experiment.number)
    description, log = folder / "experiment.json", folder / "run.log"
    if not description.is_file():
        yield f"{description.relative_to(home)} is missing"
        return
    if description.read_bytes() != describe(experiment):
        yield f"{description.relative_to(home)} is not what the journal says"
    outcome, decision = experiment.outcome, experiment.decision
    if outcome is None or decision is None or not outcome.log_sha256:
        return
    if pruned and not log.exists():
        return  # removed on record
    section = summary(outcome, experiment.judgement, decision, frontier_bpb=experiment.frontier_bpb)
    content = log.read_bytes() if log.is_file() else b""
    printed = content.removesuffix(section.encode("utf-8", "replace"))
    if printed == content or journal.sha256(printed) != outcome.log_sha256:
        yield f"{log.relative_to(home)} is not what the run printed and the judge found"


def _check_ledger(home: Path, told: _Pass, at_work: bool) -> Iterator[str]:
    path = home / ledger.NAME
    wanted = ledger.render(told.state).encode("utf-8").splitlines(keepends=True)
    present = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, (row, due) in enumerate(zip(present, wanted, strict=False), start=1):
        if row != due:
            yield f"{ledger.NAME} line {number} is not what the journal says"
    if len(present) > len(wanted):
        yield f"{ledger.NAME} has {len(present) - len(wanted)} lines the journal knows nothing of"
    # A controller at work journals first and writes the row a moment later, on each slot.
    if len(present) < len(wanted) - (len(told.latest) if at_work else 0):
        yield f"{ledger.NAME} lacks {len(wanted) - len(present)} lines; the next start adds them"


def _check_git(home: Path, told: _Pass, at_work: bool) -> Iterator[str]:
    state = told.state
    if state.tag is None:
        return
    repository = GitRepository(home / "repo", state.tag)
    try:
        if damage := repository.damage():
            yield clean_line(damage, 500)
        history = repository.history()
        base, kept = history[0][0], history[1:]
        if base != state.base_commit:
            yield f"repo: the branch begins with {base[:7]}, not with {str(state.base_commit)[:7]}"
            return
        expected = [*told.branch]
        deciding = (known.number for known in state.open if known.phase is Phase.DECIDED)
        falling = state.unsettled if state.unsettled and state.unsettled.outcome != "certified" else None
        pending = next(deciding, falling or state.steering.rollback)
        if pending is not None and len(kept) == len(expected) + 1:
            expected.append(pending)  # committed, and about to be journalled as such
        elif len(kept) != len(expected) and not (at_work and len(kept) > len(expected)):
            yield f"repo: the branch has {len(kept)} commits after its base, the journal {len(expected)}"
        for what, (commit, trailers) in zip(expected, kept, strict=False):
            if isinstance(what, Steered):
                yield from _check_rolled_back(repository, told, what, commit, trailers)
            elif isinstance(what, CertificateDecided):
                yield from _check_taken_back(repository, told, what, commit, trailers)
            else:
                experiment, heads = state.experiments[what], told.heads[what]
                yield from _check_commit(repository, base, experiment, commit, trailers, heads)
        yield from _check_certified(repository, told, at_work)
    except (VerificationFailed, InfrastructureError) as error:
        yield f"repo: {clean_line(str(error), 500)}"


def _check_taken_back(
    repository: GitRepository,
    told: _Pass,
    decided: CertificateDecided,
    commit: str,
    trailers: dict[str, str],
) -> Iterator[str]:
    where, base = f"repo: commit {commit[:7]}", told.state.experiments[decided.base].commit or ""
    due = {"Certificate": str(decided.certificate), "Outcome": decided.outcome, "Back-To": str(decided.base)}
    if {name: trailers.get(name) for name in due} != due:
        yield f"{where} stands where certificate {decided.certificate} took a chain back"
        return
    if trailers.get("Journal") not in told.settling[decided.certificate]:
        yield f"{where} was made from a journal that is not this one: lines are missing"
    if repository.files(commit) != repository.files(base):
        yield f"{where} takes a chain back to something else than experiment {decided.base}"


def _check_rolled_back(
    repository: GitRepository, told: _Pass, asked: Steered, commit: str, trailers: dict[str, str]
) -> Iterator[str]:
    where, target = f"repo: commit {commit[:7]}", told.state.experiments[asked.target or 0].commit or ""
    due = {"Rollback": asked.request, "Back-To": str(asked.target)}
    if {name: trailers.get(name) for name in due} != due:
        yield f"{where} stands where a person went back to experiment {asked.target}"
        return
    if told.rolled_back.get(asked.request, commit) != commit:
        yield f"{where} stands where the journal has {told.rolled_back[asked.request][:7]}"
    if trailers.get("Journal") not in told.rolling_back[asked.request]:
        yield f"{where} was made from a journal that is not this one: lines are missing"
    if repository.files(commit) != repository.files(target):
        yield f"{where} goes back to something else than experiment {asked.target}"


def _check_certified(repository: GitRepository, told: _Pass, at_work: bool) -> Iterator[str]:
    """The reference and its note say what the journal says; a controller at work may be ahead of it."""
    state = told.state
    good = [decided for decided in state.certificates if decided.outcome == "certified"]
    if at_work or (state.unsettled is not None and state.unsettled in good):
        return
    found = repository.certified()
    if not good:
        if found is not None:
            yield f"repo: {found[0][:7]} is named certified, and no chain was"
        return
    decided = good[-1]
    commit, heads = state.experiments[decided.head].commit, told.settling[decided.certificate]
    if found is None or found[0] != commit:
        yield f"repo: the certified head is {found[0][:7] if found else 'missing'}, not {str(commit)[:7]}"
    elif found[1] not in {note(decided, head) for head in heads}:
        yield f"repo: the note of {found[0][:7]} does not say what the journal does of its certificate"


def _check_commit(
    repository: GitRepository,
    base: str,
    experiment: Experiment,
    commit: str,
    trailers: dict[str, str],
    heads: set[str],
) -> Iterator[str]:
    where = f"repo: commit {commit[:7]}"
    if experiment.commit not in (None, commit):
        yield f"{where} stands where the journal has {str(experiment.commit)[:7]}"
    if trailers.get("Experiment") != str(experiment.number):
        yield f"{where} is not of experiment {experiment.number}"
    if experiment.score and trailers.get("Val-Bpb") != f"{experiment.score.val_bpb:.6f}":
        yield f"{where} claims another score than the journal"
    if trailers.get("Journal") not in heads:
        yield f"{where} was made from a journal that is not this one: lines are missing"
    files, unchanged = repository.files(commit), repository.files(base)
    blob = files.pop("train.py", "")
    unchanged.pop("train.py", None)
    if files != unchanged:
        yield f"{where} changes more than train.py"
    if not blob or journal.sha256(repository.content(blob)) != experiment.train_sha256:
        yield f"{where} holds another train.py than the one that ran"
