"""RLDP's soft actor-critic as a `HyperPolicy`: one network steers every clip group.

It starts from scratch, or from a pretrained policy (`controller.pretraining.policy_file`),
which acts from the first window on and is refined, or left as it is, by the job.

stable-baselines3's SAC does the learning; this class feeds it. Each window gives K + 1
transitions, one per group and one for the whole job, all into one replay buffer.

Guarantees:
- From scratch: before the first window nothing is released, so that window runs the
  reference plan. After it the mean action starts within 0.01 of the reference; exploration
  is Gaussian with std 0.15 (of the ranges in `ActionRanges`), annealed to 0.03.
- Exploration never leaves `exploration_max` around the mean action; a policy that does not
  learn does not explore.
- Equal (groups, seed, settings) and equal telemetry give equal actions on one machine;
  `propose` changes no parameter and answers a repeated question the same way.
- The process-wide generators of torch, numpy and Python are left as they were found.
- `state` holds functions of released values only; it is safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch import Tensor

from controller.actions import ActionRanges, to_group_actions
from controller.environment import WindowEnvironment
from controller.errors import GroupsChanged, PolicyStateMismatch, SettingInvalid
from controller.observation import (
    ACTION_SIZE,
    FEATURES,
    OBSERVATION_SIZE,
    GroupDescription,
    ObservationMemory,
    Rows,
    elapsed_fraction,
    observe,
)
from controller.policy_state import (
    actor_bytes,
    check_model_tensors,
    pack_model,
    read_tensors,
    unpack_model,
    write_tensors,
)
from controller.pretraining.policy_file import PolicyFile
from controller.randomness import own_randomness
from controller.released import number, require_released
from controller.reward import RewardConfig, group_reward, next_spend_price, window_reward
from controller.sac_config import PRETRAINED_CONFIG, SacConfig, start_near_reference
from controller.safety import SafetyConfig, SafetyNet
from dp_core.ports import GroupActions
from dp_core.telemetry import WindowTelemetry

FORMAT_VERSION = 1
TENSORS_FILE = "policy.safetensors"
DOCUMENT_FILE = "policy.json"


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A proposal whose window has not reported yet."""

    chunk: int
    observations: Rows
    actions: Rows
    filter_used: float


