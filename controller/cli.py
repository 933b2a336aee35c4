"""`glovebox`: the command line. The only reader of argv, with one function per verb.

The verbs are assembled in `controller.app`: `machine` (what attempts run on), `run` (one session of the
loop), `service` (the loop for weeks), `home` (reading a home).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
from rich.console import Console, RenderableType
from rich.text import Text

from controller import __version__, failpoints, settings
from controller.app import (
    agent as choose,
)
from controller.app import (
    doctor,
    liveness,
    preparation,
    service,
    steer,
    trial,
)
from controller.app import (
    runner as runner_service,
)
from controller.app import (
    watch as watching,
)
from controller.app import (
    web as web_server,
)
from controller.app.home import read_standing, read_state, reap, require_effort
from controller.core.errors import (
    GloveboxError,
    InfrastructureError,
    Interrupted,
    NotReady,
    UserError,
    VerificationFailed,
)
from controller.core.untrusted import clean_line
from controller.store import pause as pause_
from controller.store import verified, verify
from controller.store.journal import read_blob
from controller.store.lock import HomeLock, home_in_use
from controller.store.runs import Runs
from controller.system import logs, signals, streams
from controller.system.clock import SystemClock
from controller.views import audit, report
from controller.views import facts as views_json
from controller.views import tables as views

_SENTENCE = 2000
"""Longest message, in characters; it may contain a path."""

_SCALES = (
    "Scale of data and model: cpu, or small, medium or gpu for a GPU with under 8, 8 to 20, or more GB. "
    "Default: what fits this machine."
)

_SEPARATOR = (
    "Separator between documents in a txt file: any text; blank-lines; or none, if each file is one "
    "document. Default: '<|endoftext|>'."
)
_WORKERS = (
    "Parallel processes that read text, each with up to 1 GB of memory, and parallel downloads. "
    "Default: as many as CPUs and memory allow."
)

log = structlog.stdlib.get_logger(__name__)

#: Prefixes of environment variables that hold a secret.
_SECRET = ("ANTHROPIC_API_KEY", "GLOVEBOX_NOTIFY")

app = typer.Typer(
    name="glovebox",
    help="Autonomous training research you can leave alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Home = Annotated[Path | None, typer.Option(help="State directory of the effort.  [env: GLOVEBOX_HOME]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or gpu.")]
Budget = Annotated[float | None, typer.Option(help="Wall-clock seconds per experiment.")]
Number = Annotated[int | None, typer.Argument(help="The experiment's number.", min=0)]
Running = Annotated[int, typer.Argument(metavar="NUMBER", help="The experiment's number.", min=0)]
SlotNumber = Annotated[int | None, typer.Option(help="Only this slot.", min=0)]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def main() -> None:
    """Run the command; an error becomes one sentence and an exit status."""
    streams.complete()
    streams.accept_any_text()
    logs.configure(sys.stderr, logging.WARNING)
    try:
        if place := os.environ.get(failpoints.VARIABLE):
            failpoints.arm(place)
        try:
            app()
        finally:
            streams.flush_stdout()
    except GloveboxError as error:
        _end(str(error), error.exit_status)
    except OSError as error:
        if not streams.is_full(error):
            raise
        _end(f"Output could not be written: {error.strerror}", InfrastructureError.exit_status)


def _end(sentence: str, status: int) -> NoReturn:
    if sentence := sentence.rstrip("."):
        print(f"glovebox: {clean_line(sentence, _SENTENCE)}.", file=sys.stderr)
    sys.exit(status)


@app.command()
def prepare(
    home: Home = None,
    corpus: Annotated[
        str, typer.Option(help="stdlib, climbmix, or a folder or file of txt, jsonl, json or parquet.")
    ] = "stdlib",
    scale: Annotated[str | None, typer.Option(help=_SCALES)] = None,
    shards: Annotated[
        int | None, typer.Option(help="Number of climbmix training shards to download.", min=1)
    ] = None,
    separator: Annotated[str | None, typer.Option(help=_SEPARATOR)] = None,
    workers: Annotated[int | None, typer.Option(help=_WORKERS, min=1)] = None,
) -> None:
    """Prepare the data and the tokenizer, once."""
    config = settings.load(home=home)
    with HomeLock(config.home):
        request = preparation.Request(corpus, scale, shards, workers, separator)
        preparation.prepare(config, request, signals.stop_on_signals())


@app.command()
def run(
    home: Home = None,
    experiments: Annotated[
        int | None,
        typer.Option(help="Stop once the effort has this many experiments, baseline included."),
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Stop once the effort has run for this long.")] = None,
    budget: Budget = None,
    agent: Annotated[str | None, typer.Option(help="claude, tuner, replay:DIR or auto.")] = None,
    tag: Annotated[
        str | None, typer.Option(help="Name of the effort; its branch is autoresearch/TAG.")
    ] = None,
    device: Device = None,
    stay: Annotated[
        bool,
        typer.Option(
            "--stay", help="At the end, wait to be stopped: a service manager would restart it for ever."
        ),
    ] = False,
) -> None:
    """Run the research loop in the foreground, until a limit or Ctrl-C."""
    config = settings.load(
        home=home,
        agent=agent,
        tag=tag,
        device=device,
        **_section("budget", wall_seconds=budget),
        **_section("limits", experiments=experiments, hours=hours),
    )
    stop = signals.stop_on_signals()
    if stay:
        service.stay(lambda: _run(config, stop), config.home, stop)
    else:
        _run(config, stop)


def _run(config: settings.Settings, stop: threading.Event) -> str:
    name = choose.make_agent(config).name  # reports a bad configuration before the home is touched
    for variable in [name for name in os.environ if name.upper().startswith(_SECRET)]:
        del os.environ[variable]  # already read; no child process gets it
    with HomeLock(config.home):
        logs.configure(logs.stream_of_run(config.home))
        if config.agent == "auto":
            log.info("agent_chosen", agent=name, reason=choose.why(config))
        reason = service.run(config, stop)
    print(f"glovebox: {clean_line(reason, _SENTENCE)}", file=sys.stderr)
    return reason


@app.command("try")
def try_(
    file: Annotated[Path, typer.Argument(help="A train.py.")],
    home: Home = None,
    budget: Budget = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**16 - 1, help="The run's seed. Default: one is drawn.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one train.py as an experiment outside the frontier: nothing is kept or journalled."""
    config = settings.load(home=home, device=device, **_section("budget", wall_seconds=budget))
    with HomeLock(config.home):
        try:
            result = trial.run(config, file, signals.stop_on_signals(), seed=seed)
        except Interrupted:
            raise GloveboxError("The try was stopped before it had a result.") from None
    if as_json:
        _print_json(result.as_json())
    else:
        _show(Text(result.as_text()))


