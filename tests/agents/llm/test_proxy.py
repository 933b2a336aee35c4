"""A proxy that cannot be used is one sentence, in which its password is not."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr

from controller.agents.llm.config import ClaudeConfig
from controller.agents.llm.transport import Transport
from controller.core.errors import UserError
from controller.system.clock import SystemClock

PASSWORD = "the-password"


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{PASSWORD}/1@proxy:3128",
        f"http://proxy:{PASSWORD}",
        f"http://user:{PASSWORD}@proxy\x1b[2J:80",
        f"socks5://user:{PASSWORD}@proxy:1080",
        f"ftp://user:{PASSWORD}@proxy:21",
    ],
)
def test_a_malformed_proxy_is_not_quoted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(UserError, match="proxy") as caught:
        Transport(ClaudeConfig(), SecretStr("sk-ant-not-a-real-key"), SystemClock())
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
