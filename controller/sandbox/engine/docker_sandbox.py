"""Container life cycle. Apart from the reaper, the only module that changes anything on the engine.

`connection` holds the connection and what its failures mean, `output` reads what a container prints,
`waiting` waits for a container to end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from controller.core.containers.config import SealedConfig
from controller.core.containers.domains import Domain
from controller.core.containers.engine_info import NOT_MAPPED, confinement, id_map, unfit, user_ids
from controller.core.containers.names import (
    LABEL_DEADLINE,
    LABEL_DOMAIN,
    LABEL_EXPERIMENT,
    LABEL_HOME,
    SLOT,
    THIRD_HAND_SECONDS,
    ContainerNames,
)
from controller.core.containers.service_builders import caches, gpu_listing, gpu_probe
from controller.core.containers.spec import ContainerSpec
from controller.core.containers.volumes import VolumeSpec
from controller.core.errors import GloveboxError, InfrastructureError, NotReady
from controller.core.hardware.slots import cpu_set
from controller.core.untrusted import clean_line
from controller.failpoints import reach
from controller.ports import Clock, Exit
from controller.sandbox.engine.attestation import differences
from controller.sandbox.engine.caches import Caches
from controller.sandbox.engine.connection import connect, engine_call, time_of
from controller.sandbox.engine.failures import EngineFault, to_error
from controller.sandbox.engine.output import Stream, pump
from controller.sandbox.engine.waiting import wait_or_kill

_CLOCK_STEP_SECONDS = 2.0
"""How far the engine's run time of a container may differ from ours; beyond it, the wall clock was set."""
_OUTPUT_BYTES = 16384
"""Output kept from one of our own helper containers."""
_SIGKILLED = 137
_NEVER = "0001-01-01"

_GONE = frozenset({EngineFault.GONE})
_ENDED = frozenset({EngineFault.GONE, EngineFault.NOT_RUNNING})