@app.command()
def status(home: Home = None, as_json: Json = False) -> None:
    """Show the state of the effort."""
    config = settings.load(home=home)
    require_effort(config.home)
    state, _ = read_standing(config.home)
    seen, today = liveness.check(config.home, SystemClock()), SystemClock().now().date().isoformat()
    pausing = pause_.read(config.home).paused and state.pause is None
    if as_json:
        _print_json(views_json.status(state, today) | seen.as_json() | {"pause_asked_for": pausing})
    else:
        _show(views.status(state, today))
        print(clean_line(seen.sentence(config.home), _SENTENCE))
        if pausing:
            then = "it begins when nothing runs" if seen.running else "the next controller will wait"
            print(f"A pause was requested; {then}.")


@app.command()
def watch(home: Home = None) -> None:
    """Show in the terminal what a service is doing, as `run` does; Ctrl-C ends the view and nothing else."""
    config = settings.load(home=home)
    watching.watch(config.home, sys.stdout, signals.stop_on_signals(), SystemClock())


@app.command("log")
def log_(home: Home = None, as_json: Json = False) -> None:
    """List every experiment."""
    config = settings.load(home=home)
    require_effort(config.home)
    state, _ = read_standing(config.home)
    if as_json:
        _print_json(views_json.log(state))
    else:
        _show(views.log(state))


