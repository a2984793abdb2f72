"""train: resolve what is asked for, go on where an earlier call stopped, sum up."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetcli.architecture import Architecture
from unetcli.config import TrainingConfig, TrainRequest, resolve_sections
from unetcli.device import cpu_threads, resolve_device
from unetcli.errors import UnetcliError
from unetcli.files import overlaps
from unetcli.fingerprint import fingerprint
from unetcli.learning import Report, Training, seconds_per_step
from unetcli.network import UNet
from unetcli.opening import open_volume
from unetcli.planner import largest_tile
from unetcli.sampling import Annotated, require_pair
from unetcli.survey import Survey, require_known_classes, resolve_truth, survey
from unetcli.trainingfolder import TrainingFolder
from unetcli.volume import Volume

log = logging.getLogger(__name__)

PAPER = {"depth": 4, "base_channels": 64}
SMALL = {"depth": 3, "base_channels": 16}
PAPER_TILE, SMALL_TILE = 572, 316
MINUTES = 20
"""How long a training on a CPU takes where no number of steps is given."""
GPU_STEPS = 20_000
LEARNING_RATES = {"sgd": 3e-4, "adam": 1e-3}
"""The paper states none. Tried on ISBI sections, small network, 1200 steps: 1e-4, 3e-4, 1e-3 and 3e-3 with SGD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a call of train found and did."""

    model: str
    steps: int
    goal: int
    finished: bool
    found_finished: bool
    best_step: int | None
    best_error: float | None
    """Pixel disagreement of the kept model on the held-out sections, at its best threshold."""
    best_threshold: float | None
    seconds: float
    """Spent on steps, by all calls together."""
    parameters: int
    tile: int

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if not self.finished:
            return f"{self.model}: stopped at step {self.steps} of {self.goal}; the same command continues"
        begin = "finished already" if self.found_finished else "finished"
        best = (
            "" if self.best_error is None else f" from step {self.best_step}, pixel disagreement {self.best_error:.4f}"
        )
        more = "; more steps: --steps N, anew: --overwrite" if self.found_finished else ""
        return f"{begin}, {self.steps} steps{more}. The model{best}; next: unetcli predict VOLUME"


def train_model(
    request: TrainRequest, report: Report = lambda done, total: None, stopping: Callable[[], bool] = bool
) -> TrainSummary:
    """Train a network on annotated images; goes on where an earlier call stopped.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    folder = TrainingFolder(request.output)
    folder.require_ours()
    for place in (request.raw, request.labels):
        if overlaps(request.output, Path(place)):
            raise UnetcliError(f"{request.output}: equal to, inside or around the input {place}; --output elsewhere")
    torch.set_num_threads(cpu_threads())
    frozen = None if request.overwrite else folder.frozen()
    training = resolve_training(request, folder, frozen[0] if frozen else None)
    goal = resolve_steps(request, training, frozen[1] if frozen else None)
    with folder.launcher(take_over=request.take_over):
        if request.overwrite:
            folder.forget()
        folder.freeze(training.config, goal)
        return finish(training, goal, report, stopping)


def finish(training: Training, goal: int, report: Report, stopping: Callable[[], bool]) -> TrainSummary:
    """Train what is left to train, draw the curves, sum up."""
    from unetcli.pictures import draw_curves

    before = training.folder.load_checkpoint()
    found_finished = before is not None and before.step >= goal
    state = before if before and found_finished else training.run(goal, report, stopping)
    rows = training.folder.rows()
    if not found_finished or not training.folder.curves.exists():
        draw_curves(rows, training.folder.curves)
    best: dict[str, Any] = next((row for row in reversed(rows) if row["best"]), {})
    return TrainSummary(
        model=str(training.folder.model),
        steps=state.step,
        goal=goal,
        finished=state.step >= goal,
        found_finished=found_finished,
        best_step=best.get("step"),
        best_error=best.get("error"),
        best_threshold=best.get("threshold"),
        seconds=round(state.seconds, 1),
        parameters=parameters(training.config.architecture),
        tile=training.config.tile,
    )


def resolve_training(request: TrainRequest, folder: TrainingFolder, frozen: TrainingConfig | None) -> Training:
    """Configuration and data of a request; refused where the folder holds another training."""
    raw, labels = open_volume(request.raw), open_volume(request.labels)
    data_print = f"{fingerprint(raw)} {fingerprint(labels)}"
    require_pair(raw, labels, request.channel)
    device = resolve_device(request.device or (frozen.device if frozen else None))
    train, validation = split(request, raw)
    region = raw.sections(*train)
    truth = resolve_truth(request.truth, labels, raw.sections(train[0], validation[1]))
    data = Annotated.lay(raw, labels, truth, request.channel)
    found = survey(data, region)
    architecture = resolve_architecture(request, frozen, device, data, found)
    config = TrainingConfig(
        architecture=architecture,
        tile=resolve_tile(request, frozen, architecture, device),
        seed=request.seed,
        truth=truth,
        sections=train,
        validation=validation,
        optimizer=request.optimizer,
        learning_rate=resolve_learning_rate(request, frozen),
        channel=request.channel,
        device=device.type,
        data=data_print,
    )
    if frozen and (told := frozen.differences(config)):
        raise UnetcliError(
            f"{folder.path}: holds another training: {'; '.join(told)}; "
            "use those again, --overwrite starts anew, --output names another place"
        )
    held_out = raw.sections(*validation) if validation[0] < validation[1] else None
    if held_out is not None:
        require_known_classes(data, held_out, found)
    return Training(
        config=config, data=data, region=region, held_out=held_out, found=found, folder=folder, device=device
    )


