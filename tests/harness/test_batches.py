"""Flat scripts that fetch batches outside their main thread, as the worker meets them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import batches
import pytest
import torch

import prepare
import worker

pytestmark = [
    pytest.mark.usefixtures("_own_process_state"),
    # pytest takes the SystemExit of a thread for an error; Python does not.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

BUILT = """
import queue, threading, time, torch
from concurrent.futures import ThreadPoolExecutor
import prepare
model = torch.nn.Linear(2, 3)
"""

PREFETCHING = {
    "thread and queue": """
fetched = queue.Queue(2)
def fetch():
    for batch in prepare.make_dataloader(None, 1, 2, "train"):
        fetched.put(batch)
threading.Thread(target=fetch).start()
fetched.get()
""",
    "asked before there is a model": """
fetched = queue.Queue(2)
def fetch():
    for batch in prepare.make_dataloader(None, 1, 2, "train"):
        fetched.put(batch)
del model
threading.Thread(target=fetch, daemon=True).start()
begin = time.thread_time()
while time.thread_time() - begin < 1: pass
model = torch.nn.Linear(2, 3)
fetched.get()
""",
    "executor": """
loader = prepare.make_dataloader(None, 1, 2, "train")
with ThreadPoolExecutor(1) as pool:
    ahead = pool.submit(next, loader)
    ahead.result()
""",
    "asked again and again": """
fetched = queue.SimpleQueue()
threading.Thread(target=lambda: fetched.put(next(prepare.make_dataloader(None, 1, 2, "train")))).start()
while True:
    try:
        fetched.get(timeout=0.1)
        break
    except queue.Empty:
        continue
""",
    "joined at the end": """
fetched = queue.SimpleQueue()
thread = threading.Thread(target=lambda: fetched.put(next(prepare.make_dataloader(None, 1, 2, "train"))))
thread.start()
try:
    fetched.get()
finally:
    thread.join()
""",
    "data loader with workers": """
from torch.utils.data import DataLoader, IterableDataset
class Rows(IterableDataset):
    def __iter__(self):
        return iter(prepare.make_dataloader(None, 1, 2, "train"))
for batch in DataLoader(Rows(), batch_size=None, num_workers=2):
    pass
""",
    "process and queue": """
import multiprocessing
context = multiprocessing.get_context("fork")
fetched = context.Queue(2)
def fetch():
    for batch in prepare.make_dataloader(None, 1, 2, "train"):
        fetched.put(batch)
context.Process(target=fetch, daemon=True).start()
fetched.get()
""",
}


def run(folder: Path, script: str) -> torch.nn.Module:
    path = folder / "train.py"
    path.write_text(BUILT + script + "\nraise SystemExit('it went on')\n")
    return worker.run_train(path)[1]


@pytest.mark.parametrize("name", PREFETCHING)
def test_it_ends_where_the_main_thread_waits(name: str, tmp_path: Path) -> None:
    began = time.monotonic()
    model = run(tmp_path, PREFETCHING[name])
    assert [*model.state_dict()] == ["weight", "bias"]
    assert time.monotonic() - began < 20
    assert "first batch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("script", ["del model; fetched.get()", "\nwhile True: time.sleep(0.001)"])
def test_without_a_model_or_without_end_it_is_told_so(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LIMIT_SECONDS", 1.0)
    monkeypatch.setattr(batches, "WORK", 0.0)  # so that nothing looks like waiting
    ask = 'threading.Thread(target=next, args=[prepare.make_dataloader(None, 1, 2, "train")]).start()\n'
    with pytest.raises(worker.Failure, match="nothing waited for one") as raised:
        run(tmp_path, f"fetched = queue.Queue()\n{ask}{script}")
    assert raised.value.status == worker.BATCHES


def test_a_script_that_works_while_others_ask_is_not_interrupted(tmp_path: Path) -> None:
    script = """
threading.Thread(target=next, args=[prepare.make_dataloader(None, 1, 2, "train")], daemon=True).start()
begin = time.thread_time()
while time.thread_time() - begin < 2: pass
model = torch.nn.Linear(5, 7)
next(prepare.make_dataloader(None, 1, 2, "train"))
"""
    assert run(tmp_path, script).state_dict()["weight"].shape == (7, 5)


def test_an_error_while_others_ask_is_the_scripts_own(tmp_path: Path) -> None:
    ask = 'threading.Thread(target=next, args=[prepare.make_dataloader(None, 1, 2, "train")]).start()\n'
    with pytest.raises(worker.Failure, match="ZeroDivisionError"):
        run(tmp_path, ask + "1 / 0")


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_real_loader_knows_a_process_of_a_run(context: str, public_data: Path) -> None:
    """Its copy of the model is the one from before the training, so it never saves."""
    rows = torch.utils.data.DataLoader(
        _Rows(), batch_size=None, num_workers=1, multiprocessing_context=context
    )
    inputs, targets, child = next(iter(rows))
    assert child and inputs.shape == (2, 32) and torch.equal(inputs[:, 1:], targets[:, :-1])
    assert not prepare._is_child()


Row = tuple[torch.Tensor, torch.Tensor, bool]


class _Rows(torch.utils.data.IterableDataset[Row]):
    def __iter__(self) -> Iterator[Row]:
        tokenizer = prepare.Tokenizer.from_directory()
        for inputs, targets, _ in prepare.make_dataloader(tokenizer, 2, 32, "train"):
            yield inputs, targets, prepare._is_child()
