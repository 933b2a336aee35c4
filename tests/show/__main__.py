"""`python -m tests.show`: thirty experiments on real containers by a researcher who does everything.

Half way the key is revoked. The effort stops with one sentence; with another key the same command goes on,
then with the tuner as understudy, and nobody does anything else. At the end a quota is exhausted for hours.

Prints what each experiment cost, every problem found in the record, and how much of the time no T ran.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from controller.agents.llm.config import ClaudeConfig
from tests.bench.idle import idle
from tests.show import live
from tests.show.account import Account
from tests.show.outages import missing
from tests.show.script import Script, thinking_time
from tests.support.messages_server import MessagesServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.show")
    parser.add_argument("--experiments", type=int, default=30)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of each experiment")
    parser.add_argument("--least", type=float, default=0.5, help="seconds a reply takes at least")
    parser.add_argument("--most", type=float, default=1.5, help="seconds a reply takes at most")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (options.folder or Path(temporary)) / "home"
        home.parent.mkdir(parents=True, exist_ok=True)
        live.prepare(home)
        script = Script(thinking_time(options.least, options.most))
        with MessagesServer(script) as server:
            try:
                status, words = live.stopped(home, server, options.experiments, options.budget)
                print(f"stopped with status {status}: {words}\nthe key is replaced, the command repeated")
                changes = {"ANTHROPIC_API_KEY": live.NEXT_KEY, **live.UNDERSTUDY}
                live.run(home, server, options.experiments, options.budget, **changes)
            finally:
                live.remove_leftovers(home)
            account = Account(home)
            problems = [
                *account.problems(server, ClaudeConfig().price(), options.experiments),
                *missing(account, script, server, rehearsed=True),
                *([] if status == 2 and "check the key" in words else ["it did not say why it stopped"]),
                *live.leaks(home),
            ]
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    print(*account.table(), sep="\n")
    print(f"events: {account.events()}")
    print(f"failed requests, by status: {account.failures()}; repairs asked for: {script.repairs}")
    print(idle(account.records))
    print(*(problems or ["every event is accounted for"]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
