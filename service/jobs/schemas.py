"""What a request for a job may say (service.md 5.1). Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.exact_json import DecimalText

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, strict=True)]
MetadataKey = Annotated[str, StringConstraints(pattern=r"^[\w.:/-]{1,64}$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,64}$")]
Auto = Literal["auto"]


class Input(BaseModel):
    """Base of input models."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(Input):
    """`batch_size` is the expected one: rate q = batch_size / patients of the training block."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    learning_rate_multiplier: Auto | DecimalText = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"


class Supervised(Input):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Input):
    type: Name = "supervised"
    supervised: Supervised = Supervised()
    dpo: Any = None
    reinforcement: Any = None


class NoiseDecay(Input):
    """Noise that falls in stairs of equal length to a fraction of where it began."""

    final_fraction: DecimalText
    levels: Annotated[int, Field(ge=2, le=4)] = 4  # each adds seconds to the calibration
    curve: Literal["geometric", "linear"] = "geometric"


class Privacy(Input):
    """The job's own guarantee and how its noise is planned."""

    target_epsilon: DecimalText | None = None
    delta: Auto | DecimalText = "auto"
    mode: Literal["fixed_sigma", "adaptive_sigma"] = "fixed_sigma"
    noise_levels: Auto | Annotated[list[DecimalText], Field(min_length=1, max_length=8)] = "auto"
    # Fixed mode: how the noise runs over the steps; its height follows from the target.
    noise_schedule: Literal["constant"] | NoiseDecay = "constant"
    alpha: Auto | Annotated[int, Field(ge=2, le=64)] = "auto"
    steps_max: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    # Compute to be spent at most; what is left on auto is chosen for the best utility in it.
    minutes_max: DecimalText | None = None
    margin_windows: Annotated[int, Field(ge=0, le=20)] = 2
    # Length of a training row; a longer note becomes further rows of the same patient.
    tokens_per_row: Auto | Annotated[int, Field(ge=16, le=32_768)] = "auto"


class Controller(Input):
    """Who chooses clips, shares and rates within the plan's bounds."""

    type: Name = "auto"
    policy: Name = "default"
    interval_steps: Annotated[int, Field(ge=1, le=500)] = 25
    signals: list[Name] | None = None


class Adapter(Input):
    """LoRA; its initialisation depends on the seed only."""

    type: Literal["lora"] = "lora"
    r: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[int, Field(ge=1, le=1024)] | None = None
    target_modules: Auto | Annotated[list[ModuleName], Field(min_length=1, max_length=16)] = "auto"


class JobRequest(Input):
    """Body of creation and of the estimate."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    allow_duplicate: bool = False
    integrations: list[Any] | None = None
    method: Method = Method()
    hyperparameters: Hyperparameters | None = None
    privacy: Privacy = Privacy()
    controller: Controller = Controller()
    adapter: Adapter = Adapter()
