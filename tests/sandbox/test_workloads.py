"""What training does need still works in a sealed T: processes, shared memory, compilers, the loopback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controller.core.containers.config import MIB, Limits
from tests.support.bench import Bench, require_runtime

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOMY = Limits(memory=4096 * MIB, pids=512, tmp_bytes=512 * MIB)

LOADERS = """
import multiprocessing, os, subprocess
import numpy, torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        return torch.full((64,), float(index))

def main():
    for method in ("fork", "spawn"):
        loader = DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context=method)
        print(method, sum(batch.sum().item() for batch in loader))
    tokens = numpy.memmap("tokens", dtype=numpy.uint16, mode="w+", shape=(1000,))
    tokens[:] = 7
    tokens.flush()
    print("memmap", int(numpy.memmap("tokens", dtype=numpy.uint16).sum()))
    print("shell", subprocess.run("echo $((6 * 7)) | cat", shell=True, capture_output=True, text=True).stdout)
    os.mkfifo("/tmp/pipe")

if __name__ == "__main__":
    main()
"""

DISTRIBUTED = """
import torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29500", rank=0, world_size=1)
ones = torch.ones(3)
dist.all_reduce(ones)
print("gloo", ones.sum().item())
dist.destroy_process_group()
"""

COMPILED = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
compiled, x = torch.compile(model), torch.randn(4, 8)
compiled(x).sum().backward()
print("compiled", torch.allclose(compiled(x), model(x), atol=1e-5), model[0].weight.grad is not None)
"""


def test_loaders_memory_maps_and_subprocesses(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(trainer=ROOMY)
    assert bench.run(LOADERS, budget=120.0).exit_code == 0, bench.log_text
    assert bench.log_text.split("\n")[:4] == ["fork 7680.0", "spawn 7680.0", "memmap 7000", "shell 42"]


def test_torch_distributed_on_the_loopback(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(trainer=ROOMY)
    assert bench.run(DISTRIBUTED, budget=60.0).exit_code == 0, bench.log_text
    assert "gloo 3.0" in bench.log_text


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_torch_compile(make_bench: Callable[..., Bench], runtime: str) -> None:
    require_runtime(runtime)
    bench = make_bench(trainer=ROOMY, runtime=runtime)
    assert bench.run(COMPILED, budget=240.0).exit_code == 0, bench.log_text
    assert "compiled True True" in bench.log_text
