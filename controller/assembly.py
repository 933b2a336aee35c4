"""Putting a home, a machine and an effort together out of settings. Only the command line comes here."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from controller import __version__, data, recovery
from controller.clock import SystemClock
from controller.core.events import EffortStarted, Record, SessionStarted
from controller.core.model import InfrastructureError, NotReady, Provenance, UserError
from controller.core.place import REHEARSAL_PLACE, SLOT_PLACE
from controller.core.policy import check
from controller.core.sandbox_config import SealedConfig
from controller.core.state import ResearchState, apply, fold
from controller.core.templates import Files
from controller.data_files import DataFiles
from controller.harness_files import HarnessFiles
from controller.journal import NAME as JOURNAL
from controller.journal import Journal, home_in_use, read_records
from controller.judge import ContainerJudge
from controller.ledger import Ledger
from controller.loop import Limits, Loop, World
from controller.pause import HomeSurroundings
from controller.ports import Agent, Observer, Sandbox
from controller.progress import observer
from controller.rehearsal import ContainerRehearsal
from controller.repository import GitRepository
from controller.runner.client import RunnerSandbox
from controller.runs import Runs
from controller.sandbox import DockerSandbox
from controller.seccomp import sealed
from controller.settings import PROJECT, Settings
from controller.slot import HostSlot
from controller.snapshot import Archive, Snapshot, standing
from controller.storage import Storage
from controller.trainer import ContainerTrainer

log = structlog.stdlib.get_logger(__name__)

CLOCK = SystemClock()
RUNNER_FOLDER = "runner"
"""Where a runner keeps its copies of the harness and of each train.py that runs; nobody else writes there."""


@dataclass(frozen=True)
class Device:
    """Where experiments run."""

    scale: data.Scale
    name: str
    """`cpu`, or the GPU's name as its driver tells it."""
    driver: str
    sandbox: SealedConfig


@dataclass(frozen=True)
class Machine:
    """Everything that is needed to run one attempt, checked to be there."""

    sandbox: Sandbox
    trainer: ContainerTrainer
    judge: ContainerJudge
    rehearsal: ContainerRehearsal
    slot: HostSlot | None
    """None: the machine is not watched."""
    harness: HarnessFiles
    data_files: DataFiles
    engine_root: Path | None
    """Where the engine keeps its own files, on its machine."""
    provenance: Provenance

    def check_inputs(self) -> None:
        """Raises VerificationFailed if a file that containers mount is not what it was made from."""
        self.harness.verify()
        self.data_files.verify()

    @classmethod
    def assemble(cls, config: Settings) -> Machine:
        """Raises NotReady or UserError with the first thing that is missing, VerificationFailed for data
        that was changed after it was prepared."""
        sandbox_of(config).describe()  # an engine without our image cannot be asked for a GPU either
        device = resolve_device(config)
        sandbox = sandbox_of(config, device)
        engine = sandbox.describe()
        info = data.read(config.home)
        data.require_scale(info, device.scale, config.home)
        require_disk(config)
        harness, files = mounted_files(config)
        data_files = DataFiles(config.home)
        data_files.verify()
        slot = None
        if config.noise.enabled:
            slot = HostSlot(sandbox, CLOCK, config=config.noise, containers=device.sandbox, home=config.home)
        return cls(
            sandbox=sandbox,
            trainer=ContainerTrainer(
                sandbox,
                CLOCK,
                config=config.trainer,
                containers=device.sandbox,
                home=config.home,
                files=files,
                slot=slot,
            ),
            judge=ContainerJudge(
                sandbox,
                CLOCK,
                config=config.judge,
                containers=device.sandbox,
                home=config.home,
                files=files,
            ),
            rehearsal=ContainerRehearsal(
                sandbox,
                CLOCK,
                config=config.rehearsal,
                containers=device.sandbox,
                home=config.home,
                files=files,
            ),
            slot=slot,
            harness=harness,
            data_files=data_files,
            engine_root=Path(engine["root"]) if engine["root"] else None,
            provenance=Provenance(
                image=engine["image"],
                data=info.fingerprint,
                prepare=harness.hashes["prepare.py"],
                program="",
                harness=harness.digest,
                scale=device.scale,
                device=device.name,
                driver=device.driver,
                engine=engine["engine"],
                runtime=engine["runtime"],
                controller=__version__,
            ),
        )


