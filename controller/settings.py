"""Every setting of Glovebox, in one tree.

Sources, strongest first: command line, environment (`GLOVEBOX_BUDGET__WALL_SECONDS`), `.env`, `glovebox.toml`
in the home or in the current folder, defaults.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from controller.agents.llm.config import ClaudeConfig
from controller.core.containers.config import SandboxConfig
from controller.core.errors import UserError
from controller.core.hardware.disturbance import NoiseConfig
from controller.core.hardware.slots import SlotConfig, objection
from controller.core.rules import AbsenceConfig, KeepConfig, ReplicatesConfig, RetryConfig
from controller.core.scoring.config import JudgeConfig
from controller.core.statistics.certificate import CertifyConfig
from controller.core.untrusted import clean_line
from controller.observers.notify import NotifyConfig
from controller.sandbox.rehearsal import RehearsalConfig
from controller.store.retention import RetentionConfig
from controller.system import dotenv, text_files, variables
from controller.web.config import WebConfig

SETTINGS_FILE = "glovebox.toml"
PROJECT = Path(__file__).resolve().parent.parent
_PATHS = ("home", "train", "program", "runner", "anthropic_api_key_file")
"""In which `~` is filled in: neither `.env` nor TOML does."""


class BudgetConfig(BaseModel):
    """The fixed time of an experiment (R4)."""

    model_config = ConfigDict(extra="forbid")

    wall_seconds: Annotated[float, Field(gt=0, le=86400)] = 300.0
    """Seconds of wall clock from the start of the container, start-up and compilation included."""
    early_end: bool = True
    """Runs that train far worse than every kept program, or report a loss that is not a number, are ended."""


class LimitsConfig(BaseModel):
    """When to stop without being asked (R12). Nothing set: never."""

    model_config = ConfigDict(extra="forbid")

    experiments: Annotated[int, Field(gt=0)] | None = None
    """Experiments of the effort, the baseline included and replicates not."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of the effort: while a controller was at work, all sessions and pauses included."""
    dollars: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Spent on the effort's agent, what is in flight included; then it stops."""
    dollars_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The same on one UTC day; then it waits for the next."""


class Settings(BaseSettings):
    """The whole configuration of one research effort."""

    model_config = SettingsConfigDict(
        env_prefix="GLOVEBOX_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    home: Path = Path("home")
    """State directory of the effort."""
    tag: str | None = None
    """Name of the effort; its branch is `autoresearch/<tag>`. Default: today's date, like `nov21`."""
    agent: str = "auto"
    """`claude`, `tuner`, `replay:DIR`, or `auto`: `claude` if there is an API key, else `tuner`."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where experiments run. `auto`: the GPU if the engine can hand one to a container. One that PyTorch
    cannot use is an error."""
    train: Path = PROJECT / "harness" / "train.py"
    """The baseline a new effort starts from."""
    program: Path = PROJECT / "program.md"
    """The instructions a new effort gives its agent."""
    runner: Path | None = None
    """Socket of the runner that starts containers for this process; none: it uses the engine itself."""
    seed: int = 0
    """Seed of the built-in tuner."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 2 * 1024**3
    """Free disk space, for each slot, under which no experiment is started; with a quarter of it, those that
    run are stopped and repeated."""
    budget: BudgetConfig = BudgetConfig()
    limits: LimitsConfig = LimitsConfig()
    replicates: ReplicatesConfig = ReplicatesConfig()
    keep: KeepConfig = KeepConfig()
    certify: CertifyConfig = CertifyConfig()
    absence: AbsenceConfig = AbsenceConfig()
    retry: RetryConfig = RetryConfig()
    notify: NotifyConfig = NotifyConfig()
    noise: NoiseConfig = NoiseConfig()
    sandbox: SandboxConfig = SandboxConfig()
    slots: tuple[SlotConfig, ...] | Literal["auto"] = ()
    """Places where experiments run side by side, each with its own GPU or CPUs. None given: one slot. `auto`:
    one for each GPU."""
    storage: RetentionConfig = RetentionConfig()
    judge: JudgeConfig = JudgeConfig()
    rehearsal: RehearsalConfig = RehearsalConfig()
    claude: ClaudeConfig = ClaudeConfig()
    web: WebConfig = WebConfig()
    anthropic_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("ANTHROPIC_API_KEY", "anthropic_api_key")
    )
    """Key for the `claude` agent; from the environment or `.env` only."""
    anthropic_api_key_file: Path | None = None
    """A file that holds the key instead; only its owner should be able to read it."""

    def api_key(self) -> SecretStr | None:
        """The key, wherever it comes from; None if there is none. Raises UserError if it can be none."""
        if self.anthropic_api_key is not None:
            return _key(self.anthropic_api_key.get_secret_value(), "The variable ANTHROPIC_API_KEY")
        path = self.anthropic_api_key_file
        if path is None:
            return None
        try:
            text = text_files.decode(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"The key file {path} cannot be read: {error.strerror}.") from error
        except text_files.Unreadable:
            # No `from`: the error would carry the file's content into a traceback.
            raise UserError(f"The key file {path} holds no key.") from None
        return _key(text, f"The key file {path}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _from_dotenv(settings_cls), _TomlSource(settings_cls)

    @field_validator("slots", mode="before")
    @classmethod
    def _require_tables(cls, slots: Any) -> Any:
        if slots != "auto" and not isinstance(slots, list | tuple):
            raise ValueError('it is "auto", or a list with a table for each slot')
        return slots

    @field_validator("slots")
    @classmethod
    def _require_slots(
        cls, slots: tuple[SlotConfig, ...] | Literal["auto"], info: ValidationInfo
    ) -> tuple[SlotConfig, ...] | Literal["auto"]:
        sandbox, device = info.data.get("sandbox"), info.data.get("device")
        if not slots:
            return slots
        if sandbox is not None and sandbox.gpu:
            raise ValueError("name the GPUs here or in sandbox.gpu, not in both")
        if slots == "auto":
            if device == "cpu":
                raise ValueError("auto is one slot for each GPU, but device is cpu")
            return slots
        if (phrase := objection(slots)) is not None:
            raise ValueError(phrase)
        if device == "cpu" and slots[0].gpu:
            raise ValueError("the slots name GPUs, but device is cpu")
        if device == "gpu" and not slots[0].gpu:
            raise ValueError("the slots name no GPU, but device is gpu")
        return slots

    @field_validator(*_PATHS)
    @classmethod
    def _fill_in_home(cls, path: Path | None) -> Path | None:
        return path and Path(dotenv.full_path(str(path)))


def _key(text: str, where: str) -> SecretStr | None:
    """None for an empty one. Raises UserError for what cannot be sent as a key, without showing it."""
    text = text.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise UserError(f"{where} holds no key: there are characters in it that no key has.")
    return SecretStr(text) if text else None


def _from_dotenv(settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
    """What .env says about settings; the variables of the make targets may stand in it too."""
    source = EnvSettingsSource(settings_cls)
    source.env_vars = {name.lower(): value for name, value in _read_dotenv().items() if value}
    return source


def _read_dotenv() -> dict[str, str]:
    try:
        return dotenv.read()
    except text_files.Unreadable as error:
        raise UserError(f"{error}.") from None


class _TomlSource(InitSettingsSource):
    """glovebox.toml of the home if it has one, else of the current folder."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, init_kwargs={})

    def __call__(self) -> dict[str, Any]:
        home = self.current_state.get("home") or os.environ.get("GLOVEBOX_HOME") or "home"
        for folder in (Path(os.path.expanduser(home)), Path()):
            # Not Path.exists: that one raises in a folder that may not be searched.
            # An empty one says nothing: `make up` leaves one, so that it can be mounted.
            if os.path.lexists(folder / SETTINGS_FILE) and (told := _read_toml(folder / SETTINGS_FILE)):
                return told
        return {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_files.read(path))
    except text_files.Unreadable as error:
        raise UserError(f"{error}.") from None
    except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"The settings file {path} cannot be read: {clean_line(str(error))}.") from error


def load(**overrides: Any) -> Settings:
    """Read the settings; `overrides` come from the command line, None meaning "not given".

    Raises UserError with one sentence naming the setting that is wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        named = [*os.environ, *_read_dotenv()]
        if (objection := variables.objection(named, Settings.model_fields)) is not None:
            raise UserError(clean_line(objection))
        settings = Settings(**given)
    except ValidationError as error:
        raise UserError(_sentence(error)) from error
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise UserError(
            f"The setting {field[1] if field else 'that was given'} cannot be read: in the environment "
            'and in .env, lists and tables are JSON, ["a", "b"] for instance.'
        ) from error
    home = settings.home.absolute()
    if not text_files.is_text(str(home)):
        raise UserError(f"The name of the home {clean_line(str(home))} is no UTF-8; choose another folder.")
    return settings.model_copy(update={"home": home})


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    # Where a value may be of several types, the place names the type as well.
    name = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    if first["type"] == "extra_forbidden":
        return f"There is no setting {clean_line(name)}; docs/settings.md lists those there are."
    what = clean_line(first["msg"]).removeprefix("Value error, ")
    return f"The setting {name} is wrong: {what}; see docs/settings.md for what it may be."
