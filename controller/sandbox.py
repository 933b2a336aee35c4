"""Container life cycle. The only module that talks to the container engine, but for the reaper.

Deadlines are kept here, on the monotonic clock; the engine's own time-outs are not trusted with them
(docker-py 1966: a wait that times out raises ConnectionError; 3084: a followed log may never end).
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import docker
import docker.errors
import docker.utils
import requests
import urllib3

from controller.core.attestation import differences
from controller.core.container_spec import ContainerSpec
from controller.core.containers import gpu_probe
from controller.core.engine_failure import EngineFault, classify, to_error
from controller.core.engine_info import NOT_MAPPED, id_map, unfit, user_ids
from controller.core.engine_stream import split_frames
from controller.core.model import GloveboxError, InfrastructureError, Interrupted, NotReady
from controller.core.place import LABEL_DEADLINE, LABEL_EXPERIMENT, LABEL_HOME, THIRD_HAND_SECONDS, Place
from controller.core.sandbox_config import SealedConfig
from controller.core.untrusted import clean_line
from controller.core.volumes import VolumeSpec
from controller.failpoints import reach
from controller.ports import Clock, Exit

_ENGINE_SECONDS = 20
"""For any one answer of the engine, those apart that wait for a container."""
_WAIT_SECONDS = 2
"""For one request that waits for a container; it is simply repeated."""
_STOP_SECONDS = 0.1
"""How soon a request to stop is noticed."""
_DEATH_SECONDS = 30.0
"""From a SIGKILL to the end of a container, at the very most."""
_PATIENCE_SECONDS = 10.0
"""How long an engine may be away, restarting, before a wait gives up."""
_CLOCK_STEP_SECONDS = 2.0
"""The engine's measure of a life may differ from ours by this much; more, and the wall clock was set."""
_BLOCK_BYTES = 64 * 1024
"""Read from the engine at once."""
_RESUMPTIONS = 6
"""How often a broken stream of output is taken up again, the pauses doubling from a tenth of a second."""
_SIGKILLED = 137
_NEVER = "0001-01-01"

_FAILURES = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_GONE = frozenset({EngineFault.GONE})
_ENDED = frozenset({EngineFault.GONE, EngineFault.NOT_RUNNING})


