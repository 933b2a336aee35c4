"""The service: who may read its key, who holds what, and what is left when it is ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from controller.app import runner_settings
from controller.core.containers import builders, volumes
from controller.core.containers.config import SandboxConfig
from controller.core.containers.names import ContainerNames
from controller.observers.notify import NotifyConfig
from controller.settings import BudgetConfig, Settings
from controller.store.lock import HomeLock
from tests.image.conftest import PROJECT
from tests.support.bench import Bench, open_bench

KEY = "sk-ant-a-key-that-is-none"
SHELL = "sandbox_image/bootstrap/service.sh"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What of the project the service needs, at a place of its own."""
    shutil.copytree(PROJECT / "sandbox_image", tmp_path / "sandbox_image")
    shutil.copy(PROJECT / "compose.yaml", tmp_path)
    (tmp_path / "controller" / "system").mkdir(parents=True)
    for name in ("__init__.py", "system/__init__.py", "system/dotenv.py", "system/text_files.py"):
        shutil.copy(PROJECT / "controller" / name, tmp_path / "controller" / name)
    return tmp_path


def call(project: Path, function: str, **environment: str) -> None:
    """One of the script's own functions."""
    text = (project / SHELL).read_text()
    script = text.replace('\nmain "$@"', f"\nexport_variables; {function}").replace(
        '"$(dirname "${BASH_SOURCE[0]}")/../.."', str(project)
    )
    ours = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    subprocess.run(["bash", "-c", script], env=ours | environment, cwd=project, check=True)


def key_of(project: Path, **environment: str) -> Path:
    """The key file that `make up` would leave."""
    call(project, "make_key_file", **environment)
    return project / ".secrets" / "anthropic_api_key"


@pytest.mark.parametrize(
    ("dotenv", "environment", "key"),
    [
        ("", {}, ""),
        ("", {"ANTHROPIC_API_KEY": KEY}, KEY),
        (f"A=1\nANTHROPIC_API_KEY={KEY}\n", {}, KEY),
        (f'export ANTHROPIC_API_KEY="{KEY}"\n', {}, KEY),
        ("GLOVEBOX_ANTHROPIC_API_KEY_FILE=mine\n", {}, KEY + "-mine"),
        ("", {"GLOVEBOX_ANTHROPIC_API_KEY_FILE": "mine"}, KEY + "-mine"),
        ("ANTHROPIC_API_KEY=other\n", {"ANTHROPIC_API_KEY": KEY}, KEY),
        (f"ANTHROPIC_API_KEY = '{KEY}' # mine\r\n", {"ANTHROPIC_API_KEY": ""}, KEY),
        ("GLOVEBOX_ANTHROPIC_API_KEY_FILE=~/mine\n", {"HOME": "."}, KEY + "-mine"),
    ],
)
def test_the_key_file_holds_the_key_for_its_owner_alone(
    project: Path, dotenv: str, environment: dict[str, str], key: str
) -> None:
    (project / "mine").write_text(KEY + "-mine\n")
    (project / ".env").write_text(dotenv)
    path = key_of(project, **environment)
    assert path.read_text() == key
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_new_key_takes_the_old_ones_place_in_the_same_file(project: Path) -> None:
    before = key_of(project, ANTHROPIC_API_KEY="old")
    number = before.stat().st_ino
    after = key_of(project, ANTHROPIC_API_KEY=KEY)
    assert (after.stat().st_ino, after.read_text()) == (number, KEY)
    assert key_of(project).read_text() == ""


@pytest.fixture
def compose(project: Path, image: str) -> Iterator[list[str]]:
    """compose with the sandbox image in the controller's place, which only has to print the key."""
    command = {"image": image, "entrypoint": ["cat"], "command": ["/run/secrets/anthropic_api_key"]}
    services = {"controller": command, "runner": {"image": image}}
    (project / "other.yaml").write_text(json.dumps({"services": services}))
    name = f"glovebox-test-{uuid.uuid4().hex[:8]}"
    line = ["docker", "compose", "--project-name", name, "--file", "compose.yaml", "--file", "other.yaml"]
    yield line
    environment = variables(project)
    subprocess.run([*line, "down"], cwd=project, env=environment, check=True, capture_output=True)


