"""`python -m controller` and the command `glovebox`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command. Ctrl-C while it is still being loaded just ends it, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from controller.cli import main as run

    run()


if __name__ == "__main__":
    main()