class DockerSandbox:
    """`ports.Sandbox` on the Docker engine that the environment names (DOCKER_HOST, or the usual socket).

    Raises NotReady if there is no engine, or none that this user may use.
    """

    def __init__(self, config: SealedConfig, home: Path, clock: Clock) -> None:
        self._config = config
        self._home = home.resolve()
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._began: dict[str, float] = {}
        self._image_id: str | None = None
        self._here: bool | None = None
        with _engine("answer", starting_up=True):
            self._client = _connect()

    def close(self) -> None:
        self._client.close()

    def create_volume(self, spec: VolumeSpec) -> None:
        labels = {**spec.labels, LABEL_DEADLINE: self._reap_after(spec.life_seconds)}
        with _engine(f"create the volume {spec.name}"):
            body = spec.to_engine(id_map(self._client.info()) or NOT_MAPPED)
            made = self._client.create_volume(body["Name"], body["Driver"], body["DriverOpts"], labels)
        if made["Options"] != body["DriverOpts"]:
            raise InfrastructureError(f"The volume {spec.name} is not what was asked for: {made['Options']}.")
        reach("volume-created")

    def start(self, spec: ContainerSpec) -> float:
        body = spec.to_engine()
        body["Labels"][LABEL_DEADLINE] = self._reap_after(spec.life_seconds)
        reach(f"container-due-{spec.domain}")
        with _engine(f"create the container {spec.name}"):
            # Not the SDK's create_container: that one copies proxy settings, and with them perhaps
            # passwords, from the user's Docker configuration into the container's environment.
            self._client.create_container_from_config(body, spec.name)  # type: ignore[no-untyped-call]
        reach(f"container-created-{spec.domain}")
        try:
            self._attest(spec, body)
            if spec.streamed:
                self._attach(spec.name)
            with _engine(f"start the container {spec.name}"):
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
        thread = threading.Thread(target=_pump, args=arguments, name=f"follow {name}", daemon=True)
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
        ending = _Ending(name)
        ending.start()
        try:
            killed = self._see_through(ending, name, deadline, stop, tick or (lambda: None))
        finally:
            ending.abandon()
        return self._exit(name, killed)

    def running_since(self, name: str) -> float | None:
        with _engine(f"inspect the container {name}", forgive=_GONE):
            started = self._client.inspect_container(name)["State"]["StartedAt"]
            if not started.startswith(_NEVER):
                age = (self._clock.now() - _time(started)).total_seconds()
                # Remembered: the wall clock may be set while the container runs.
                return self._began.setdefault(name, self._clock.monotonic() - max(age, 0.0))
        return None

    def alive(self, name: str) -> bool:
        """True while the container runs."""
        with _engine(f"inspect the container {name}", forgive=_GONE):
            return bool(self._client.inspect_container(name)["State"]["Running"])
        return False

    def output(self, name: str, limit: int) -> bytes:
        tail = b""
        with (
            _engine(f"read the output of the container {name}"),
            closing(_Stream(name, "logs", stderr=0)) as stream,
        ):
            for block in stream:
                tail = (tail + block)[-limit:]
        return tail

    def kill(self, name: str) -> None:
        self._kill(name)

    def usage(self) -> Mapping[str, float] | None:
        ours = {"label": f"{LABEL_HOME}={Place(self._home, '').home_id}"}
        with _engine("say what the containers use"):
            if self._here is None:
                self._here = self._client.info()["KernelVersion"] == os.uname().release
            names = [c["Names"][0].lstrip("/") for c in self._client.containers(filters=ours)]
        used = {name: self._used(name) for name in names}
        return used if self._here and all(used.values()) else None

    def _used(self, name: str) -> float:
        """CPU seconds; 0 once it has ended, and of a runtime that counts none (gVisor without cgroups)."""
        with _engine(f"say what the container {name} uses", forgive=_ENDED):
            stats = self._client.stats(name, stream=False, one_shot=True)
            return float(stats["cpu_stats"]["cpu_usage"].get("total_usage", 0)) / 1e9
        return 0.0

    def remove(self, *, containers: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
        for name in containers:
            self._began.pop(name, None)
            if stream := self._streams.pop(name, None):
                stream.close()
            with _engine(f"remove the container {name}", forgive=_GONE):
                self._client.remove_container(name, force=True, v=True)
                reach("container-removed")
        for name in volumes:
            with _engine(f"remove the volume {name}", forgive=_GONE):
                self._client.remove_volume(name, force=True)
                reach("volume-removed")

    def leftovers(self, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        ours = {"label": f"{LABEL_HOME}={Place(self._home, '').home_id}"}
        with _engine("list containers and volumes"):
            containers = self._client.containers(all=True, filters=ours)
            volumes = self._client.volumes(filters=ours)["Volumes"] or []
        return (
            [c["Names"][0].lstrip("/") for c in containers if c["Labels"].get(LABEL_EXPERIMENT) not in keep],
            [v["Name"] for v in volumes if v["Labels"].get(LABEL_EXPERIMENT) not in keep],
        )

    def describe(self) -> Mapping[str, str]:
        config = self._config
        with _engine("describe itself", starting_up=True):
            info = self._client.info()
            image = self._client.inspect_image(config.image)  # type: ignore[no-untyped-call]
        wanted = "nvidia" if config.gpu and config.gpu_access == "runtime" else config.runtime
        if wanted not in info["Runtimes"]:
            raise to_error(EngineFault.NO_RUNTIME, "", f"no runtime {wanted}")
        if reason := unfit(info):
            raise NotReady(reason)
        self._image_id = image["Id"]
        return {
            "engine": info["ServerVersion"],
            "image": image["Id"],
            "runtime": wanted,
            "root": str(info.get("DockerRootDir", "")),
            "users": user_ids(info),
        }

    def gpu(self) -> tuple[str, str]:
        """Name and driver of the first configured GPU, as T sees them. Raises NotReady if it sees none."""
        spec = gpu_probe(self._config, Place(self._home, "doctor"))
        self.remove(containers=[spec.name])
        try:
            started = self.start(spec)
            end = self.wait(spec.name, deadline=started + spec.life_seconds, stop=threading.Event())
            said = self.output(spec.name, 1000).decode(errors="replace")
        finally:
            self.remove(containers=[spec.name])
        name, comma, driver = said.partition("\n")[0].rpartition(",")
        if end.exit_code != 0 or not comma:
            raise to_error(EngineFault.NO_GPU, "", f"nvidia-smi ended with status {end.exit_code}")
        return clean_line(name), clean_line(driver)

    def _reap_after(self, life_seconds: float) -> str:
        return f"{self._clock.now().timestamp() + life_seconds + THIRD_HAND_SECONDS:.3f}"

    def _attest(self, spec: ContainerSpec, body: Mapping[str, Any]) -> None:
        with _engine(f"inspect the container {spec.name}"):
            inspected = self._client.inspect_container(spec.name)
        if found := differences(body, inspected):
            raise InfrastructureError(
                f"The engine made {spec.name} differently: {clean_line('; '.join(found), limit=1000)}."
            )
        if self._image_id not in (None, inspected["Image"]):
            raise NotReady(
                f"The image {spec.image} was replaced while we were running; start again to use it."
            )

    def _attach(self, name: str) -> None:
        """Join the container's output before its first byte.

        The engine's log files rotate, and what is printed faster than they are read is lost to whoever
        follows them. An attached reader gets everything, at the price of slowing down a container that
        prints faster than we read.
        """
        with _engine(f"attach to the container {name}"):
            self._streams[name] = _Stream(name, "attach", stream=1)

    def _see_through(
        self,
        ending: _Ending,
        name: str,
        deadline: float,
        stop: threading.Event,
        tick: Callable[[], None],
    ) -> bool:
        """Wait for the end or bring it about. True if our SIGKILL went to a running container."""
        ticked = self._clock.monotonic()
        while not ending.within(min(_STOP_SECONDS, deadline - self._clock.monotonic())):
            now = self._clock.monotonic()
            if now >= deadline:
                return self._end(ending, name)
            if stop.is_set():
                raise Interrupted(f"Asked to stop while {name} was running.")
            if now - ticked >= 1.0 and deadline - now > _STOP_SECONDS:  # a slow tick must not delay the kill
                ticked = now
                tick()
        return False

    def _end(self, ending: _Ending, name: str) -> bool:
        """SIGKILL until it is dead. Raises InfrastructureError if it will not die."""
        give_up = self._clock.monotonic() + _DEATH_SECONDS
        killed = False
        while True:
            try:
                killed = self._kill(name) or killed
            except InfrastructureError:
                if self._clock.monotonic() > give_up:
                    raise
            if ending.within(1.0):
                return killed
            if self._clock.monotonic() > give_up:
                raise InfrastructureError(f"The container {name} survived its SIGKILL.")

    def _kill(self, name: str) -> bool:
        with _engine(f"kill the container {name}", forgive=_ENDED):
            self._client.kill(name, "SIGKILL")
            return True
        return False

    def _exit(self, name: str, killed: bool) -> Exit:
        seen = self._clock.monotonic()
        began = self.running_since(name)
        with _engine(f"inspect the container {name}"):
            state = self._client.inspect_container(name)["State"]
        if state["FinishedAt"].startswith(_NEVER) or began is None:
            raise InfrastructureError(f"The container {name} never started: {clean_line(state['Error'])}.")
        seconds = (_time(state["FinishedAt"]) - _time(state["StartedAt"])).total_seconds()
        if seconds < 0 or seconds > seen - began + _CLOCK_STEP_SECONDS:
            seconds = seen - began  # the wall clock was set back or forward during the run
        return Exit(
            exit_code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            seconds=seconds,
            killed=killed and state["ExitCode"] == _SIGKILLED,
        )


class _Ending(threading.Thread):
    """Waits for the end of one container, in requests short enough to be abandoned."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"wait for {name}", daemon=True)
        self._container = name
        self._over = threading.Event()
        self._abandoned = threading.Event()
        self._failure: GloveboxError | None = None

    def within(self, seconds: float) -> bool:
        """True as soon as the container has ended. Raises InfrastructureError if that cannot be known."""
        over = self._over.wait(max(seconds, 0.0))
        if self._failure is not None:
            raise self._failure
        return over

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> None:
        trouble_since: float | None = None
        while not self._abandoned.is_set():
            try:
                with closing(_connect()) as client:
                    self._wait(client)
                break
            except _FAILURES as error:
                fault, message = _diagnose(error)
                if fault is EngineFault.TIMEOUT:
                    trouble_since = None
                    continue
                trouble_since = trouble_since or time.monotonic()
                if fault is EngineFault.GONE or time.monotonic() - trouble_since > _PATIENCE_SECONDS:
                    self._failure = to_error(fault, f"wait for the container {self._container}", message)
                    break
                self._abandoned.wait(_STOP_SECONDS)
        self._over.set()

    def _wait(self, client: docker.APIClient) -> None:
        while not self._abandoned.is_set():
            try:
                client.wait(self._container, timeout=_WAIT_SECONDS)
                return
            except _FAILURES as error:
                if _diagnose(error)[0] is not EngineFault.TIMEOUT:
                    raise


def _pump(name: str, sink: Callable[[bytes], None], attached: _Stream | None, since: float | None) -> None:
    """Deliver a container's output until it ends; after a break, resume from the engine's log."""
    for attempt in range(_RESUMPTIONS):
        try:
            with closing(attached or _log(name, since)) as stream:
                attached = None
                for block in stream:
                    sink(block)
                    since = time.time()
            # The stream also ends when the engine does; then this raises and we come back.
            with closing(_connect()) as client:
                client.wait(name, timeout=_WAIT_SECONDS)
            return
        except _FAILURES as error:
            if _diagnose(error)[0] is EngineFault.GONE:
                return
        time.sleep(_STOP_SECONDS * 2**attempt)


class _Stream:
    """A container's output as the engine sends it: attached, or out of its log.

    The SDK's own streams are not used: they hide a broken connection behind a normal end, and cannot
    always be closed.
    """

    def __init__(self, name: str, request: str, **parameters: str | int) -> None:
        """`request` is `attach` or `logs`."""
        self._client = _connect()
        method = self._client.post if request == "attach" else self._client.get
        try:
            self._response = method(
                f"{self._client.base_url}/v{self._client.api_version}/containers/{name}/{request}",
                params={"stdout": 1, "stderr": 1, **parameters},
                stream=True,
                timeout=(_ENGINE_SECONDS, None),  # a run may be silent for as long as it likes
            )
            try:
                self._response.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
        except _FAILURES:
            self._client.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        while received := self._response.raw.read1(_BLOCK_BYTES):
            payload, pending = split_frames(pending + received)
            if payload:
                yield payload

    def close(self) -> None:
        self._response.close()
        self._client.close()


def _log(name: str, since: float | None) -> _Stream:
    with closing(_connect()) as client:
        running = client.inspect_container(name)["State"]["Running"]
    # A log that is followed after the end may never end itself (docker-py 3084).
    start = {} if since is None else {"since": f"{since:.9f}"}
    return _Stream(name, "logs", follow=int(running), **start)


def _connect() -> docker.APIClient:
    return docker.APIClient(**docker.utils.kwargs_from_env(), timeout=_ENGINE_SECONDS)


class _engine:
    """A block that talks to the engine: SDK errors become ours, the faults in `forgive` are swallowed."""

    def __init__(
        self, doing: str, *, starting_up: bool = False, forgive: frozenset[EngineFault] = frozenset()
    ) -> None:
        self._doing, self._starting_up, self._forgive = doing, starting_up, forgive

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, _FAILURES):
            return False
        fault, message = _diagnose(error)
        if fault in self._forgive:
            return True
        raise to_error(fault, self._doing, message, starting_up=self._starting_up) from error


def _diagnose(error: BaseException) -> tuple[EngineFault, str]:
    if isinstance(error, docker.errors.APIError) and error.response is not None:
        message = str(error.explanation or error)
        return classify(error.response.status_code, message), message
    message = f"{type(error).__name__}: {error}"
    return classify(None, message), message


def _time(stamp: str) -> dt.datetime:
    """RFC 3339 with up to nine digits of a second, as the engine writes it."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return dt.datetime.fromisoformat(whole).replace(microsecond=micros, tzinfo=dt.UTC)
