"""What an experiment is and how it is scheduled."""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from fedacdp.aggregation.base import Aggregation
from fedacdp.aggregation.sum import Sum
from fedacdp.data.base import DataSet, Source
from fedacdp.faults import explain
from fedacdp.models.base import Model
from fedacdp.parts import Part, discover, parse
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.strategy import Strategy
from fedacdp.training import Training

PARTS: dict[str, tuple[str, type[Part]]] = {
    "data": ("fedacdp.data", DataSet),
    "model": ("fedacdp.models", Model),
    "strategy": ("strategies", Strategy),
    "privacy": ("fedacdp.privacy", Mechanism),
    "aggregation": ("fedacdp.aggregation", Aggregation),
}
"""Field of an experiment -> the folder of its parts and their base class."""


class ConfigError(Exception):
    """Wrong input, told in one line that names the field, the value and what is allowed."""


def parts_of(field: str) -> dict[str, type[Part]]:
    """Every part that may stand in a field of an experiment, by name."""
    return discover(*PARTS[field])


def _part(field: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(field, *PARTS[field], value))


class Experiment(BaseModel):
    """Everything that may change a number. Frozen; `run_id` is its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: Annotated[SerializeAsAny[DataSet], _part("data")]
    model: Annotated[SerializeAsAny[Model], _part("model")]
    strategy: Annotated[SerializeAsAny[Strategy], _part("strategy")]
    privacy: Annotated[SerializeAsAny[Mechanism], _part("privacy")]
    aggregation: Annotated[SerializeAsAny[Aggregation], _part("aggregation")] = Sum()
    training: Training
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _combine(self) -> Self:
        self.training.check(self.model.learns_by)
        for field, needs, name in (
            ("privacy", self.privacy.needs, self.privacy.name),
            ("strategy", self.strategy.needs, self.strategy.name),
        ):
            if needs not in (None, self.model.learns_by):
                raise ValueError(
                    f"{field}.name = {name!r}: needs a model that learns by {needs}; "
                    f"{self.model.name} learns by {self.model.learns_by}"
                )
        if self.model.learns_by == "ratings" and not self.strategy.on_ratings:
            raise ValueError(
                f"strategy.name = {self.strategy.name!r}: is about classes; {self.model.name} learns by ratings, where "
                "members can strike or boycott"
            )
        if self.privacy.needs == "counts" and self.strategy.edits_updates:
            raise ValueError(
                f"privacy.name = {self.privacy.name!r}: randomises symbols; {self.strategy.name} edits updates"
            )
        self._check_protocols()
        if self.privacy.name == "local_dpsgd" and self.training.local_steps is None:
            raise ValueError("training.local_epochs: local_dpsgd needs local_steps, epochs depend on private sizes")
        return self

    def _check_protocols(self) -> None:
        """ValueError where members cannot deviate, or the server cannot aggregate, in the way that is asked for."""
        rule, privacy = self.aggregation, self.privacy
        if rule.needs_messages and self.model.learns_by != "gradients":
            raise ValueError(f"aggregation.name = {rule.name!r}: {self.model.name} can only be learnt from sums")
        if rule.needs_messages and not privacy.on_messages:
            remedy = 'noise_per = "message"' if privacy.name == "local_update" else "local_update"
            raise ValueError(
                f"aggregation.name = {rule.name!r}: {privacy.name} adds its noise to the sum of messages, and how far "
                f"one message moves another rule's outcome is not known; take {remedy}"
            )
        deviant = self.strategy.protocols - {"compliant"}
        if "fills_clip" in deviant and not privacy.clips:
            raise ValueError(f"strategy.protocol = 'fills_clip': {privacy.name} does not clip updates")
        if deviant - {"fills_clip"} and not privacy.own_noise:
            wrong = min(deviant - {"fills_clip"})
            raise ValueError(f"strategy.protocol = {wrong!r}: with {privacy.name} users add no noise to their messages")

    @cached_property
    def text(self) -> str:
        """The canonical form: JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)

    @cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical form."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def kind(self) -> str:
        """What repetitions of the experiment have in common: the canonical form without the seed."""
        return json.dumps(json.loads(self.text) | {"seed": None}, sort_keys=True)

    @property
    def baseline(self) -> Experiment:
        """The same experiment without a collective, with the same random numbers."""
        return self.with_strategy(self.strategy.without_members)

    def with_strategy(self, strategy: Strategy) -> Experiment:
        """The same experiment with another strategy."""
        return self._changed(strategy=strategy)

    @property
    def alone(self) -> dict[str, Experiment]:
        """Where exactly two collectives act: by the name of each, the same experiment with it alone."""
        return {name: self._changed(strategy=strategy) for name, strategy in self.strategy.alone.items()}

    def with_privacy(self, mechanism: Mechanism) -> Experiment:
        """The same experiment under another mechanism."""
        return self._changed(privacy=mechanism)

    @property
    def for_nodes(self) -> Experiment:
        """The same experiment as it is told to nodes, who may be at work in another folder."""
        return self.with_strategy(self.strategy.for_nodes)

    def _changed(self, **parts: Part) -> Experiment:
        fields = {name: getattr(self, name) for name in Experiment.model_fields}  # model_copy would keep the digest
        return Experiment(**fields | parts)

    def plan(self, records: int) -> Plan:
        """The public numbers for a training set of `records`; batch_prob = batch / (records per user), at most 1."""
        each = self.data.records_each(records)
        batch = each if self.training.batch == "full" else float(self.training.batch)
        return Plan(
            users=self.data.users,
            sampling_prob=self.training.sampling_prob,
            rounds=self.training.rounds,
            local_steps=self.training.local_steps or 0,
            batch=min(batch, each),
            batch_prob=min(1.0, batch / each),
            diameter=math.sqrt(2) if self.model.learns_by == "counts" and not self.strategy.edits_updates else 2.0,
        )

    def check(self, source: Source) -> None:
        """ConfigError if the parts do not fit the data."""
        try:
            self.data.check(len(source.train))
            self.strategy.check(source.train.schema)
            self.model.net(source.train.schema)
            if self.privacy.needs == "counts" and self.data.records_each(len(source.train)) != 1:
                raise ValueError(
                    f"privacy.name = {self.privacy.name!r}: a message is one record, so users must have one each; "
                    f'take partition = "resampled" with records = 1, or {len(source.train)} users'
                )
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _ray_address(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"[^/\s]+:\d{1,5}", value):
        raise ValueError("must be HOST:PORT of a running Ray cluster, or auto for the one on this machine")
    return value


class Execution(BaseModel):
    """Scheduling only: must not change a number beyond rounding; for a fixed `chunk`, not a bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    engine: Literal["flower", "local"] = "flower"
    nodes: PositiveInt = 2
    chunk: PositiveInt = 256
    device: Literal["cpu", "cuda"] = "cpu"
    gpus_per_node: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    jobs: PositiveInt = 1
    ray_address: Annotated[str, AfterValidator(_ray_address)] | None = None
    data_dir: Path = Path("~/.cache/fedacdp")
    checkpoint_every: PositiveInt = 10


def experiment_from(raw: dict[str, Any]) -> Experiment:
    """An experiment from plain values; ConfigError in one line."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(error, Experiment))) from None
