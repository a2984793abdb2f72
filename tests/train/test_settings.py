from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from unetcli.core.geometry import Architecture
from unetcli.core.records import decoded
from unetcli.train.settings import Augmentation, Optimisation, TrainingConfig, TruthRules

CONFIG = TrainingConfig(
    recipe="fast",
    architecture=Architecture(depth=1, base_channels=3, in_channels=2, classes=3, dropout=0.25, batch_norm=True),
    tile=44,
    rules=TruthRules(truth="binary", sigma=2.5, ignore=9, partial=30),
    keep_empty=False,
    balance=True,
    sections=((0, 17), (2, 5)),
    validation=((17, 20), (5, 5)),
    augmentation=Augmentation(rotation=10.0, flip=False),
    optimisation=Optimisation(
        optimizer="adamw",
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="poly",
        warm_up=5,
        clip=1.5,
        ema=0.99,
        batch_size=2,
        steps=100,
    ),
    precision="bfloat16",
    select="iou",
    validate_every=50,
    seed=2**40,
    channel=None,
    device="cpu",
    data=("a b", "c d"),
    init="0123",
    intensity=((1.5, 2.0), (0.5, 1.0)),
)


def places() -> list[tuple[str, str]]:
    """Yield each setting as its part (or none) and its name."""
    found = []
    for field in fields(TrainingConfig):
        value = getattr(CONFIG, field.name)
        found += [(field.name, inner.name) for inner in fields(value)] if is_dataclass(value) else [("", field.name)]
    return found


OTHER = {"optimizer": "adam", "schedule": "cosine", "truth": "instances", "data": ("a b", "c e"), "sections": ((0, 9),)}
OTHER |= {"recipe": "paper", "precision": "float32", "select": "seg", "device": "cuda", "channel": 1, "ema": 0.5}
OTHER |= {"validation": ((17, 19), (5, 5)), "dropout": 0.75, "momentum": 0.5, "scale": 0.5}
OTHER |= {"class_values": (0, 5), "init": "4567", "intensity": (1.5, 0.5)}


def changed(part: str, name: str) -> TrainingConfig:
    """Configuration with another value of one setting."""
    holder: Any = getattr(CONFIG, part) if part else CONFIG
    value = getattr(holder, name)
    other = OTHER[name] if name in OTHER else not value if isinstance(value, bool) else (value or 0) + 1
    inner = replace(holder, **{name: other})
    return replace(CONFIG, **{part: inner}) if part else inner  # type: ignore[arg-type]


def test_it_comes_back_from_json_as_it_was() -> None:
    again = decoded(TrainingConfig, json.loads(json.dumps(CONFIG.to_dict())))
    assert again == CONFIG
    assert not CONFIG.differences(again)


@pytest.mark.parametrize(("part", "name"), places(), ids=lambda value: value)
def test_each_difference_is_named_once(part: str, name: str) -> None:
    other = changed(part, name)
    assert other != CONFIG
    differences = CONFIG.differences(decoded(TrainingConfig, json.loads(json.dumps(other.to_dict()))))
    assert len(differences) == 1
    assert differences[0].startswith("images or labels have changed" if name == "data" else f"{name} ")
    assert "\n" not in differences[0]


def test_no_two_settings_share_a_name() -> None:
    names = [name for _, name in places()]
    assert len(names) == len(set(names))


def test_ranges_are_printed_as_first_and_stop() -> None:
    assert CONFIG.differences(changed("", "validation")) == ["validation 17:19, 5:5 (was 17:20, 5:5)"]


def test_what_is_stored_is_plain() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(map(plain, value.values()))
        if isinstance(value, tuple | list):
            return all(map(plain, value))
        return value is None or isinstance(value, str | int | float | bool)

    assert plain(CONFIG.to_dict())
