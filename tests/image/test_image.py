"""The real sandbox image under the posture that experiments run under."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import LABEL, PROJECT

pytestmark = pytest.mark.engine

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def python(container: Run, code: str, **options: list[str]) -> str:
    result = container("exec", "--limit", "100", "--", "python", "-c", code, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_holds_what_the_harness_imports_and_no_installer(container: Run) -> None:
    code = """
import importlib.util, sys
import numpy, pyarrow.parquet, requests, rustbpe, safetensors.torch, tiktoken, torch, tqdm
print(torch.__version__.split("+")[0], sys.version_info >= (3, 11), importlib.util.find_spec("pip"))
"""
    assert python(container, code).split() == ["2.13.0", "True", "None"]


def test_installed_versions_are_the_locked_ones(container: Run) -> None:
    code = r"""
import importlib.metadata, re
lock = open("/opt/glovebox/requirements.lock").read()
for name, version in re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock, re.MULTILINE):  # no conditions
    print(name, version, importlib.metadata.version(name))
"""
    rows = [line.split() for line in python(container, code).splitlines()]
    assert {"pyarrow", "tiktoken", "torch"} <= {row[0] for row in rows}
    assert [row for row in rows if row[1] != row[2]] == []


def test_byte_code_is_there_because_it_cannot_be_written_later(container: Run) -> None:
    code = """
import importlib.util, numpy, torch, safetensors
for module in numpy, torch, safetensors, torch.nn.functional:
    open(importlib.util.cache_from_source(module.__file__), "rb").close()
"""
    assert python(container, code) == ""


def test_runs_as_nobody_in_particular_and_offers_no_way_up(container: Run) -> None:
    code = """
import os, stat
risky = []
for folder, _, names in os.walk("/usr"):
    for name in names:
        mode = os.lstat(os.path.join(folder, name)).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            risky.append(name)
print(os.getuid(), os.getgid(), os.getgroups(), risky)
"""
    assert python(container, code).strip() == "10001 10001 [10001] []"


def test_every_trust_domain_has_its_user(container: Run) -> None:
    code = "import pwd; print([pwd.getpwuid(u).pw_name for u in (10001, 10002, 10003)])"
    assert python(container, code).strip() == "['trainer', 'worker', 'judge']"


@pytest.mark.slow
def test_torch_compile_works_sealed(container: Run) -> None:
    code = """
import torch
function = torch.compile(lambda x: (x * 2 + 1).relu().sum())
x = torch.linspace(-1, 1, 64)
print(torch.allclose(function(x), (x * 2 + 1).relu().sum()))
"""
    assert python(container, code).strip() == "True"


def test_train_runs_the_proposal_in_its_workspace(container: Run, tmp_path: Path) -> None:
    proposal = tmp_path / "train.py"
    proposal.write_text(
        "import os\nprint(os.getcwd(), __file__)\nopen('mine', 'w').close()\nraise SystemExit(5)\n"
    )
    proposal.chmod(0o644)
    result = container("train", "--limit", "20", options=[f"--volume={proposal}:/glovebox/train.py:ro"])
    assert (result.returncode, result.stdout.strip()) == (5, "/work /work/train.py")


def test_train_without_a_proposal_is_our_mistake(container: Run) -> None:
    result = container("train", "--limit", "20")
    assert result.returncode == 125
    assert result.stderr.startswith("entrypoint: cannot place train.py in /work")


@pytest.mark.parametrize("path", ["/proc/1/mem", "/proc/1/environ", "/proc/1/fd", "/proc/1/root"])
def test_the_child_cannot_reach_into_pid_1(container: Run, path: str) -> None:
    code = f"""
import os
try:
    print(os.open({path!r}, os.O_RDONLY), os.listdir({path!r}))
except PermissionError:
    print("denied")
"""
    assert python(container, code).strip() == "denied"


def test_the_deadline_holds_in_a_container(container: Run) -> None:
    begin = time.monotonic()
    script = (
        "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.fork() or os.setsid()\ntime.sleep(60)"
    )
    assert container("exec", "--limit", "1", "--", "python", "-c", script).returncode == 124
    assert time.monotonic() - begin < 5


def test_says_what_it_was_built_from_and_carries_no_configuration_of_the_builder(image: str) -> None:
    def docker(*arguments: str) -> str:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout

    config = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert re.fullmatch("[0-9a-f]{64}", config["Labels"]["glovebox.inputs"])
    assert not [line for line in config["Env"] if line.startswith(("PIP_", "SSL_", "HTTP", "http"))]
    search = "cat /etc/pip.conf /opt/venv/pip.conf /run/secrets/*; ls -A /wheels"
    found = docker(
        *("run", "--rm", "--label", LABEL, "--network", "none", "--entrypoint", "sh", image),
        *("-c", f"({search}) 2>/dev/null; true"),
    )
    assert found == ""


def test_an_unchanged_image_is_not_built_again(image: str) -> None:
    def image_id() -> str:
        command = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before, begin = image_id(), time.monotonic()
    subprocess.run([PROJECT / "sandbox_image/bootstrap/image.sh"], check=True, capture_output=True)
    assert time.monotonic() - begin < 2
    assert image_id() == before