def split(request: TrainRequest, raw: Volume) -> tuple[tuple[int, int], tuple[int, int]]:
    """Training sections and, after them, those held out: never random neighbours, which look alike."""
    if not 0 <= request.validation_fraction < 1:
        raise UnetcliError(f"--validation-fraction {request.validation_fraction}: expected 0 up to, not with, 1")
    count = 1 if raw.section_axis is None else raw.extent[raw.section_axis]
    first, stop = resolve_sections(request.sections, count, raw.path)
    held_out = min(max(1, round((stop - first) * request.validation_fraction)), stop - first - 1)
    if request.validation_fraction == 0:
        held_out = 0
    return (first, stop - held_out), (stop - held_out, stop)


def resolve_architecture(
    request: TrainRequest, frozen: TrainingConfig | None, device: torch.device, data: Annotated, found: Survey
) -> Architecture:
    """The network asked for, else the frozen one's, else the paper's on a GPU and a small one on a CPU."""
    chosen: dict[str, Any] = SMALL if device.type == "cpu" else PAPER
    if frozen:
        chosen = {name: getattr(frozen.architecture, name) for name in PAPER}
    asked = {name: value for name in PAPER if (value := getattr(request, name)) is not None}
    channels = data.raw.channels if request.channel is None else 1
    return Architecture(**{**chosen, **asked}, in_channels=channels, classes=len(found.class_counts))


def resolve_tile(
    request: TrainRequest, frozen: TrainingConfig | None, architecture: Architecture, device: torch.device
) -> int:
    """The tile asked for, else the frozen one, else the paper's, on a CPU a smaller one."""
    footprint = architecture.footprint()
    if request.tile is None and frozen is not None:
        return frozen.tile
    if request.tile is None:
        return largest_tile(footprint, SMALL_TILE if device.type == "cpu" else PAPER_TILE)
    footprint.require_usable((request.tile,) * 2)
    return request.tile


def resolve_learning_rate(request: TrainRequest, frozen: TrainingConfig | None) -> float:
    """The rate asked for, else the frozen one, else the optimiser's default."""
    if request.optimizer not in LEARNING_RATES:
        raise UnetcliError(f"--optimizer {request.optimizer}: expected {' or '.join(LEARNING_RATES)}")
    if request.learning_rate is not None:
        if not 0 < request.learning_rate < math.inf:
            raise UnetcliError(f"--lr {request.learning_rate}: a number above 0 is needed")
        return request.learning_rate
    return frozen.learning_rate if frozen else LEARNING_RATES[request.optimizer]


def resolve_steps(request: TrainRequest, training: Training, frozen: int | None) -> int:
    """The number of steps asked for, else the frozen one, else what takes about ``MINUTES`` here.

    The number is a goal, not part of the configuration: asking for more goes on, through the same weights as asking
    for them at once. The last step of each goal is looked at too, so the model kept is the best of one look more.
    """
    if request.steps is not None and request.steps < 1:
        raise UnetcliError(f"--steps {request.steps}: at least 1")
    config = training.config
    if request.steps is not None:
        announce(config, f"{request.steps} steps")
        return max(request.steps, frozen or 0)
    if frozen is not None:
        announce(config, f"{frozen} steps")
        return frozen
    if training.device.type != "cpu":
        announce(config, f"{GPU_STEPS} steps (--steps N for another number)")
        return GPU_STEPS
    seconds = seconds_per_step(config, training.data, training.region, training.found, training.device)
    steps = two_digits(60 * MINUTES / seconds)
    announce(config, f"{steps} steps")
    small, a = config.architecture != replace(config.architecture, **PAPER), config.architecture
    if small:
        log.info(
            "chosen: depth %d, %d channels, %d steps: %d minutes here; the paper's: --depth 4 --base-channels 64",
            a.depth,
            a.base_channels,
            steps,
            MINUTES,
        )
    return steps


def announce(config: TrainingConfig, course: str) -> None:
    """What is about to be trained, and on what."""
    a = config.architecture
    first, stop = config.validation
    held_out = f"held out {first}:{stop}" if first < stop else "none held out"
    log.info(
        "%s: U-Net of depth %d, %d channels (%s parameters), tile %d",
        config.device,
        a.depth,
        a.base_channels,
        f"{parameters(a):,}",
        config.tile,
    )
    log.info("sections %d:%d, %s; %s", *config.sections, held_out, course)


def parameters(architecture: Architecture) -> int:
    """Number of trained values."""
    with torch.device("meta"):
        return sum(values.numel() for values in UNet(architecture).parameters())


def two_digits(value: float) -> int:
    """Rounded to two significant digits, at least 1.

    >>> two_digits(17_234.5)
    17000
    """
    return max(1, int(float(f"{value:.1e}")))