@app.command()
def show(
    number: Number = None,
    home: Home = None,
    as_json: Json = False,
    in_full: Annotated[
        bool, typer.Option("--audit", help="Show everything that led to it and followed from it, in order.")
    ] = False,
    proposal: Annotated[
        int | None,
        typer.Option(min=0, help="Show everything about this proposal instead, even if it was refused."),
    ] = None,
) -> None:
    """Show one experiment: proposal, diff, log, result and audit trail."""
    if (number is None) == (proposal is None):
        raise typer.BadParameter("name an experiment, `show 3`, or a proposal, `show --proposal 7`")
    config = settings.load(home=home)
    require_effort(config.home)
    if proposal is not None:
        told = audit.trail_of_proposal(read_state(config.home)[0], proposal)
        if not told:
            raise UserError(f"There is no proposal {proposal} in the journal.")
        _print_json(audit.as_json(told)) if as_json else _show(audit.render(told))
        return
    assert number is not None
    state, archive = read_standing(config.home)
    if number >= len(state.experiments):
        raise UserError(f"There is no experiment {number}; `glovebox log` lists all of them.")
    whole = read_state(config.home)[0] if in_full else []
    trail = audit.trail(whole, number) if in_full else archive.records(number)
    diff = read_blob(config.home, state.experiments[number].diff_sha256).decode("utf-8", "replace")
    excerpt = Runs(config.home).excerpt(number) or views.log_gone(state, number)
    shown = views_json.Exhibit(state, number, trail, diff, excerpt, audited=in_full)
    if as_json:
        _print_json(views_json.show(shown))
    else:
        _show(views.show(shown))


@app.command("report")
def report_(
    home: Home = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: report/ in the home.")
    ] = None,
) -> None:
    """Write a report of the effort, with a chart of its progress."""
    config = settings.load(home=home)
    records, _ = read_state(config.home)
    for path in report.write(records, output or config.home / "report"):
        print(path)