class SacPolicy:
    """SAC trained between the windows of one job, from scratch or from a pretrained start."""

    def __init__(
        self,
        *,
        groups: Sequence[GroupDescription],
        seed: int,
        chunks_planned: int,
        config: SacConfig | None = None,
        ranges: ActionRanges | None = None,
        reward: RewardConfig | None = None,
        safety: SafetyConfig | None = None,
        pretrained: PolicyFile | None = None,
        name: str | None = None,
        learns: bool = True,
        masked: Sequence[str] = (),
    ) -> None:
        """`chunks_planned` sets the pace at which exploration anneals.

        `pretrained` brings networks, their size and the action ranges. Without `learns` the
        mean action is played and nothing is trained. `masked` features read as 0: ablations.

        Raises:
            SettingInvalid: no groups, no windows, or a feature of no known name.
        """
        if not groups:
            raise SettingInvalid("groups", "a policy needs at least one clip group")
        if chunks_planned < 1:
            raise SettingInvalid("chunks_planned", "must be at least 1")
        self._groups = tuple(groups)
        self._seed = seed
        self._chunks_planned = chunks_planned
        self.name = name or ("rldp" if pretrained is None else "rldp_pretrained")
        self._pretrained, self._learns = pretrained, learns
        self._masked = _columns(masked)
        self._config = config or (SacConfig() if pretrained is None else PRETRAINED_CONFIG)
        if pretrained is not None:
            self._config = replace(self._config, hidden=pretrained.hidden)
            ranges = ranges or pretrained.ranges
        self._ranges = ranges or ActionRanges()
        self._reward = reward or RewardConfig()
        self._model = self._new_model()
        self._memory = ObservationMemory.empty(len(groups))
        self._safety = SafetyNet(config=safety or SafetyConfig())
        self._last_actions = self._no_actions()
        self._pending: _Pending | None = None
        self._windows_learned = 0
        self._chunk_learned = -1
        self._spend_price = 0.0

    # The port ---------------------------------------------------------------------

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        """Actions for the next window; the reference once frozen, and from scratch at first.

        Raises:
            TypeError: the telemetry holds anything but released and public values.
            GroupsChanged: other clip groups than the policy was made for.
        """
        self._check_groups(telemetry)
        observations = self._observe(telemetry)
        is_blind = telemetry.chunk < 0 and self._pretrained is None
        actions = self._no_actions()
        if not (is_blind or self.is_frozen):
            actions = self._explore(observations, telemetry.chunk)
        self._pending = _Pending(
            chunk=telemetry.chunk,
            observations=observations,
            actions=actions,
            filter_used=_fraction(telemetry.filter_used),
        )
        return to_group_actions(actions, self._ranges)

    def learn(self, telemetry: WindowTelemetry) -> None:
        """Takes a finished window: remember, judge, store K + 1 transitions, train.

        A window that was learned before changes nothing. A window without a proposal
        of this policy is remembered but not learned from.
        """
        self._check_groups(telemetry)
        if telemetry.chunk <= self._chunk_learned:
            return
        before, self._memory = self._memory, self._memory.advance(telemetry)
        self._safety = self._safety.judge(telemetry)
        self._chunk_learned = telemetry.chunk
        pending, self._pending = self._pending, None
        if pending is None or pending.chunk >= telemetry.chunk:
            return
        self._last_actions = pending.actions
        if self.is_frozen or not self._learns:
            return
        self._store(telemetry, pending, before)
        self._spend_price = next_spend_price(
            self._reward,
            price=self._spend_price,
            filter_used=_fraction(telemetry.filter_used),
            elapsed=elapsed_fraction(telemetry),
        )
        self._windows_learned += 1
        if self._windows_learned >= self._config.windows_before_training:
            self._train()

    def digest(self) -> str:
        """SHA-256 of the actor's parameters and the counters that shape a proposal."""
        counters = {
            "chunk_learned": self._chunk_learned,
            "controller": self.name,
            "frozen_at_chunk": self._safety.frozen_at_chunk,
            "seed": self._seed,
            "windows_learned": self._windows_learned,
        }
        text = json.dumps(counters, sort_keys=True).encode()
        return hashlib.sha256(actor_bytes(self._model) + text).hexdigest()

    def state(self) -> dict[str, bytes]:
        """All that the next proposal and update depend on."""
        tensors = pack_model(self._model)
        tensors["last_actions"] = torch.from_numpy(self._last_actions.copy())
        if self._pending is not None:
            tensors["pending/observations"] = torch.from_numpy(self._pending.observations.copy())
            tensors["pending/actions"] = torch.from_numpy(self._pending.actions.copy())
        return {
            TENSORS_FILE: write_tensors(tensors),
            DOCUMENT_FILE: json.dumps(self._document(), sort_keys=True, allow_nan=False).encode(),
        }

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Takes back what `state` gave, whole or not at all.

        Raises:
            PolicyStateMismatch: another policy's state, or a damaged one.
        """
        document = self._read_document(state)
        tensors = read_tensors(state[TENSORS_FILE])
        pending, last_actions = self._take_rows(document, tensors)
        memory = ObservationMemory.from_dict(document["memory"])
        safety = SafetyNet.from_dict(document["safety"], self._safety.config)
        counters = _counters(document)
        if len(memory.signal) != len(self._groups) or len(memory.fraction_error) != len(
            self._groups
        ):
            raise PolicyStateMismatch("its memory is of other groups")
        position = int(counters["replay_position"])
        check_model_tensors(self._model, tensors, replay_position=position)
        unpack_model(self._model, tensors, replay_position=position)
        self._memory, self._safety = memory, safety
        self._pending, self._last_actions = pending, last_actions
        self._windows_learned = int(counters["windows_learned"])
        self._chunk_learned = int(counters["chunk_learned"])
        self._spend_price = counters["spend_price"]

    # Readable beside the port -----------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether the safety net has given the job back to the reference plan."""
        return self._safety.frozen_at_chunk is not None

    @property
    def frozen_at_chunk(self) -> int | None:
        """Index of the window after which the policy was frozen, for an event."""
        return self._safety.frozen_at_chunk

    # The learner ------------------------------------------------------------------

    def _new_model(self) -> SAC:
        config = self._config
        rows = min((len(self._groups) + 1) * self._chunks_planned, config.replay_rows_max)
        first = config.exploration_std_first
        with own_randomness(self._seed, "networks", 0):
            model = SAC(
                "MlpPolicy",
                WindowEnvironment(),  # SB3 reads the two spaces from it
                learning_rate=config.learning_rate,
                buffer_size=rows,
                batch_size=config.batch_rows,
                gamma=config.discount,
                ent_coef=f"auto_{config.entropy_coefficient_first}",
                target_entropy=self._target_entropy(0),
                policy_kwargs={"net_arch": list(config.hidden)},
                device="cpu",
            )
        model.set_logger(Logger(folder=None, output_formats=[]))
        if self._pretrained is None:
            start_near_reference(model, scale=config.last_layer_scale, std=first)
        else:
            model.policy.load_state_dict(self._pretrained.networks())
            # The width of its last exploration belongs to pretraining, not to a job.
            start_near_reference(model, scale=None, std=first)
        return model

    def _explore(self, observations: Rows, chunk: int) -> Rows:
        mean, _ = self._model.policy.predict(observations, deterministic=True)
        if not self._learns:
            return np.asarray(np.clip(mean, -1.0, 1.0), dtype=np.float32)
        with own_randomness(self._seed, "exploration", chunk):
            drawn, _ = self._model.policy.predict(observations, deterministic=False)
        limit = self._config.exploration_max
        near = np.clip(drawn, mean - limit, mean + limit)
        actions: Rows = np.clip(near, -1.0, 1.0).astype(np.float32)
        return actions

    def _store(
        self, telemetry: WindowTelemetry, pending: _Pending, before: ObservationMemory
    ) -> None:
        observations = self._observe(telemetry)
        shared = window_reward(
            self._reward,
            utility_change=self._memory.utility_change(before),
            spend_change=_fraction(telemetry.filter_used) - pending.filter_used,
            spend_price=self._spend_price,
        )
        changes = [new - old for new, old in zip(self._memory.signal, before.signal, strict=True)]
        rewards = [group_reward(self._reward, shared=shared, signal_change=c) for c in changes]
        is_last = elapsed_fraction(telemetry) >= 1.0
        for row, reward in enumerate([*rewards, shared]):
            self._model.replay_buffer.add(
                pending.observations[row : row + 1],
                observations[row : row + 1],
                pending.actions[row : row + 1],
                np.array([reward], dtype=np.float32),
                np.array([is_last]),
                [{}],
            )

    def _train(self) -> None:
        self._model.target_entropy = self._target_entropy(self._windows_learned)
        with own_randomness(self._seed, "training", self._windows_learned):
            self._model.train(self._config.gradient_steps, batch_size=self._config.batch_rows)

    def _target_entropy(self, windows: int) -> float:
        """Entropy of a Gaussian whose std falls geometrically over the planned windows."""
        first, last = self._config.exploration_std_first, self._config.exploration_std_last
        done = min(windows / self._chunks_planned, 1.0)
        log_std = math.log(first) + done * (math.log(last) - math.log(first))
        return ACTION_SIZE * (0.5 * math.log(2 * math.pi * math.e) + log_std)

    # Small things -----------------------------------------------------------------

    def _observe(self, telemetry: WindowTelemetry) -> Rows:
        rows = observe(telemetry, self._memory, self._last_actions)
        rows[:, self._masked] = 0.0
        return rows

    def _no_actions(self) -> Rows:
        return np.zeros((len(self._groups) + 1, ACTION_SIZE), dtype=np.float32)

    def _check_groups(self, telemetry: WindowTelemetry) -> None:
        require_released(telemetry)
        found = [group.group_id for group in telemetry.groups]
        if found != [group.group_id for group in self._groups]:
            raise GroupsChanged(expected=len(self._groups), found=len(found))

    def _document(self) -> dict[str, Any]:
        return {
            "fit": self._fit(),
            "memory": self._memory.to_dict(),
            "safety": self._safety.to_dict(),
            "counters": {
                "chunk_learned": self._chunk_learned,
                "replay_position": self._model.replay_buffer.pos,
                "spend_price": self._spend_price,
                "windows_learned": self._windows_learned,
            },
            "pending": None
            if self._pending is None
            else {"chunk": self._pending.chunk, "filter_used": self._pending.filter_used},
        }

    def _fit(self) -> dict[str, Any]:
        """What must be equal for a state to be taken over."""
        return {
            "format_version": FORMAT_VERSION,
            "controller": self.name,
            "seed": self._seed,
            "chunks_planned": self._chunks_planned,
            "groups": [asdict(group) for group in self._groups],
            "features": [name for name, _ in FEATURES],
            "config": {**asdict(self._config), "hidden": list(self._config.hidden)},
            "ranges": asdict(self._ranges),
            "learns": self._learns,
            "masked": list(self._masked),
            "pretrained": None if self._pretrained is None else self._pretrained.digest,
        }

    def _read_document(self, state: Mapping[str, bytes]) -> dict[str, Any]:
        if set(state) != {TENSORS_FILE, DOCUMENT_FILE}:
            raise PolicyStateMismatch("it has other parts than a learning policy's")
        try:
            document: Any = json.loads(state[DOCUMENT_FILE])
        except ValueError:
            raise PolicyStateMismatch("its document cannot be read") from None
        wanted = {"fit", "memory", "safety", "counters", "pending"}
        if not isinstance(document, dict) or set(document) != wanted:
            raise PolicyStateMismatch("its document has other fields")
        if document["fit"] != self._fit():
            raise PolicyStateMismatch("it was made for other groups, settings or another seed")
        return document

    def _take_rows(
        self, document: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[_Pending | None, Rows]:
        """Takes the rows that are not the model's out of `tensors`."""
        count = len(self._groups) + 1
        last = _rows(tensors.pop("last_actions", None), (count, ACTION_SIZE))
        if document["pending"] is None:
            return None, last
        try:
            chunk = int(document["pending"]["chunk"])
            filter_used = float(document["pending"]["filter_used"])
        except (KeyError, TypeError, ValueError):
            raise PolicyStateMismatch("its open proposal cannot be read") from None
        pending = _Pending(
            chunk=chunk,
            observations=_rows(
                tensors.pop("pending/observations", None), (count, OBSERVATION_SIZE)
            ),
            actions=_rows(tensors.pop("pending/actions", None), (count, ACTION_SIZE)),
            filter_used=filter_used,
        )
        return pending, last


def _columns(names: Sequence[str]) -> list[int]:
    known = [name for name, _ in FEATURES]
    if unknown := set(names) - set(known):
        raise SettingInvalid("masked", f"no features named {', '.join(sorted(unknown))}")
    return [known.index(name) for name in names]


def _fraction(value: float) -> float:
    plain = number(value)
    return 0.0 if math.isnan(plain) else min(max(plain, 0.0), 1.0)


def _rows(tensor: Tensor | None, shape: tuple[int, int]) -> Rows:
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise PolicyStateMismatch("its rows have another shape")
    if not bool(torch.isfinite(tensor).all()):
        raise PolicyStateMismatch("its rows are not finite")
    rows: Rows = tensor.numpy().copy()
    return rows


def _counters(document: dict[str, Any]) -> dict[str, float]:
    counters = document["counters"]
    names = {"chunk_learned", "replay_position", "spend_price", "windows_learned"}
    if not isinstance(counters, dict) or set(counters) != names:
        raise PolicyStateMismatch("its counters have other names")
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in counters.values()):
        raise PolicyStateMismatch("its counters are not numbers")
    return counters
