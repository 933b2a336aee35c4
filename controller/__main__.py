"""`python -m controller` and the command `glovebox`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command. Ctrl-C while it is still being loaded just ends it, without a traceback."""
    require_utf8()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from controller.cli import main as run

    run()


def require_utf8() -> None:
    """Start anew in UTF-8 mode if names of files and arguments would go by another encoding.

    The encoding of an interpreter is settled before its first line. Why all of it and not piece by piece:
    docs/decisions/encoding.md
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        # As bytes: not every encoding (EUC-JP) gives back what it was given.
        with open("/proc/self/cmdline", "rb") as file:
            _, *arguments = file.read().split(b"\0")[:-1]
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments])


if __name__ == "__main__":
    main()