def variables(project: Path) -> dict[str, str]:
    folder = project / "home"
    for part in ("data", "harness", "runner/socket"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "glovebox.toml").touch()
    owner = 10000 if os.getuid() == 0 else os.getuid()
    return dict(os.environ) | {
        "GLOVEBOX_HOME": str(folder),
        "GLOVEBOX_UID": str(owner),
        "GLOVEBOX_GID": str(owner),
        "GLOVEBOX_SOCKET_GID": "0",
        "GLOVEBOX_RUNNER_UID": str(owner),
        "GLOVEBOX_REAPER_UID": str(owner),
        "GLOVEBOX_KEY_FILE": str(project / ".secrets" / "anthropic_api_key"),
        "GLOVEBOX_DOTENV": str(project / ".secrets" / "settings.env"),
        "ANTHROPIC_API_KEY": KEY,
    }


@pytest.mark.engine
def test_the_service_can_read_the_key_and_inspect_does_not_show_it(project: Path, compose: list[str]) -> None:
    (project / ".env").write_text(f"ANTHROPIC_API_KEY={KEY}\nGLOVEBOX_LIMITS__DOLLARS=3\n")
    call(project, "make_key_file; make_settings_file")
    environment = variables(project)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            arguments, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(*compose, "run", "--rm", "--no-deps", "-T", "controller") == KEY
    run(*compose, "create", "--no-recreate", "controller")
    container = run(*compose, "ps", "--all", "--quiet", "controller").strip()
    inspected = run("docker", "inspect", container)
    assert KEY not in inspected and "DOLLARS" not in inspected
    told = run(*compose, "run", "--rm", "--no-deps", "-T", "controller", "/opt/glovebox/.env")
    assert told == "GLOVEBOX_LIMITS__DOLLARS='3'\n"


SOCKET = "/var/run/docker.sock"


def services(project: Path) -> dict[str, Any]:
    """compose's own reading of the file."""
    told = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--format", "json"],
        cwd=project,
        env=variables(project),
        capture_output=True,
        check=True,
    )
    found = json.loads(told.stdout)["services"]
    assert isinstance(found, dict)
    return found