@dataclass(frozen=True)
class Plan:
    """The effort that a start continues or begins."""

    tag: str
    files: Mapping[str, str] | None
    """Content of the base commit; None if the effort has begun already."""


def run_effort(
    config: Settings,
    agent: Agent,
    stop: threading.Event,
    understudy: Agent | None = None,
    watchers: Sequence[Observer] = (),
) -> str:
    """Begin or continue the effort of a home; return why it stopped. The caller holds the home's lock."""
    state, archive = read_standing(config.home)
    plan = _plan(config, state)
    machine = Machine.assemble(config)
    with contextlib.ExitStack() as resources:
        resources.callback(machine.sandbox.close)
        journal = resources.enter_context(contextlib.closing(Journal(config.home, CLOCK, archive.position)))
        repository = _begin(config.home, plan, journal)
        for record in archive.follow():
            apply(state, record)
        program = repository.read(repository.head(), "program.md")
        provenance = machine.provenance.model_copy(update={"program": _sha256(program)})
        recovery.check_comparable(state, provenance, config.budget.wall_seconds)
        world = World(
            journal=journal,
            repository=repository,
            agent=agent,
            trainer=machine.trainer,
            judge=machine.judge,
            runs=runs_of(config),
            clock=CLOCK,
            observer=resources.enter_context(observer(sys.stdout, CLOCK, watchers)),
            stop=stop,
            publish=publisher(config.home, archive),
            prune=Storage(config.home, config.storage).prune,
            check_inputs=machine.check_inputs,
            surroundings=HomeSurroundings(config.home, config.min_free_bytes, machine.engine_root),
            bounds=config.judge.bounds,
            understudy=understudy,
            absence=config.absence,
            patience=config.patience,
            rehearsal=machine.rehearsal,
            slot=machine.slot,
            noise=config.noise,
        )
        loop = Loop(world, state, Limits(**config.limits.model_dump()), config.budget.wall_seconds)
        recovery.sweep(config.home, world, loop.state)
        recovery.recover(world, machine.sandbox, loop.state)
        if (reason := loop.reason_to_stop()) is not None:
            return reason  # a service that is restarted at its limit must not fill the journal with sessions
        loop.record(
            SessionStarted(
                agent=agent.name,
                budget_seconds=config.budget.wall_seconds,
                provenance=provenance,
                settings=config.model_dump(mode="json", exclude={"anthropic_api_key", "notify"}),
            )
        )
        return loop.run()


def _plan(config: Settings, state: ResearchState) -> Plan:
    """What is to be continued or begun, found out without changing anything. Raises UserError, NotReady."""
    if state.tag is not None:
        if config.tag not in (None, state.tag):
            raise UserError(
                f"The home {config.home} belongs to the effort {state.tag}; "
                f"use another --home for {config.tag}."
            )
        return Plan(state.tag, None)
    tag = config.tag or default_tag(CLOCK.now())
    GitRepository(config.home / "repo", tag)  # refuses what is no branch name
    files = {
        "train.py": read_train(config.train),
        "prepare.py": read_text(PROJECT / "harness" / "prepare.py", "prepare.py"),
        "program.md": read_text(config.program, "program.md"),
    }
    return Plan(tag, files)


def _begin(home: Path, plan: Plan, journal: Journal) -> GitRepository:
    """The research repository; a new effort gets its branch, base commit and first journal line."""
    repository = GitRepository(home / "repo", plan.tag)
    if plan.files is not None:
        base = repository.begin(plan.tag, plan.files)
        journal.append(EffortStarted(tag=plan.tag, base_commit=base))
    return repository


def publisher(home: Path, archive: Archive) -> Callable[[ResearchState], None]:
    """Brings every projection up to date that spans experiments."""
    ledger, snapshot = Ledger(home), Snapshot(home, archive)

    def publish(state: ResearchState) -> None:
        ledger.publish(state)
        snapshot.publish(state)

    return publish


def default_tag(now: dt.datetime) -> str:
    """Upstream's habit: `nov21`."""
    return now.strftime("%b%d").lower()


def read_train(path: Path) -> str:
    """Read a train.py a person named. Raises UserError if no experiment can be made of it."""
    text = read_text(path, "train.py")
    objection = check(text, None)
    if objection is not None:
        raise UserError(f"{path} cannot be run: {objection.detail}.")
    return text


