"""What may leave a private step, and a wrapper for what may not (privacy.md 10, 12).

Every field below is PUBLIC (plan, constants, settings already chosen) or RELEASED
(noised and charged, or a function of such values). A controller, log, event or
progress feed receives these types and nothing else. All of it is plain Python, so
the types can be stored, shown and published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")


class Raw(Generic[T]):
    """A secret value on its way inside a step. It cannot be shown, stored or branched on.

    `reveal_inside_step()` is the only way in; its name is what a reviewer greps for.
    """

    __slots__ = ("_raw_value",)

    def __init__(self, raw_value: T) -> None:
        self._raw_value = raw_value

    def reveal_inside_step(self) -> T:
        return self._raw_value

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("A raw value may not leave the private step.")

    __repr__ = __str__ = __format__ = __bool__ = __reduce__ = __reduce_ex__ = _refuse
    __float__ = __int__ = __len__ = __iter__ = __eq__ = __hash__ = _refuse


@dataclass(frozen=True, kw_only=True)
class ReleasedValue:
    """A noised, charged number with its standard error.

    `std` covers the noise and, for losses, the secret number of patients drawn.
    """

    value: float
    std: float


@dataclass(frozen=True, kw_only=True)
class GroupTelemetry:
    """One clip group over the window just ended.

    PUBLIC: `group_id, kind, depth, size` and the settings `clip_norm, noise_std, share,
    rate_factor` (settings are functions of values released before).
    RELEASED: the rest, all functions of the noised sums z_t of this window.
    """

    group_id: str
    kind: str  # "q_proj.A", "c_attn.B", ...: projection and tensor
    depth: float  # layer index / (layers - 1), in [0, 1]
    size: int  # coordinates
    clip_norm: float
    noise_std: float
    share: float
    rate_factor: float
    clip_fraction: ReleasedValue | None  # share of patients with norm <= clip_norm
    signal_norm_squared: float  # unbiased: ||mean z||^2 - d s^2 / m; may be negative
    update_cosine: float  # of this window's mean z with the previous one, 0 at first
    update_norm: float  # of the weight change in this window
    weight_norm: float


@dataclass(frozen=True, kw_only=True)
class WindowTelemetry:
    """Everything a hyper-policy may see at a window border.

    Before the first window `groups` carries zeros for the released fields and
    `loss` is None.
    """

    step: int  # steps finished
    steps_planned: int
    chunk: int  # index of the window just ended; -1 before the first
    steps_per_chunk: int
    filter_used: float  # public: units charged / budget of the job, in [0, 1]
    sampling_probability: float
    noise_multiplier: float
    target_epsilon: float
    learning_rate: float
    loss: ReleasedValue | None  # noised clipped training loss, mean over the window
    validation_loss: ReleasedValue | None  # noised, charged to the validation block
    groups: tuple[GroupTelemetry, ...]
