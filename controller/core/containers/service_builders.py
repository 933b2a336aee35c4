"""The containers that serve no single experiment: preparing data, emptying caches, looking for GPUs. Pure.

They run only our code, and no runner can be asked for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from controller.core.containers.builders import base, harness_mounts
from controller.core.containers.config import MIB, SealedConfig
from controller.core.containers.domains import Domain
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec, Mount
from controller.core.hardware import gpu_listing as listing
from controller.core.hardware import gpu_probe as probe

PREPARE_HOME, PREPARE_CORPUS, PREPARE_LINKS = "/home/glovebox", "/corpus", "/links"
"""Where the preparer finds the home, a corpus, and the targets of a corpus's links."""

GPU_LISTING_SECONDS = 60.0
"""The longest that listing the GPUs may take."""
CACHES_SECONDS = 60.0
"""The longest that emptying and warming the caches may take."""

# A cache entry that was used lately survives the first round.
_EMPTY = "exec 2>&1; for turn in 1 2 3; do echo 3 > /drop_caches || exit 1; done"
_WARM = (
    r"find /usr/lib/python3* /opt/venv/lib/python3*/site-packages/torch \( -name '*.pyc' -o -name '*.so*' \) "
    "-type f -print0 2> /dev/null | sort -z | xargs -0 -P 4 -n 256 cat > /dev/null"
)


def preparer(
    config: SealedConfig,
    names: ContainerNames,
    *,
    arguments: tuple[str, ...],
    limit_seconds: float,
    owner: tuple[int, int],
    harness: Path,
    corpus: tuple[Mount, ...] = (),
    network: bool = False,
    ca_bundle: Path | None = None,
    proxies: Mapping[str, str] | None = None,
) -> ContainerSpec:
    """Prepares the data, once, running as the home's `owner` (uid, gid).

    `arguments` are passed to prepare.py; `corpus` is what it reads. `ca_bundle` and `proxies` (environment
    variables) are for a network behind a private CA and are used only with `network`.
    """
    mounts = [
        Mount(str(names.home), PREPARE_HOME, read_only=False),
        *harness_mounts(Domain.PREPARE, harness),
        *corpus,
    ]
    environment = dict(proxies or {}) if network else {}
    if network and ca_bundle is not None:
        mounts.append(Mount(str(ca_bundle), "/glovebox/ca.pem"))
        environment |= {"SSL_CERT_FILE": "/glovebox/ca.pem", "REQUESTS_CA_BUNDLE": "/glovebox/ca.pem"}
    command = ("exec", "--", "python", "/glovebox/prepare.py", *arguments)
    return replace(
        base(config, names, Domain.PREPARE, limit_seconds, *command, owner=owner),
        network=network,
        environment=environment,
        mounts=tuple(mounts),
    )


def caches(config: SealedConfig, names: ContainerNames, *, warm: bool = True) -> ContainerSpec:
    """Empties the kernel's caches, as root without a capability. It can write to one file only.

    `warm`: it then reads the files from which Python and torch are imported, always the same ones, so that an
    experiment does not spend its first seconds on that.
    """
    command = ("sh", "-c", f"{_EMPTY}; {_WARM}" if warm else _EMPTY)
    return replace(
        base(config, names, Domain.CACHES, CACHES_SECONDS, "exec", "--", *command),
        runtime="runc",  # whatever runs experiments: it is the host's kernel that has to do it
        log_bytes=min(MIB, config.log_bytes),
        mounts=(Mount("/proc/sys/vm/drop_caches", "/drop_caches", read_only=False),),
    )


def gpu_listing(config: SealedConfig, names: ContainerNames) -> ContainerSpec:
    """Lists all GPUs of the machine with nvidia-smi. It cannot compute on any of them."""
    every = config.model_copy(update={"gpu": (listing.ALL,)})
    command = ("exec", "--", *listing.COMMAND)
    return replace(
        base(every, names, Domain.TELEMETRY, GPU_LISTING_SECONDS, *command), gpu_capabilities=("utility",)
    )


def gpu_probe(config: SealedConfig, names: ContainerNames, program: str) -> ContainerSpec:
    """Asks for name and driver of the GPU that T would get, then runs harness/gpu_probe.py on it."""
    return base(config, names, Domain.TRAINER, probe.SECONDS, "exec", "--", *probe.command(program))