@app.command("verify")
def verify_(
    home: Home = None,
    head: Annotated[
        str | None,
        typer.Option(help="A head hash that you kept elsewhere: check that the journal once ended with it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check journal, git, ledger, runs and blobs against each other, offline."""
    config = settings.load(home=home)
    require_effort(config.home)
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise UserError("A head is 64 hexadecimal digits, as `glovebox status` prints it.")
    found = verify.examine(config.home, head)
    problems, state = found.problems, found.state
    verified.write(config.home, problems, state, SystemClock().now())
    if as_json:
        _print_json({"problems": problems})
    for problem in [] if as_json else problems:
        print(problem)
    if problems:
        raise VerificationFailed(f"{len(problems)} contradictions found in {config.home}.")
    if not as_json:
        if state.logs_pruned:
            print(f"Removed on record: run.log of experiments below {state.logs_pruned} that were not kept.")
        if state.calls_pruned:
            print(f"Removed on record: requests and replies of calls below {state.calls_pruned}.")
        print(
            f"{state.seq + 1} journal lines, {len(state.finished)} experiments: all agree. Head: {state.head}"
        )


@app.command("doctor")
def doctor_(home: Home = None, device: Device = None, as_json: Json = False) -> None:
    """Check whether this machine is ready, and say what to do if it is not."""
    checks = doctor.examine(settings.load(home=home, device=device))
    if as_json:
        _print_json([check.as_json() for check in checks])
    for check in [] if as_json else checks:
        print(check.as_line())
    if not all(check.ok for check in checks):
        raise typer.Exit(3)


@app.command("reap")
def reap_(home: Home = None) -> None:
    """Remove containers and volumes of this home that belong to no live experiment."""
    for name in reap(settings.load(home=home)):
        print(name)


@app.command()
def pause(home: Home = None, slot: SlotNumber = None, reason: Reason = "") -> None:
    """Finish the running experiment and start nothing new until `glovebox continue`."""
    config = settings.load(home=home)
    require_effort(config.home)
    if slot is not None:
        steer.ask(config.home, "hold", reason, slot=slot)
        return
    pause_.write(config.home, paused=True, reason=reason)
    print(
        "Pausing after the running experiment; `glovebox continue` resumes."
        if home_in_use(config.home)
        else "No controller is at work; the next one will wait for `glovebox continue`."
    )


@app.command("continue")
def continue_(home: Home = None, slot: SlotNumber = None, reason: Reason = "") -> None:
    """End a pause, or let the next start retry an effort that stopped for a fault of the machine."""
    config = settings.load(home=home)
    require_effort(config.home)
    if slot is not None:
        steer.ask(config.home, "release", reason, slot=slot)
        return
    pause_.write(config.home, paused=False)


@app.command()
def instruct(
    text: Annotated[str, typer.Argument(help="What to consider; - reads it from standard input.")],
    home: Home = None,
    reason: Reason = "",
) -> None:
    """Give the agent an instruction with its next question. The audit trail has it as a person's words."""
    config = settings.load(home=home)
    steer.instruct(config.home, sys.stdin.read() if text == "-" else text, reason)


@app.command()
def queue(
    file: Annotated[Path, typer.Argument(help="A train.py.")],
    home: Home = None,
    description: Annotated[str, typer.Option(help="One line for the ledger. Default: its name.")] = "",
    reason: Reason = "",
) -> None:
    """Run a train.py of your own on the next free slot, inside the effort: it may be kept."""
    steer.queue(settings.load(home=home).home, file, description, reason)


@app.command()
def kill(number: Running, home: Home = None, reason: Reason = "") -> None:
    """End an experiment that is running. It is void, without a score, and not repeated."""
    steer.ask(settings.load(home=home).home, "kill", reason, target=number)


@app.command()
def requeue(number: Running, home: Home = None, reason: Reason = "") -> None:
    """Run an earlier experiment's train.py again on the next free slot, as a new experiment."""
    steer.ask(settings.load(home=home).home, "requeue", reason, target=number)


@app.command()
def rollback(number: Running, home: Home = None, reason: Reason = "") -> None:
    """Make an earlier kept program the frontier again. What was kept since counts as taken back."""
    steer.ask(settings.load(home=home).home, "rollback", reason, target=number)


@app.command()
def limit(
    home: Home = None,
    experiments: Annotated[str | None, typer.Option(help="Experiments of the effort, or none.")] = None,
    hours: Annotated[str | None, typer.Option(help="Hours of the effort, or none.")] = None,
    dollars: Annotated[str | None, typer.Option(help="Dollars for the agent, or none.")] = None,
    dollars_per_day: Annotated[str | None, typer.Option(help="The same for a UTC day, or none.")] = None,
    reason: Reason = "",
) -> None:
    """Change a limit while the effort runs. It holds until the setting itself is changed."""
    given = {
        "experiments": experiments,
        "hours": hours,
        "dollars": dollars,
        "dollars_per_day": dollars_per_day,
    }
    steer.limit(settings.load(home=home).home, given, reason)


@app.command("agent")
def agent_(
    name: Annotated[str, typer.Argument(help="claude, tuner, replay:DIR or auto.")],
    home: Home = None,
    reason: Reason = "",
) -> None:
    """Ask another agent from now on. It holds until the setting itself is changed."""
    config = settings.load(home=home, agent=name)
    choose.require_known(name)
    steer.ask(config.home, "agent", reason, agent=name)


@app.command()
def web(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0: any. Default: 8700.", min=0, max=65535)
    ] = None,
) -> None:
    """Show the effort in a browser, and steer it from there."""
    web_server.serve(settings.load(home=home, **_section("web", host=host, port=port)))


@app.command()
def runner(home: Home = None, device: Device = None) -> None:
    """Run containers for a controller that has no access to the engine's socket."""
    config = settings.load(home=home, device=device)
    logs.configure(sys.stderr)
    runner_service.serve(config, signals.stop_on_signals())


@app.command()
def health(home: Home = None) -> None:
    """Say what the controller of this home is doing; exit 3 if there is none or its heartbeat is overdue."""
    config = settings.load(home=home)
    seen = liveness.check(config.home, SystemClock())
    if not seen.running or seen.silent_seconds > 0:
        raise NotReady(seen.sentence(config.home))
    print(clean_line(seen.doing or "at work", _SENTENCE))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _section(name: str, **values: Any) -> dict[str, Any]:
    """A nested settings section from command-line options; empty if none was given."""
    given = {key: value for key, value in values.items() if value is not None}
    return {name: given} if given else {}


def _show(shown: RenderableType) -> None:
    """Print; wide if not in a terminal, so that each table row stays on one line."""
    if sys.stdout.isatty():
        Console().print(shown)
        return
    console = Console(width=200, soft_wrap=True)
    with console.capture() as capture:
        console.print(shown)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))
