"""Messages of engines next to look-alikes that mean something else.

Captured from Docker 26.1.5, but for those of machines with an NVIDIA GPU, of CDI and of Docker 20.10, which
are quoted as users reported them.
"""

from __future__ import annotations

import pytest

from controller.core.errors import InfrastructureError, NotReady
from controller.sandbox.engine.failures import EngineFault, classify, to_error

NO_TASK = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: "
)

CAPTURED: list[tuple[EngineFault, int | None, str]] = [
    (
        EngineFault.UNREACHABLE,
        None,
        "DockerException: Error while fetching server API version: ('Connection aborted.', "
        "FileNotFoundError(2, 'No such file or directory'))",
    ),
    (
        EngineFault.UNREACHABLE,
        None,
        "DockerException: Error while fetching server API version: "
        "HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: /version "
        "(Caused by NewConnectionError("
        "\"HTTPConnection(host='127.0.0.1', port=9): Failed to establish a new connection: [Errno 111] "
        'Connection refused"))',
    ),
    (
        EngineFault.FORBIDDEN,
        None,
        "DockerException: Error while fetching server API version: ('Connection aborted.', "
        "PermissionError(13, 'Permission denied'))",
    ),
    (
        EngineFault.TIMEOUT,
        None,
        "ConnectionError: UnixHTTPConnectionPool(host='localhost', port=None): Read timed out.",
    ),
    (
        EngineFault.TIMEOUT,
        None,
        "ReadTimeout: UnixHTTPConnectionPool(host='localhost', port=None): Read timed out. (read timeout=2)",
    ),
    (EngineFault.NO_IMAGE, 404, "No such image: glovebox-sandbox:latest"),
    (EngineFault.NO_RUNTIME, 400, "unknown or invalid runtime name: runsc"),
    (EngineFault.NO_RUNTIME, 400, "Unknown runtime specified nvidia"),
    (
        EngineFault.NO_GPU,
        500,
        'could not select device driver "nvidia" with capabilities: [[gpu compute utility]]',
    ),
    (EngineFault.NO_GPU, 500, 'could not select device driver "" with capabilities: [[gpu]]'),
    (EngineFault.NO_GPU, 500, 'could not select device driver "cdi" with capabilities: []'),
    (
        EngineFault.NO_GPU,
        500,
        "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
    ),
    (
        EngineFault.NO_GPU,
        500,
        NO_TASK
        + "error during container init: error running prestart hook #0: exit status 1, stdout: , stderr: "
        "nvidia-container-cli: initialization error: nvml error: "
        "driver not loaded: unknown",
    ),
    (EngineFault.GONE, 404, "cannot kill container: cap-nope: No such container: cap-nope"),
    (EngineFault.GONE, 404, "get capv: no such volume"),
    (
        EngineFault.NOT_RUNNING,
        409,
        "cannot kill container: cap3: container cf0535913647d017937902d3ecd50648 is not running",
    ),
]

LOOK_ALIKES: list[tuple[int | None, str]] = [
    # "Permission denied", but by the runtime inside a working engine.
    (
        400,
        NO_TASK + 'exec: "/etc/passwd": permission denied: unknown',
    ),
    # "No such file", but of an engine that answers.
    (400, 'invalid mount config for type "bind": bind source path does not exist: /nope/x'),
    (
        400,
        NO_TASK + 'exec: "/nope": stat /nope: no such file or directory: unknown',
    ),
    # Conflicts that are not about a container that has ended.
    (
        409,
        'Conflict. The container name "/cap3" is already in use by container "cf0535913647". You '
        "have to remove (or rename) that container to be able to reuse that name.",
    ),
    (409, "remove capv: volume is in use - [5fa300836ef6416ca8bbd95b330a166e]"),
    (
        409,
        'cannot remove container "/cap3": container is running: stop the container before '
        "removing or force remove",
    ),
    # Not found, but neither container nor volume nor image.
    (404, "page not found"),
    (404, "network nope not found"),
    # The words of a missing image in another answer.
    (500, "No such image: told by somebody else"),
    # A driver could not be selected, but not one for a GPU.
    (500, 'could not select device driver "tpu" with capabilities: [[tpu]]'),
    (
        500,
        "error while mounting volume '/var/lib/docker/volumes/capv/_data': failed to mount local volume: "
        "mount tmpfs:/var/lib/docker/volumes/capv/_data, data: size=1048576,badopt=1: invalid argument",
    ),
    (500, "write /var/lib/docker/tmp/x: no space left on device"),
    (None, "ConnectionError: ('Connection aborted.', RemoteDisconnected('Remote end closed connection'))"),
]


@pytest.mark.parametrize(("fault", "status", "message"), CAPTURED)
def test_captured_messages(fault: EngineFault, status: int | None, message: str) -> None:
    assert classify(status, message) is fault


@pytest.mark.parametrize(("status", "message"), LOOK_ALIKES)
def test_look_alikes(status: int | None, message: str) -> None:
    assert classify(status, message) is EngineFault.BROKEN


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (EngineFault.NO_IMAGE, "make image"),
        (EngineFault.NO_RUNTIME, "sandbox.runtime"),
        (EngineFault.NO_GPU, "NVIDIA container toolkit"),
    ],
)
def test_what_is_missing_says_what_to_do(fault: EngineFault, words: str) -> None:
    error = to_error(fault, "start the container x", "the engine's words")
    assert isinstance(error, NotReady)
    assert words in str(error)
    assert "the engine's words" in str(error)


@pytest.mark.parametrize("fault", [EngineFault.UNREACHABLE, EngineFault.FORBIDDEN])
def test_a_silent_engine_is_not_ready_at_the_start_and_broken_later(fault: EngineFault) -> None:
    assert isinstance(to_error(fault, "answer", "m", starting_up=True), NotReady)
    assert isinstance(to_error(fault, "start the container x", "m"), InfrastructureError)


@pytest.mark.parametrize("fault", [EngineFault.TIMEOUT, EngineFault.BROKEN, EngineFault.GONE])
def test_other_faults_say_what_was_being_done(fault: EngineFault) -> None:
    error = to_error(fault, "start the container x", "line one\x1b[31m\nline two")
    assert isinstance(error, InfrastructureError)
    assert "start the container x" in str(error)
    assert str(error).isprintable()
