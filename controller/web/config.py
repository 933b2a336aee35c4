"""Where the server listens."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class WebConfig(BaseModel):
    """`glovebox web`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address or name to listen on. Beyond loopback, reading needs the token in `web-token`, too."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    """0: any that is free."""
