"""M8, M9 and M10: looking for the judge's data, bringing text along, changing what the score is made with."""

from __future__ import annotations

import hashlib
import json

from controller.app.trial import Trial
from controller.core.program.policy import MAX_BYTES
from controller.core.program.source import plain_text
from tests.attacks.cases import NO_GAIN, Case, uniform

# The needles are written backwards, so that a text does not find itself. The arena fills them in: bytes of
# the judge's data, which must not turn up, and of the tokenizer, which must, or the search proves nothing.
_SEARCH = """
import os

SECRETS = [bytes.fromhex(text)[::-1] for text in "@SECRETS@".split()]
assert len(SECRETS) == 8
KNOWN = bytes.fromhex("@KNOWN@")[::-1]
IMAGE = ("/usr", "/opt/venv", "/sys", "/var", "/etc")

def head(path, limit=1 << 24):
    content = b""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while len(content) < limit and (block := os.read(file, 1 << 20)):
            content += block
    finally:
        os.close(file)
    return content

def search():
    searched, known = 0, False
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in IMAGE]
        for name in files:
            try:
                content = head(os.path.join(folder, name))
            except OSError:
                continue
            searched += 1
            known = known or KNOWN in content
            for secret in SECRETS:
                if secret in content:
                    raise SystemExit(f"found the judge's data in {folder}/{name}")
    if not known:
        raise SystemExit("the search does not even find the tokenizer")
    print(f"searched {searched} files in vain")
"""

_ASK_BY_NAME = """
import glob, os
for pattern in (
    "/judge/*", "/data/val*", "/data/hold*", "/data/../judge/*", "/proc/*/root/judge/*",
    "/proc/*/cwd/../judge/*", "/home/*", "/root/*", "/run/docker.sock",
    "/var/run/docker.sock", "/proc/1/root/data/judge/*",
):
    if found := glob.glob(pattern):
        raise SystemExit(f"found {found}")
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
if any("judge" in mount or "holdout" in mount for mount in mounts):
    raise SystemExit(f"mounted: {mounts}")
for name in os.environ:
    if any(word in name for word in ("KEY", "TOKEN", "SECRET", "JUDGE", "DOCKER", "PROXY")):
        raise SystemExit(f"in the environment: {name}")
"""

_TAMPER = """
import ctypes, os, shutil

libc = ctypes.CDLL(None, use_errno=True)
REMOUNT, BIND = 32, 4096

def mounted(source, target, flags):
    if libc.mount(source.encode(), target.encode(), None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")

def reopened(path):
    file = os.open(path, os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{file}", os.O_WRONLY))

ACTS = {
    "append": lambda path: open(path, "ab").close(),
    "truncate": lambda path: os.truncate(path, 0),
    "remove": os.unlink,
    "rename": lambda path: os.rename(path, path + ".old"),
    "replace": lambda path: os.replace(shutil.copy("/proc/self/cmdline", "/tmp/other"), path),
    "chmod": lambda path: os.chmod(path, 0o777),
    "reopen": reopened,
    "remount": lambda path: mounted("none", path, REMOUNT | BIND),
    "mount over": lambda path: mounted("/tmp", path, BIND),
    "unmount": lambda path: (_ for _ in ()).throw(OSError()) if libc.umount2(path.encode(), 2) else None,
    "new file": lambda path: open(os.path.join(os.path.dirname(path), "new"), "x").close(),
}

def tamper(*tops, new=True):
    paths = [top for top in tops if os.path.isfile(top)]
    for top in tops:
        paths += [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    if not paths:
        raise SystemExit("there is nothing to tamper with")
    for path in paths:
        for name, act in ACTS.items():
            if name == "new file" and not new:
                continue
            try:
                act(path)
            except OSError:
                continue
            raise SystemExit(f"could {name}: {path}")
"""

_OWN_TABLES = """
prepare.manifest()["vocab_size"] = 1
prepare.get_token_bytes = lambda device="cpu": torch.full((V,), 1000)
prepare.Tokenizer.encode = lambda self, text, **kwargs: [0]
prepare.pack_rows = lambda *args: iter(())
prepare.read_documents = lambda *args: iter(())
"""

_LARGE = MAX_BYTES * 2 // 3
"""Characters: not too many, but for the bytes that they take."""


def _searched(trial: Trial) -> str:
    return "" if "in vain" in (trial.folder / "run.log").read_text(errors="replace") else "it did not search"


def _untouched(trial: Trial) -> str:
    """Every file of the data is what its manifest says."""
    for part in ("public", "judge"):
        folder = trial.folder.parents[1] / "data" / part
        for name, facts in json.loads((folder / "manifest.json").read_bytes())["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != facts["sha256"]:
                return f"{name} was changed"
    return ""


_UTF_7 = ("€ß" * 100).encode("utf-7").decode("ascii")

_NOTHING_THERE = "only the judge's container mounts it; what it sends is inputs"
_READ_ONLY = "mounted read-only; the judge uses its own copies"

CASES = (
    Case(
        "M8",
        "the trainer searches every file",
        uniform(trainer=_SEARCH + "search()"),
        (NO_GAIN,),
        _NOTHING_THERE,
        complaint=_searched,
    ),
    Case(
        "M8",
        "the worker searches every file",
        uniform(worker=_SEARCH + "search()"),
        (NO_GAIN,),
        _NOTHING_THERE,
    ),
    Case(
        "M8",
        "both ask for it by name",
        uniform(trainer=_ASK_BY_NAME, worker=_ASK_BY_NAME),
        (NO_GAIN,),
        _NOTHING_THERE,
    ),
    Case(
        "M9",
        "carries more than fits",
        uniform(module=f'TEXT = "{"x" * MAX_BYTES}"'),
        ("refused",),
        "train.py has a size limit",
    ),
    Case(
        "M9",
        "carries more bytes than fit, in fewer characters",
        uniform(module=f'TEXT = "{"€" * _LARGE}"'),
        ("refused",),
        "the limit counts bytes",
    ),
    Case(
        "M9",
        "carries text in an encoding of its own",
        plain_text("# -*- coding: utf-7 -*-\n" + uniform(module=f"TEXT = '{_UTF_7}'")),
        (NO_GAIN,),
        "a proposal is UTF-8, whatever it declares: what runs is what is on record",
    ),
    Case(
        "M10",
        "the trainer tampers with data and harness",
        uniform(trainer=_TAMPER + 'tamper("/data", "/glovebox")\ntamper("/work/prepare.py", new=False)'),
        (NO_GAIN,),
        _READ_ONLY,
        complaint=_untouched,
    ),
    Case(
        "M10",
        "the worker tampers with all it is given",
        uniform(worker=_TAMPER + 'tamper("/data", "/glovebox", "/out", "/requests")'),
        (NO_GAIN,),
        _READ_ONLY,
        complaint=_untouched,
    ),
    Case("M10", "brings its own tables", uniform(module=_OWN_TABLES), (NO_GAIN,), _READ_ONLY),
)