def test_who_has_what(project: Path) -> None:
    """The key and the engine are never in one place, and what talks to the world has no engine."""
    (project / ".env").write_text(f"ANTHROPIC_API_KEY={KEY}\nGLOVEBOX_LIMITS__DOLLARS=3\n")
    parts = services(project)
    home = variables(project)["GLOVEBOX_HOME"]

    def holds(name: str, path: str) -> list[bool]:
        """Whether each mount at or below `path` is read-only."""
        mounts = parts[name]["volumes"]
        return [m.get("read_only", False) for m in mounts if f"{m['target']}/".startswith(f"{path}/")]

    assert {name for name in parts if holds(name, SOCKET)} == {"runner", "reaper", "operator"}
    assert {name for name in parts if parts[name].get("secrets")} == {"controller"}
    assert {name for name in parts if parts[name].get("network_mode") != "none"} == {"controller", "web"}
    assert not set(parts["controller"]["networks"]) & set(parts["web"]["networks"])
    published = [
        (port["host_ip"], port["published"]) for name in parts for port in parts[name].get("ports", ())
    ]
    assert published == [("127.0.0.1", "8700")]
    assert holds("web", home) == [True, False, False, False, True]
    assert holds("web", f"{home}/requests") == [False]
    hidden = [mount["target"] for mount in parts["web"]["volumes"] if mount["type"] == "tmpfs"]
    assert hidden == [f"{home}/data", f"{home}/runner"]
    assert parts["web"]["volumes"][4]["source"] == str(project / ".secrets" / "empty")
    assert set(parts["web"]["environment"]) == {"GLOVEBOX_HOME"}
    assert "0" not in parts["controller"].get("group_add", [])
    assert holds("controller", home) == [False, True, True, True, True]
    for part in ("data", "harness", "runner", "glovebox.toml"):
        assert holds("controller", f"{home}/{part}") == [True], part
    assert holds("runner", home) == [True, False]
    assert not holds("reaper", home)
    assert parts["reaper"]["entrypoint"] == ["python", "-m", "controller.sandbox.engine.reaper", "/tmp/alive"]
    assert parts["controller"]["healthcheck"]["test"] == ["CMD", "python", "-m", "controller", "health"]
    for name, service in parts.items():
        assert KEY not in json.dumps(service), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert not service.get("privileged") and service["restart"] == (
            "no" if name == "operator" else "unless-stopped"
        ), name
        sources = [mount["source"] for mount in service.get("volumes", ()) if "source" in mount]
        reaches = any(f"{SOCKET}/".startswith(f"{source}/") for source in sources)
        assert reaches == (name in ("runner", "reaper", "operator")), name
        assert name in ("controller", "operator", "web") or home not in sources, name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_the_runner_is_told_what_shapes_containers_and_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By way of the file that compose reads, whatever stands in the settings."""
    image = 'it\'s $HOME "quoted" # no comment'
    config = Settings(
        sandbox=SandboxConfig(image=image, gpu=("0", "1")),
        budget=BudgetConfig(wall_seconds=20.5),
        notify=NotifyConfig(webhook=SecretStr("https://hooks.example/secret")),
        device="gpu",
    )
    (project / ".secrets").mkdir()
    (project / ".secrets" / "runner.env").write_text(runner_settings.lines(config))
    told = services(project)["runner"]["environment"]
    assert "secret" not in json.dumps(told)
    for name, value in told.items():
        monkeypatch.setenv(name, value.replace("$$", "$"))  # compose prints it so that it can read it again
    heard = Settings()
    assert heard.device == "gpu" and heard.notify.webhook is None
    for section in runner_settings.SECTIONS:
        assert getattr(heard, section) == getattr(config, section)


def test_a_home_for_the_service_belongs_to_whom_it_should(project: Path) -> None:
    call(project, "make_home", GLOVEBOX_HOME=str(project / "home"))
    socket = (project / "home" / "runner" / "socket").stat()
    assert socket.st_mode & 0o7777 == 0o2750
    assert (project / "home" / "glovebox.toml").read_text() == ""
    if os.getuid() == 0:
        owners = {path.name: path.stat().st_uid for path in (project / "home").iterdir()}
        assert owners == {"runner": 10010} | dict.fromkeys(
            ("data", "harness", "requests", "glovebox.toml"), 10000
        )
        assert socket.st_gid == 10000


def test_the_token_of_the_web_server_is_made_once_for_the_service_alone(project: Path) -> None:
    path = project / "home" / "web-token"
    call(project, "make_home; make_web_token", GLOVEBOX_HOME=str(project / "home"))
    first = path.read_text()
    assert len(first) > 40 and path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == (10000 if os.getuid() == 0 else os.getuid())
    call(project, "make_web_token", GLOVEBOX_HOME=str(project / "home"))
    assert path.read_text() == first
    path.unlink()
    path.symlink_to(project / "elsewhere")
    call(project, "make_web_token", GLOVEBOX_HOME=str(project / "home"))
    assert not (project / "elsewhere").exists()


def test_where_the_web_server_is_published_may_be_chosen(project: Path) -> None:
    (project / ".env").write_text("GLOVEBOX_WEB__HOST=10.0.0.7\n")
    show = 'printf "%s\\n" "$GLOVEBOX_WEB__HOST:$GLOVEBOX_WEB__PORT" >told'
    call(project, show, GLOVEBOX_WEB__PORT="9000")
    assert (project / "told").read_text() == "10.0.0.7:9000\n"


def test_a_folder_that_is_no_home_is_not_taken_over(project: Path) -> None:
    """A slip of the pen would give away every file in it."""
    (project / "mine").mkdir()
    (project / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(subprocess.CalledProcessError):
        call(project, "make_home", GLOVEBOX_HOME=str(project / "mine"))
    assert os.listdir(project / "mine") == ["thesis.tex"]
    assert (project / "mine").stat().st_uid == os.getuid()


def test_home_and_corpus_may_stand_in_the_dotenv(project: Path) -> None:
    (project / ".env").write_text("GLOVEBOX_HOME=there\nGLOVEBOX_CORPUS=climbmix\n")
    show = 'printf "%s\\n" "$GLOVEBOX_HOME" "$(corpus)" >told'
    call(project, show)
    assert (project / "told").read_text() == f"{project}/there\nclimbmix\n"
    call(project, show, GLOVEBOX_HOME="/elsewhere", GLOVEBOX_CORPUS="stdlib")
    assert (project / "told").read_text() == "/elsewhere\nstdlib\n"
    (project / ".env").write_bytes(b"GLOVEBOX_HOME = '~/gb' # big disk\r\nGLOVEBOX_CORPUS=~/texts\r\n")
    call(project, show, HOME="/home/me")
    assert (project / "told").read_text() == "/home/me/gb\n/home/me/texts\n"


def test_what_the_service_is_told_changes_with_the_dotenv_and_holds_no_key(project: Path) -> None:
    show = 'make_settings_file; echo "$GLOVEBOX_SETTINGS" >told'
    (project / ".env").write_text(
        f'ANTHROPIC_API_KEY={KEY}\nGLOVEBOX_TAG = "it\'s" # mine\n', encoding="utf-8"
    )
    call(project, show)
    path = project / ".secrets" / "settings.env"
    before = (path.read_text(encoding="utf-8"), (project / "told").read_text(encoding="utf-8"))
    assert before[0] == 'GLOVEBOX_TAG="it\'s"\n' and path.stat().st_mode & 0o777 == 0o600
    (project / ".env").write_text("GLOVEBOX_TAG=other\n", encoding="utf-8")
    call(project, show)
    assert path.read_text(encoding="utf-8") == "GLOVEBOX_TAG='other'\n"
    assert (project / "told").read_text(encoding="utf-8") != before[1]


def test_a_dotenv_that_cannot_be_read_stops_every_script(project: Path) -> None:
    (project / ".env").write_text("\nGLOVEBOX_HOME='there\n", encoding="utf-8")
    for script in ("service.sh", "image.sh", "env.sh", "controller.sh", "demo.sh"):
        path = project / "sandbox_image" / "bootstrap" / script
        done = subprocess.run([path, "up"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("glovebox: .env, line 2: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("scale", "said"),
    [("", "prepare --corpus stdlib\n"), ("small", "prepare --corpus stdlib --scale small\n")],
)
def test_the_size_of_the_data_may_be_chosen(project: Path, scale: str, said: str) -> None:
    (project / ".env").write_text(f"GLOVEBOX_SCALE={scale}\n")
    docker = 'docker() { printf "%s\\n" "$*" >told; }'
    call(project, f"{docker}; prepare", GLOVEBOX_CORPUS="stdlib")
    assert (project / "told").read_text().endswith(f" operator {said}")


@pytest.mark.parametrize(
    ("corpus", "mounted"),
    [
        ("texts", "texts"),
        ("input.txt", "input.txt"),
        ("hub/snapshots/abc", "hub"),
        ("hub/snapshots/abc/a", "hub"),
    ],
)
def test_a_corpus_is_mounted_with_what_its_links_lead_to(project: Path, corpus: str, mounted: str) -> None:
    (project / corpus).mkdir(parents=True)
    docker = 'docker() { printf "%s\\n" "$*" >told; }'
    call(project, f"{docker}; prepare", GLOVEBOX_CORPUS=corpus, GLOVEBOX_SEPARATOR="--- -")
    told = (project / "told").read_text()
    assert f"--volume {project}/{mounted}:{project}/{mounted}:ro " in told
    assert told.endswith(f" operator prepare --corpus {project}/{corpus} --separator --- -\n")


def leave_running(bench: Bench) -> None:
    """What a controller leaves that is killed while T trains, as far as labels go."""
    place = ContainerNames(bench.home, "7")
    bench.sandbox.create_volume(volumes.workspace(bench.config, place, 600.0))
    bench.sandbox.start(builders.holder(bench.config, place, 600.0))


@pytest.mark.engine
def test_what_a_dead_controller_left_running_ends_with_the_service(
    project: Path, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_bench(tmp_path_factory.mktemp("other"), bench.config) as other:
        leave_running(bench)
        leave_running(other)
        end = 'end_experiments "$GLOVEBOX_HOME"'
        with HomeLock(bench.home):  # a controller in the foreground
            call(project, end, GLOVEBOX_HOME=str(bench.home))
            assert [len(found) for found in bench.sandbox.leftovers()] == [1, 1]
        call(project, end, GLOVEBOX_HOME=str(bench.home))
        assert bench.sandbox.leftovers() == ([], [])
        call(project, end, GLOVEBOX_HOME=str(bench.home))
        assert [len(found) for found in other.sandbox.leftovers()] == [1, 1]
