"""A worker that leaves something and whoever comes after it, with and without emptied caches in between."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from controller.core.containers import builders, volumes
from controller.core.containers.config import MIB, SealedConfig
from controller.core.containers.names import ContainerNames
from controller.core.containers.orders import Item
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import EXCHANGES, FIRST, SECOND, Exchange
from controller.core.scoring.config import JudgeConfig
from controller.sandbox.engine.docker_sandbox import DockerSandbox
from tests.attacks import channel_programs
from tests.support.bench import SMALL, Bench

SECONDS = 120.0
OUTPUT_BYTES = 4 * MIB
MOUNTED_BYTES = 4 * MIB
"""A tokenizer's file so large that it has a page for each bit."""
ROOMY = SMALL.model_copy(update={"memory": 1024 * MIB})


@dataclass(frozen=True)
class Relayed:
    """What came of one channel: seconds to write and to read, and the share of wrong bits."""

    bits: int
    written: float
    read: float
    errors: float

    @property
    def told(self) -> bool:
        """Clearly more than chance: five standard errors below one half."""
        return self.errors < 0.5 - 5 * 0.5 / math.sqrt(self.bits)


@dataclass(frozen=True)
class Relay:
    """A home in which a worker is followed by a trainer or by the second worker."""

    bench: Bench

    @classmethod
    def of(cls, bench: Bench, log_bytes: int = MIB) -> Relay:
        """In a home within that of `bench`, whose data others use; with room for the programs."""
        changes = {"trainer": ROOMY, "worker": ROOMY, "log_bytes": log_bytes}
        config = bench.config.model_copy(update=changes)
        home = bench.home / "relay"
        tokenizer = home / "data" / "public" / "tokenizer"
        tokenizer.mkdir(parents=True, exist_ok=True)
        (tokenizer.parent / "manifest.json").touch()
        (tokenizer / "tokenizer.json").write_bytes(bytes(MOUNTED_BYTES))
        return cls(replace(bench, home=home, config=config))

    @contextmanager
    def sandbox(self, *, empty: bool) -> Iterator[DockerSandbox]:
        config = self.bench.config.model_copy(update={"empty_caches": empty})
        with closing(DockerSandbox(config, self.bench.home, self.bench.clock)) as sandbox:
            yield sandbox

    def relay(self, bits: int, *, empty: bool, second: bool = False) -> Mapping[str, Relayed]:
        """By channel. `second`: it is the second worker that reads, and not the next trainer."""
        nonce, seed = secrets.token_hex(8), secrets.randbits(63)
        writer = channel_programs.program(nonce, bits, seed)
        reader = channel_programs.program(nonce, bits, None)
        if not empty:
            with self.sandbox(empty=True) as first:  # whose caches would be emptied again behind the writer
                self.train(first, "print(0)")
        with self.sandbox(empty=empty) as sandbox:
            wrote = json.loads(self.work(sandbox, writer))  # the caches are empty before it starts
            read = json.loads(self.work(sandbox, reader, SECOND) if second else self.train(sandbox, reader))
        return {
            channel: _compared(bits, seed, channel, wrote[channel], read[channel])
            for channel in channel_programs.CHANNELS
        }

    def work(self, sandbox: DockerSandbox, program: str, exchange: Exchange = FIRST) -> str:
        """What `program` prints as the train.py of a worker; it is run as it is and not by worker.py."""
        attempt = self.bench.attempt(program, SECONDS)
        place = ContainerNames(self.bench.home, attempt.experiment, attempt.number)
        judging = JudgeConfig(total_seconds=SECONDS)
        spec = builders.worker(
            self.bench.config, place, self.bench.files, judging, exchange, train=attempt.train_path, seed=42
        )
        command = ("exec", "--limit", str(spec.life_seconds), "--", "python", "/glovebox/train.py")
        return self._run(sandbox, place, replace(spec, command=command, streamed=False))

    def train(self, sandbox: DockerSandbox, program: str) -> str:
        """What `program` prints as the train.py of a trainer."""
        attempt = self.bench.attempt(program, SECONDS)
        place = ContainerNames(self.bench.home, attempt.experiment, attempt.number)
        spec = replace(self.bench.trainer().spec(attempt), streamed=False)
        return self._run(sandbox, place, spec)

    def _run(self, sandbox: DockerSandbox, place: ContainerNames, spec: ContainerSpec) -> str:
        names = [place.name(item) for item in (Item.WORKSPACE, *(n for e in EXCHANGES for n in e[1:]))]
        try:
            for volume in self._volumes(place, self.bench.config):
                sandbox.create_volume(volume)
            began = sandbox.start(replace(spec, train=None))
            end = sandbox.wait(spec.name, deadline=began + SECONDS, stop=threading.Event())
            said = sandbox.output(spec.name, OUTPUT_BYTES).decode()
            if end.exit_code != 0:
                raise RuntimeError(f"{spec.name} ended with {end.exit_code}: {said[-500:]}")
            return said
        finally:
            sandbox.remove(containers=[spec.name], volumes=names)

    def _volumes(self, place: ContainerNames, config: SealedConfig) -> Iterator[volumes.VolumeSpec]:
        yield volumes.workspace(config, place, SECONDS)
        for exchange in EXCHANGES:
            yield from volumes.exchange_volumes(config, place, exchange, SECONDS)


def _compared(
    bits: int, seed: int, channel: str, wrote: Mapping[str, Any], read: Mapping[str, Any]
) -> Relayed:
    sent = channel_programs.message(seed, channel, bits)
    wrong = sum(a != b for a, b in zip(sent, read["bits"], strict=True))
    return Relayed(bits, wrote["seconds"], read["seconds"], wrong / bits)
