"""The security posture as data: what every container is told, whatever the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller.core.containers import builders, limits, service_builders, volumes
from controller.core.containers.builders import Files
from controller.core.containers.config import GIB, MIB, Limits, SealedConfig
from controller.core.containers.domains import FORGOTTEN_BEFORE, Domain
from controller.core.containers.engine_info import NOT_MAPPED, IdMap
from controller.core.containers.names import ContainerNames
from controller.core.containers.spec import ContainerSpec, Mount
from controller.core.containers.volumes import FIRST, SECOND, Exchange, VolumeSpec
from controller.core.scoring.config import JudgeConfig

ATTEMPT = ContainerNames(Path("/srv/home"), "7", 2)
HARNESS = Path("/srv/home/harness/abc")
TRAIN = Path("/srv/home/runs/000007/train.py")
DATA = Path("/srv/home/data")
FILES = Files(HARNESS, DATA)
JUDGING = JudgeConfig()


def worker(config: SealedConfig, exchange: Exchange = FIRST) -> ContainerSpec:
    return builders.worker(config, ATTEMPT, FILES, JUDGING, exchange, train=TRAIN, seed=42)


def specs(config: SealedConfig) -> dict[Domain, ContainerSpec]:
    preparing = ContainerNames(Path("/srv/home"), "prepare")
    made = (
        builders.holder(config, ATTEMPT, 300.0),
        builders.trainer(config, ATTEMPT, FILES, train=TRAIN, budget_seconds=300.0, seed=42),
        worker(config),
        builders.judge(config, ATTEMPT, FILES, JUDGING, seed=1, draw=None, row_tokens=256),
        builders.rehearsal(config, ATTEMPT, FILES, train=TRAIN, limit_seconds=60.0),
        builders.telemetry(config, ATTEMPT, 300.0),
        service_builders.caches(config, ATTEMPT),
        service_builders.preparer(
            config,
            preparing,
            arguments=("--scale", "cpu"),
            limit_seconds=60.0,
            owner=(1000, 1000),
            harness=HARNESS,
        ),
    )
    return {spec.domain: spec for spec in made}


PROFILE = '{"defaultAction": "SCMP_ACT_ERRNO"}'
DEFAULT = specs(SealedConfig(seccomp=PROFILE))
assert set(DEFAULT) == set(Domain)
EVERY = pytest.mark.parametrize("spec", DEFAULT.values(), ids=DEFAULT)


@EVERY
def test_every_container_is_sealed(spec: ContainerSpec) -> None:
    body = spec.to_engine()
    host = body["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges", f"seccomp={PROFILE}"]
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert (host["PidMode"], host["UTSMode"]) == ("", "")
    assert host["UsernsMode"] == ("host" if spec.domain in (Domain.PREPARE, Domain.CACHES) else "")
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["MemorySwap"] == host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert {limit["Name"] for limit in host["Ulimits"]} == {"core", "fsize", "nofile"}
    assert host["LogConfig"]["Type"] == "local"
    assert host["Tmpfs"]["/tmp"].startswith("rw,exec,nosuid,nodev,")
    assert (body["User"].split(":")[0] == "0") is (spec.domain is Domain.CACHES)
    assert {"/proc/kcore", "/sys/firmware", "/proc/slabinfo", "/proc/sys/fs"} < set(host["MaskedPaths"])
    assert not {"/proc/stat", "/proc/meminfo", "/proc/loadavg", "/proc/cpuinfo"} & set(host["MaskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} < set(host["ReadonlyPaths"])
    assert body["Labels"]["glovebox.domain"] == spec.domain
    assert set(body["Labels"]) == {"glovebox.home", "glovebox.experiment", "glovebox.domain"}


@EVERY
def test_every_limit_is_the_one_that_was_set(spec: ContainerSpec) -> None:
    host, limits = spec.to_engine()["HostConfig"], spec.limits
    assert (host["Memory"], host["MemorySwap"]) == (limits.memory, limits.memory)
    assert (host["PidsLimit"], host["ShmSize"]) == (limits.pids, limits.shm_bytes)
    assert host["Tmpfs"]["/tmp"].split(",")[-1] == f"size={limits.tmp_bytes}"
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert ulimits == {
        "core": (0, 0),
        "fsize": (limits.file_size_bytes,) * 2,
        "nofile": (limits.open_files,) * 2,
    }
    kept = host["LogConfig"]["Config"]
    assert 0 < int(kept["max-size"]) * int(kept["max-file"]) <= spec.log_bytes
    binds = [mount for mount in host["Mounts"] if mount["Type"] == "bind"]
    assert all(mount["BindOptions"]["Propagation"] == "rprivate" for mount in binds)


@EVERY
def test_every_container_has_a_second_hand(spec: ContainerSpec) -> None:
    command = spec.to_engine()["Cmd"]
    assert float(command[command.index("--limit") + 1]) == spec.life_seconds > 0


def test_domains_do_not_share_a_user() -> None:
    domains = (Domain.TRAINER, Domain.WORKER, Domain.JUDGE, Domain.REHEARSAL, Domain.TELEMETRY)
    users = [DEFAULT[domain].user for domain in domains]
    assert users == ["10001:10001", "10002:10002", "10003:10003", "10004:10004", "10005:10005"]


@pytest.mark.parametrize(
    ("domain", "writable", "readable"),
    [
        (Domain.HOLDER, [], ["/work"]),
        (Domain.TRAINER, ["/work"], ["/data", "/glovebox/train.py", "/work/kernels.py", "/work/prepare.py"]),
        (
            Domain.WORKER,
            ["/replies"],
            [
                "/data/manifest.json",
                "/data/tokenizer",
                "/glovebox/answers.py",
                "/glovebox/batches.py",
                "/glovebox/exchange.py",
                "/glovebox/kernels.py",
                "/glovebox/prepare.py",
                "/glovebox/train.py",
                "/glovebox/worker.py",
                "/out",
                "/requests",
            ],
        ),
        (
            Domain.JUDGE,
            ["/requests", "/requests-2"],
            [
                "/glovebox/exchange.py",
                "/glovebox/fresh.py",
                "/glovebox/judge.py",
                "/glovebox/nats.py",
                "/glovebox/plan.py",
                "/glovebox/prepare.py",
                "/glovebox/probes.py",
                "/judge",
                "/replies",
                "/replies-2",
            ],
        ),
        (
            Domain.REHEARSAL,
            [],
            [
                "/data/manifest.json",
                "/data/tokenizer",
                "/glovebox/answers.py",
                "/glovebox/batches.py",
                "/glovebox/exchange.py",
                "/glovebox/kernels.py",
                "/glovebox/prepare.py",
                "/glovebox/rehearse.py",
                "/glovebox/train.py",
                "/glovebox/worker.py",
            ],
        ),
        (Domain.TELEMETRY, [], []),
        (Domain.CACHES, ["/drop_caches"], []),
        (
            Domain.PREPARE,
            ["/home/glovebox"],
            [
                "/glovebox/corpus.py",
                "/glovebox/dataset.py",
                "/glovebox/documents.py",
                "/glovebox/download.py",
                "/glovebox/folder.py",
                "/glovebox/prepare.py",
                "/glovebox/processes.py",
                "/glovebox/shards.py",
            ],
        ),
    ],
)
def test_what_a_domain_sees(domain: Domain, writable: list[str], readable: list[str]) -> None:
    mounts = DEFAULT[domain].to_engine()["HostConfig"]["Mounts"]
    assert sorted(m["Target"] for m in mounts if not m["ReadOnly"]) == writable
    assert sorted(m["Target"] for m in mounts if m["ReadOnly"]) == sorted(readable)


def test_the_second_worker_sees_what_the_first_one_saw_and_nothing_of_what_it_said() -> None:
    first = DEFAULT[Domain.WORKER]
    second = worker(SealedConfig(seccomp=PROFILE), SECOND)
    assert second.name != first.name and second.labels == first.labels
    assert replace(second, name=first.name, mounts=first.mounts, order=first.order) == first
    assert [mount.target for mount in second.mounts] == [mount.target for mount in first.mounts]
    shared = {mount.source for mount in first.mounts} & {mount.source for mount in second.mounts}
    assert all(mount.read_only for mount in first.mounts if mount.source in shared)
    assert {mount.source for mount in first.mounts} - shared == {
        ATTEMPT.name("requests"),
        ATTEMPT.name("replies"),
    }


@pytest.mark.parametrize("warm", [True, False])
def test_root_writes_to_one_file_of_the_kernel_and_runs_nothing_of_an_agents(warm: bool) -> None:
    config = SealedConfig.model_validate({"runtime": "runsc", "gpu": ["0"], "seccomp": PROFILE})
    spec = service_builders.caches(config, ATTEMPT, warm=warm)
    [mount] = spec.mounts
    assert (mount.source, mount.volume) == ("/proc/sys/vm/drop_caches", False)
    host = spec.to_engine()["HostConfig"]
    assert (host["Runtime"], host["DeviceRequests"]) == ("runc", [])
    assert spec.order is None, "nobody can order it from a runner"


def test_what_is_forgotten_before_whom() -> None:
    assert set(FORGOTTEN_BEFORE) == {
        domain
        for domain, spec in DEFAULT.items()
        if any(mount.target.endswith("train.py") for mount in spec.mounts)
    }
    for domain, of in FORGOTTEN_BEFORE.items():
        assert Domain.WORKER in of
        assert (of == set(FORGOTTEN_BEFORE)) is (domain is Domain.TRAINER)


def test_validation_data_reaches_the_judge_alone() -> None:
    for domain, spec in DEFAULT.items():
        sources = [Path(mount.source) for mount in spec.mounts if not mount.volume]
        exposed = [source for source in sources if (DATA / "judge").is_relative_to(source)]
        assert exposed == {Domain.JUDGE: [DATA / "judge"], Domain.PREPARE: [Path("/srv/home")]}.get(
            domain, []
        )


@pytest.mark.parametrize("access", ["cdi", "device-request", "runtime"])
def test_gpus_go_to_trainer_and_worker_and_telemetry_may_look(access: str) -> None:
    config = SealedConfig.model_validate({"gpu": ["0", "3"], "gpu_access": access, "seccomp": PROFILE})
    for domain, spec in specs(config).items():
        body = spec.to_engine()
        host, environment = body["HostConfig"], dict(entry.split("=", 1) for entry in body["Env"])
        looks = domain is Domain.TELEMETRY
        if domain not in (Domain.TRAINER, Domain.WORKER, Domain.TELEMETRY):
            assert (host["DeviceRequests"], host["Runtime"]) == ([], "runc")
            assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
        elif access == "runtime":
            assert (host["DeviceRequests"], host["Runtime"]) == ([], "nvidia")
            assert environment["NVIDIA_VISIBLE_DEVICES"] == "0,3"
            capabilities = "utility" if looks else "compute,utility"
            assert environment["NVIDIA_DRIVER_CAPABILITIES"] == capabilities
        else:
            [request] = host["DeviceRequests"]
            names = {"cdi": ["nvidia.com/gpu=0", "nvidia.com/gpu=3"], "device-request": ["0", "3"]}
            assert request["DeviceIDs"] == names[access]
            assert ("compute" in str(request.get("Capabilities"))) is (access != "cdi" and not looks)
            assert host["Runtime"] == "runc"


def test_only_a_rehearsal_stands_back_for_others() -> None:
    for domain, spec in DEFAULT.items():
        shares = spec.to_engine()["HostConfig"]["CpuShares"]
        assert (0 < shares < 512) if domain is Domain.REHEARSAL else shares == 0


def test_trainer_and_worker_have_the_limits_that_were_set() -> None:
    ours = Limits(memory=1, cpus=2, pids=3, tmp_bytes=4, shm_bytes=5, file_size_bytes=6, open_files=7)
    found = specs(SealedConfig(trainer=ours, seccomp=PROFILE))
    assert found[Domain.TRAINER].limits == ours
    assert found[Domain.WORKER].limits == Limits()
    assert specs(SealedConfig(worker=ours, seccomp=PROFILE))[Domain.WORKER].limits == ours


def test_judge_and_preparer_have_the_memory_that_was_set_and_else_what_is_fixed() -> None:
    found = specs(SealedConfig(judge_memory=1, prepare_memory=2, seccomp=PROFILE))
    assert found[Domain.JUDGE].limits == limits.JUDGE.model_copy(update={"memory": 1})
    assert found[Domain.PREPARE].limits == limits.PREPARE.model_copy(update={"memory": 2})


@pytest.mark.parametrize(
    ("trainer", "differs"),
    [
        ({}, {}),
        ({"memory": 8 * GIB, "cpus": 4}, {}),
        ({"memory": GIB}, {"memory": GIB}),
        ({"cpus": 0.5, "tmp_bytes": MIB}, {"cpus": 0.5, "tmp_bytes": MIB}),
    ],
)
def test_a_rehearsal_never_has_more_than_a_run(trainer: dict[str, float], differs: dict[str, float]) -> None:
    config = SealedConfig.model_validate({"trainer": trainer, "seccomp": PROFILE})
    assert specs(config)[Domain.REHEARSAL].limits == limits.REHEARSAL.model_copy(update=differs)


def test_cpus() -> None:
    assert DEFAULT[Domain.TRAINER].to_engine()["HostConfig"]["NanoCpus"] == 0
    body = specs(SealedConfig(trainer=Limits(cpus=1.5), seccomp=PROFILE))[Domain.TRAINER].to_engine()
    assert body["HostConfig"]["NanoCpus"] == 1_500_000_000
    assert "OMP_NUM_THREADS=1" in body["Env"]


def test_only_a_download_gets_network_and_only_then_proxies_and_ca() -> None:
    def prepare(network: bool) -> dict[str, object]:
        return service_builders.preparer(
            SealedConfig(seccomp=PROFILE),
            ATTEMPT,
            arguments=(),
            limit_seconds=1.0,
            owner=(0, 0),
            harness=HARNESS,
            corpus=(Mount("/srv/texts", "/corpus"),),
            network=network,
            ca_bundle=Path("/etc/ca.pem"),
            proxies={"https_proxy": "http://proxy"},
        ).to_engine()

    assert prepare(True)["HostConfig"]["NetworkMode"] == "bridge"  # type: ignore[index]
    assert {"https_proxy=http://proxy", "REQUESTS_CA_BUNDLE=/glovebox/ca.pem"} <= set(prepare(True)["Env"])  # type: ignore[call-overload]
    assert prepare(False)["HostConfig"]["NetworkMode"] == "none"  # type: ignore[index]
    assert "proxy" not in str(prepare(False))
    assert "/etc/ca.pem" not in str(prepare(False))
    assert "/srv/texts" in str(prepare(False))


def test_the_digest_is_that_of_what_the_engine_is_told() -> None:
    spec = DEFAULT[Domain.TRAINER]
    assert spec.digest() == specs(SealedConfig(seccomp=PROFILE))[Domain.TRAINER].digest()
    assert spec.digest() != replace(spec, network=True).digest()
    assert spec.digest() != replace(spec, seccomp="{}").digest()
    assert spec.digest() != replace(spec, life_seconds=1.0, command=("train",)).digest()


def test_names_tell_home_experiment_and_attempt() -> None:
    assert ATTEMPT.name("worker") == f"glovebox-{ATTEMPT.home_id[:8]}-7-2-worker"
    assert ContainerNames(Path("/srv/other"), "7", 2).home_id != ATTEMPT.home_id


def test_volumes_are_capped_and_belong_to_their_writer() -> None:
    config = SealedConfig(workspace_bytes=1000, exchange_bytes=2000, seccomp=PROFILE)
    space = volumes.workspace(config, ATTEMPT, 300.0)
    requests, replies = volumes.exchange_volumes(config, ATTEMPT, FIRST, 60.0)
    assert options(space) == {
        *("size=1000", "nr_inodes=16384", "uid=10001", "gid=10001", "mode=0755", "nosuid", "nodev", "noexec")
    }
    assert {"size=2000", "uid=10002"} <= options(replies)
    assert {"size=2000", "uid=10003"} <= options(requests)
    assert space.life_seconds > 300.0 + volumes.WORKSPACE_KEEP_SECONDS


def test_the_owner_of_a_volume_is_one_of_the_host() -> None:
    space = volumes.workspace(SealedConfig(seccomp=PROFILE), ATTEMPT, 300.0)
    assert {"uid=110001", "gid=210001"} <= options(space, IdMap(100000, 200000))


def options(volume: VolumeSpec, ids: IdMap = NOT_MAPPED) -> set[str]:
    driver = volume.to_engine(ids)["DriverOpts"]
    assert (driver["type"], driver["device"]) == ("tmpfs", "tmpfs")
    return set(driver["o"].split(","))