class DockerSandbox:
    """`ports.Sandbox` on the Docker engine at `engine.address()`.

    Raises NotReady if there is no engine, or none that this user may use.
    """

    def __init__(self, config: SealedConfig, home: Path, clock: Clock, slots: int = 1) -> None:
        """`slots`: how many experiments run side by side at most."""
        self._config = config
        self._home = home.resolve()
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        self._began: dict[str, float] = {}
        self._waiting: dict[str, ContainerSpec] = {}
        """Containers that have not been sent their start signal yet."""
        self._signalled: set[str] = set()
        self._image_id: str | None = None
        self._engine_is_local: bool | None = None
        off = "" if config.empty_caches else "sandbox.empty_caches is off"
        if slots > 1:
            off = f"experiments run on {slots} slots at once (docs/decisions/slots.md)"
        self._caches = Caches(off, empty=self._empty_caches, running=self._running)
        with engine_call("answer", starting_up=True):
            self._client = connect()

    def close(self) -> None:
        self._caches.close()
        while self._streams:
            self._streams.popitem()[1].close()
        self._client.close()

    def create_volume(self, spec: VolumeSpec) -> None:
        labels = {**spec.labels, LABEL_DEADLINE: self._reap_after(spec.life_seconds)}
        with engine_call(f"create the volume {spec.name}"):
            body = spec.to_engine(id_map(self._client.info()) or NOT_MAPPED)
            made = self._client.create_volume(body["Name"], body["Driver"], body["DriverOpts"], labels)
        if made["Options"] != body["DriverOpts"]:
            raise InfrastructureError(f"The volume {spec.name} is not what was asked for: {made['Options']}.")
        reach("volume-created")

    def start(self, spec: ContainerSpec) -> float:
        if spec.waits:
            self._waiting[spec.name] = spec
            return self._start(spec)
        with self._caches.before(spec.domain):
            return self._start(spec)

    def begin(self, name: str) -> None:
        spec = self._waiting.get(name)
        if spec is None:
            if name not in self._signalled:
                raise InfrastructureError(f"The container {name} was not started by us; it gets no signal.")
            self._send_start(name)
            return
        experiment = spec.labels[LABEL_EXPERIMENT]
        if spec.domain is Domain.WORKER and Domain.WORKER in self._running(experiment):
            raise InfrastructureError("A worker cannot begin while another one is alive.")
        with self._caches.before(spec.domain, warm=False):
            self._signalled.add(name)
            del self._waiting[name]
            self._send_start(name)

    def _send_start(self, name: str) -> None:
        with engine_call(f"signal the container {name}", forgive=_ENDED):
            self._client.kill(name, "SIGUSR1")
        reach("container-told")

    def _start(self, spec: ContainerSpec) -> float:
        body = spec.to_engine()
        body["Labels"][LABEL_DEADLINE] = self._reap_after(spec.life_seconds)
        reach(f"container-due-{spec.domain}")
        with engine_call(f"create the container {spec.name}"):
            # Not the SDK's create_container: it copies proxy settings, which may hold passwords, from the
            # user's Docker configuration into the container's environment.
            self._client.create_container_from_config(body, spec.name)  # type: ignore[no-untyped-call]
        reach(f"container-created-{spec.domain}")
        try:
            self._attest(spec, body)
            if spec.streamed:
                self._attach(spec.name)
            with engine_call(f"start the container {spec.name}"):
                before = self._clock.monotonic()
                self._client.start(spec.name)
                after = self._clock.monotonic()
        except GloveboxError:
            with suppress(GloveboxError):
                self.remove(containers=[spec.name])
            raise
        reach(f"container-started-{spec.domain}")
        started = self.running_since(spec.name)
        self._began[spec.name] = before if started is None else min(max(started, before), after)
        return self._began[spec.name]

    def follow(
        self, name: str, sink: Callable[[bytes], None], since: float | None = None
    ) -> threading.Thread:
        arguments = name, sink, self._streams.pop(name, None), since
        thread = threading.Thread(target=pump, args=arguments, name=f"follow {name}", daemon=True)
        thread.start()
        return thread

    def wait(
        self,
        name: str,
        *,
        deadline: float,
        stop: threading.Event,
        tick: Callable[[], None] | None = None,
    ) -> Exit:
        sent = wait_or_kill(
            name, lambda: self._kill(name), self._clock, deadline=deadline, stop=stop, tick=tick
        )
        return self._exit(name, sent)

    def running_since(self, name: str) -> float | None:
        with engine_call(f"inspect the container {name}", forgive=_GONE):
            started = self._client.inspect_container(name)["State"]["StartedAt"]
            if not started.startswith(_NEVER):
                age = (self._clock.now() - time_of(started)).total_seconds()
                # Cached: the wall clock may be set while the container runs.
                return self._began.setdefault(name, self._clock.monotonic() - max(age, 0.0))
        return None

    def alive(self, name: str) -> bool:
        """True while the container runs."""
        with engine_call(f"inspect the container {name}", forgive=_GONE):
            return bool(self._client.inspect_container(name)["State"]["Running"])
        return False

    def output(self, name: str, limit: int) -> bytes:
        tail = b""
        with (
            engine_call(f"read the output of the container {name}"),
            closing(Stream(name, "logs", stderr=0)) as stream,
        ):
            for block in stream:
                tail = (tail + block)[-limit:]
        return tail

    def kill(self, name: str) -> None:
        self._kill(name)

    def usage(self, names: Collection[str] = ()) -> Mapping[str, float] | None:
        ours = {"label": f"{LABEL_HOME}={ContainerNames(self._home, '').home_id}"}
        with engine_call("say what the containers use"):
            if self._engine_is_local is None:
                self._engine_is_local = self._client.info()["KernelVersion"] == os.uname().release
            names = names or [c["Names"][0].lstrip("/") for c in self._client.containers(filters=ours)]
        found = [(name, self._used(name)) for name in names]
        used = {name: seconds for name, seconds in found if seconds is not None}
        return used if self._engine_is_local and all(used.values()) else None

    def _used(self, name: str) -> float | None:
        """CPU seconds; 0 if the runtime counts none (gVisor without cgroups), None once it has ended."""
        with engine_call(f"say what the container {name} uses", forgive=_ENDED):
            stats = self._client.stats(name, stream=False, one_shot=True)
            return float(stats["cpu_stats"]["cpu_usage"].get("total_usage", 0)) / 1e9
        return None

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        for name in containers:
            self._began.pop(name, None)
            self._waiting.pop(name, None)
            self._signalled.discard(name)
            if stream := self._streams.pop(name, None):
                stream.close()
            with engine_call(f"remove the container {name}", forgive=_GONE):
                self._client.remove_container(name, force=True, v=True)
                reach("container-removed")
        for name in volumes:
            with engine_call(f"remove the volume {name}", forgive=_GONE):
                self._client.remove_volume(name, force=True)
                reach("volume-removed")
        self._caches.begin_ahead()

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        ours = {"label": f"{LABEL_HOME}={ContainerNames(self._home, '').home_id}"}
        with engine_call("list containers and volumes"):
            containers = self._client.containers(all=True, filters=ours)
            volumes = self._client.volumes(filters=ours)["Volumes"] or []
        return (
            [c["Names"][0].lstrip("/") for c in containers if c["Labels"].get(LABEL_EXPERIMENT) not in keep],
            [v["Name"] for v in volumes if v["Labels"].get(LABEL_EXPERIMENT) not in keep],
        )

    def describe(self) -> Mapping[str, str]:
        config = self._config
        with engine_call("describe itself", starting_up=True):
            info = self._client.info()
        if reason := unfit(info):
            raise NotReady(reason)
        with engine_call("describe the image", starting_up=True):
            image = self._client.inspect_image(config.image)  # type: ignore[no-untyped-call]
        wanted = "nvidia" if config.gpu and config.gpu_access == "runtime" else config.runtime
        if wanted not in info["Runtimes"]:
            raise to_error(EngineFault.NO_RUNTIME, "", f"no runtime {wanted}")
        self._image_id = image["Id"]
        isolation, obstacle = self._caches.isolation()
        return {
            "engine": info["ServerVersion"],
            "image": image["Id"],
            "runtime": wanted,
            "root": str(info.get("DockerRootDir", "")),
            "users": user_ids(info),
            "confinement": confinement(info),
            "isolation": isolation,
            "obstacle": obstacle,
        }

    def require_cpus(self, slot: int, cpus: str) -> None:
        """Raises NotReady if the engine cannot keep a container on these CPUs, like `0-3,8`."""
        with engine_call("describe itself", starting_up=True):
            info = self._client.info()
        if not info.get("CPUSet"):
            raise NotReady("The engine cannot keep experiments on their CPUs; its kernel lacks cpuset.")
        if max(cpu_set(cpus)) >= info["NCPU"]:
            last = info["NCPU"] - 1
            raise NotReady(f"Slot {slot} names CPUs {cpus}, but the engine has only CPUs 0 to {last}.")

    def gpus(self) -> str:
        """What nvidia-smi lists of all the machine's GPUs. Raises NotReady, InfrastructureError."""
        return self._run(gpu_listing(self._config, ContainerNames(self._home, "doctor")))[1]

    def gpu(self, program: str, slot: int = 0) -> tuple[str, int | None]:
        """Probe the first configured GPU as T sees it: (output of nvidia-smi and `program`, exit status).

        Raises NotReady if the engine cannot hand out a GPU.
        """
        names = ContainerNames(self._home, "doctor", attempt=slot + 1)
        status, said = self._run(gpu_probe(self._config, names, program))
        return said, status

    def _run(self, spec: ContainerSpec) -> tuple[int | None, str]:
        """Run one of our own helper containers and remove it; its exit status and output."""
        self.remove(containers=[spec.name])
        try:
            started = self.start(spec)
            end = self.wait(spec.name, deadline=started + spec.life_seconds, stop=threading.Event())
            return end.exit_code, self.output(spec.name, _OUTPUT_BYTES).decode(errors="replace")
        finally:
            self.remove(containers=[spec.name])

    def _empty_caches(self, warm: bool) -> None:
        """Raises InfrastructureError if the kernel refuses, or if `warm` and a worker is alive."""
        if warm and Domain.WORKER in self._running():
            raise InfrastructureError("The kernel's caches cannot be emptied while a worker is alive.")
        status, said = self._run(caches(self._config, ContainerNames(self._home, SLOT), warm=warm))
        if status != 0:
            raise InfrastructureError(f"The kernel's caches cannot be emptied: {clean_line(said)}.")

    def _running(self, experiment: str | None = None) -> frozenset[Domain]:
        """The domains of this home's containers that run and are not waiting for their start signal; all of
        them, or those of one experiment."""
        ours = {"label": f"{LABEL_HOME}={ContainerNames(self._home, '').home_id}"}
        with engine_call("list containers"):
            containers = self._client.containers(filters=ours)
        return frozenset(
            Domain(container["Labels"][LABEL_DOMAIN])
            for container in containers
            if container["Names"][0].lstrip("/") not in self._waiting
            and experiment in (None, container["Labels"][LABEL_EXPERIMENT])
        )

    def _reap_after(self, life_seconds: float) -> str:
        return f"{self._clock.now().timestamp() + life_seconds + THIRD_HAND_SECONDS:.3f}"

    def _attest(self, spec: ContainerSpec, body: Mapping[str, Any]) -> None:
        with engine_call(f"inspect the container {spec.name}"):
            inspected = self._client.inspect_container(spec.name)
        if found := differences(body, inspected):
            raise InfrastructureError(
                f"The engine made {spec.name} differently: {clean_line('; '.join(found), limit=1000)}."
            )
        if self._image_id not in (None, inspected["Image"]):
            raise NotReady(
                f"The image {spec.image} was replaced while we were running; start again to use it."
            )
        self._require_volumes(spec)

    def _require_volumes(self, spec: ContainerSpec) -> None:
        """The engine would replace a missing volume by one on its disk, without a limit or a label."""
        with engine_call(f"inspect the volumes of {spec.name}"):
            names = [mount.source for mount in spec.mounts if mount.volume]
            labels = {name: self._client.inspect_volume(name)["Labels"] or {} for name in names}
        if strays := [name for name in names if LABEL_HOME not in labels[name]]:
            self.remove(containers=[spec.name], volumes=strays)
            raise InfrastructureError(f"{spec.name} cannot be started: the volume {strays[0]} is gone.")

    def _attach(self, name: str) -> None:
        """Attach to the container's output before its first byte.

        The engine's log files rotate, so a reader that follows them loses what is printed faster than it
        reads. An attached reader gets everything; in return, a container that prints faster than we read is
        slowed down.
        """
        with engine_call(f"attach to the container {name}"):
            self._streams[name] = Stream(name, "attach", stream=1)

    def _kill(self, name: str) -> bool:
        reach("container-kill-due")
        with engine_call(f"kill the container {name}", forgive=_ENDED):
            self._client.kill(name, "SIGKILL")
            reach("container-killed")
            return True
        return False

    def _exit(self, name: str, kill_sent: float | None) -> Exit:
        seen = self._clock.monotonic()
        began = self.running_since(name)
        with engine_call(f"inspect the container {name}"):
            state = self._client.inspect_container(name)["State"]
        if state["FinishedAt"].startswith(_NEVER) or began is None:
            raise InfrastructureError(f"The container {name} never started: {clean_line(state['Error'])}.")
        seconds = (time_of(state["FinishedAt"]) - time_of(state["StartedAt"])).total_seconds()
        if seconds < 0 or seconds > seen - began + _CLOCK_STEP_SECONDS:
            seconds = seen - began  # the wall clock was set during the run
        return Exit(
            exit_code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            seconds=seconds,
            killed=kill_sent is not None and state["ExitCode"] == _SIGKILLED,
            kill_sent_seconds=None if kill_sent is None else kill_sent - began,
        )
