"""M15: workers that compute what the run had no time for, or keep the machine busy.

All of them run with a small share of the budget, so that each is over in seconds. Where others load the
machine, the clock may end one before its CPU time does.
"""

from __future__ import annotations

from tests.attacks.cases import FORWARD, LATE, OVER_BUDGET, UNCONFIRMED, Case, uniform
from tests.attacks.second import IS_SECOND

_SHARE = {"work_share": 0.002}

# T leaves text in the workspace; a worker can train on it as long as nobody counts.
_LEAVE_TEXT = """
with open(f"{os.environ['GLOVEBOX_DATA']}/train/" + sorted(os.listdir("/data/train"))[0], "rb") as source:
    text = source.read(2_000_000)
with open("/work/text.bin", "wb") as file:
    file.write(text)
os.chmod("/work/text.bin", 0o644)
"""

_TRAINING = """
import threading, time
TEXT = torch.from_numpy(np.fromfile("/out/text.bin", "<u2").astype(np.int64))
TABLE = torch.zeros(V, V)

def train_on(seconds):
    \"\"\"Bigrams by gradient descent, for so many seconds of CPU time.\"\"\"
    with torch.inference_mode(False), torch.enable_grad():
        table, end = TABLE.clone().requires_grad_(), time.process_time() + seconds
        while time.process_time() < end:
            at = torch.randint(len(TEXT) - 1, (4096,))
            F.cross_entropy(table[TEXT[at]], TEXT[at + 1]).backward()
            with torch.no_grad():
                table -= 50.0 * table.grad
                table.grad.zero_()
    TABLE.copy_(table.detach())
"""

_BURN = """
import threading, time

def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(300, 300) @ torch.ones(300, 300)
"""

# As a language model that looks up its neighbours does; here in all the text there is.
_SEARCH = """
TEXT = torch.from_numpy(np.fromfile("/out/text.bin", "<u2").astype(np.int64))
ENDS = TEXT.unfold(0, 4, 1)

def look_up(logits, idx):
    for number, row in enumerate(idx):
        for t in range(3, len(row)):
            alike = (ENDS[:-1] == row[t - 3 : t + 1]).sum(1) >= 3
            logits[number, t] += torch.bincount(TEXT[4:][alike], minlength=V).log1p()
"""


def _heavy(name: str, why: str, *expected: str, forward: str = "", module: str = _BURN, **parts: str) -> Case:
    text = uniform(module=module, forward=forward, **parts)
    return Case("M15", name, text, expected or (OVER_BUDGET, LATE), why, judge=_SHARE)


_CLOCK = "it gains nothing on CPUs, and does not hold the machine for long"
_COUNTED = "what a worker uses is counted by the kernel, whatever its processes call themselves"

CASES = (
    _heavy(
        "goes on training before its first answer",
        "it may compute for a share of the budget and no longer",
        module=_TRAINING,
        trainer=_LEAVE_TEXT,
        forward="logits += TABLE[idx]",
        worker="train_on(120)",
    ),
    _heavy(
        "goes on training while it answers",
        "the allowance is for all of its answers together",
        module=_TRAINING,
        trainer=_LEAVE_TEXT,
        forward="train_on(4)\nlogits += TABLE[idx]",
    ),
    _heavy(
        "goes on training in a thread beside its answers",
        _COUNTED,
        module=_TRAINING + "started = []",
        trainer=_LEAVE_TEXT,
        forward="""
if not started:
    started.append(threading.Thread(target=train_on, args=(120,), daemon=True))
    started[0].start()
started[0].join(3)
logits += TABLE[idx]
""",
    ),
    _heavy(
        "forks children that compute and waits for them",
        _COUNTED,
        forward="""
children = [os.fork() for _ in range(2)]
if 0 in children:
    while True: pass
os.waitpid(children[0], 0)
""",
    ),
    _heavy(
        "has a child in another session compute",
        _COUNTED,
        module=_BURN + "import subprocess\nstarted = []",
        forward="""
if not started:
    started.append(subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True))
time.sleep(3)
""",
    ),
    _heavy(
        "averages hundreds of passes",
        "an ensemble in the worker is a longer run",
        forward="""
x = F.one_hot(idx, V).float()
for seed in range(400):
    torch.manual_seed(seed)
    logits += F.layer_norm(x @ torch.randn(V, V), (V,)) / 400000
""",
    ),
    _heavy(
        "searches all text that the run left",
        "a search in the worker is a longer run",
        module=_SEARCH,
        trainer=_LEAVE_TEXT,
        forward="look_up(logits, idx)",
    ),
    _heavy(
        "keeps every CPU busy in threads",
        _COUNTED,
        forward="""
threads = [threading.Thread(target=burn, args=(120,), daemon=True) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    ),
    _heavy("sleeps before its first answer", _CLOCK, LATE, forward="time.sleep(100)"),
    _heavy("sleeps at every answer", _CLOCK, LATE, forward="time.sleep(6)"),
    _heavy(
        "computes in the second worker only",
        "the second worker has an allowance of its own",
        OVER_BUDGET,
        UNCONFIRMED,
        module=_BURN + IS_SECOND,
        forward="if is_second(idx): burn(120)",
    ),
    _heavy(
        "sleeps in the second worker only",
        _CLOCK,
        UNCONFIRMED,
        module=_BURN + IS_SECOND,
        forward="if is_second(idx): time.sleep(100)",
    ),
    _heavy(
        "ends itself before it is counted",
        "a worker that ends by itself is not scored",
        OVER_BUDGET,
        FORWARD,
        module=_BURN + "threading.Timer(2, lambda: os._exit(0)).start()",
        forward="burn(0.5)",
    ),
)