def read_text(path: Path, what: str) -> str:
    """Read a file a person named. Raises UserError if it is not there or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no {what} at {path}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def sandbox_of(config: Settings, device: Device | None = None) -> Sandbox:
    """The runner, if the settings name one, else the engine. Raises NotReady if that cannot be used."""
    if config.runner is not None:
        return RunnerSandbox(config.runner, CLOCK)
    try:
        return DockerSandbox(device.sandbox if device else sealed(config.sandbox), config.home, CLOCK)
    except InfrastructureError as error:
        raise NotReady(
            f"The container engine cannot be used; look at it and at DOCKER_HOST: {error}"
        ) from error


def mounted_files(config: Settings) -> tuple[HarnessFiles, Files]:
    """What containers mount and where it lies: copies that we make, or those of the runner.

    Raises UserError, NotReady, InfrastructureError, VerificationFailed.
    """
    source, home = PROJECT / "harness", config.home.resolve()
    if config.runner is None:
        harness = HarnessFiles.materialise(source, home)
        return harness, Files(harness.folder, data.folder(home))
    harness = HarnessFiles.find(source, home / RUNNER_FOLDER)
    return harness, Files(harness.folder, data.folder(home), home / RUNNER_FOLDER / "train")


def resolve_device(config: Settings) -> Device:
    """Where experiments run, found out by asking for a GPU, or the runner that has asked for one.

    Raises NotReady if a GPU was demanded in vain, or if the runner does not answer.
    """
    containers = sealed(config.sandbox)
    if config.runner is not None:
        told = RunnerSandbox(config.runner, CLOCK).device()
        containers = containers.model_copy(update={"gpu": tuple(told["gpu"])})
        return Device(told["scale"], told["name"], told["driver"], containers)
    cpu = Device("cpu", "cpu", "", containers.model_copy(update={"gpu": ()}))
    if config.device == "cpu":
        return cpu
    wanted = containers.model_copy(update={"gpu": containers.gpu or ("0",)})
    sandbox = DockerSandbox(wanted, config.home, CLOCK)
    try:
        name, driver = sandbox.gpu()
    except (InfrastructureError, NotReady) as error:
        if config.device == "auto":
            log.info("no_gpu", reason=str(error))
            return cpu
        if isinstance(error, NotReady):
            raise  # says what to do
        raise NotReady(f"A GPU was asked for but the probe for one failed: {error}") from error
    finally:
        sandbox.close()
    return Device("gpu", name, driver, wanted)


def require_disk(config: Settings) -> str:
    """Free space of the home. Raises NotReady if it is less than a run needs."""
    folder = existing(config.home)
    if (shortage := HomeSurroundings(folder, config.min_free_bytes).shortage()) is not None:
        raise NotReady(shortage)
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def existing(home: Path) -> Path:
    """The home, or the nearest folder above it that exists."""
    return next(folder for folder in (home, *home.parents) if os.path.exists(folder))


def runs_of(config: Settings) -> Runs:
    return Runs(config.home)


def require_effort(home: Path) -> None:
    """Raises UserError if nothing was ever run in this home, or if its journal may not be read."""
    try:
        with (home / JOURNAL).open("rb") as file:
            begun = bool(file.read(1))
    except (FileNotFoundError, NotADirectoryError):
        begun = False
    except OSError as error:
        raise _unreadable(home, error) from error
    if not begun:
        raise UserError(f"No effort was started in {home} yet: `glovebox run --home {home}` starts one.")


def read_state(home: Path) -> tuple[list[Record], ResearchState]:
    """Every line of the journal and where it leaves the effort, without taking the home over."""
    require_effort(home)
    try:
        records = list(read_records(home))
    except OSError as error:
        raise _unreadable(home, error) from error
    return records, fold(records)


def read_standing(home: Path) -> tuple[ResearchState, Archive]:
    """Where the effort stands and where its past is; the beginning if there is none. Raises UserError,
    VerificationFailed."""
    try:
        return standing(home)
    except OSError as error:
        raise _unreadable(home, error) from error


def _unreadable(home: Path, error: OSError) -> UserError:
    return UserError(f"The journal in {home} cannot be read: {error.strerror}.")


def reap(config: Settings) -> list[str]:
    """Remove what belongs to no live experiment, whether or not a controller is at work."""
    state, _ = read_standing(config.home)
    keep = recovery.live(state)
    if home_in_use(config.home):
        keep.add("try")
        keep.add("prepare")
        keep.add(REHEARSAL_PLACE)
        keep.add(SLOT_PLACE)
    return recovery.reap(sandbox_of(config), keep)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
