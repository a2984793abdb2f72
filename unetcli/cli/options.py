"""Option types of all commands, and small things that commands share."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

INCOMPLETE = 3

# of several commands
DeviceOption = Annotated[
    str | None,
    typer.Option(envvar="UNETCLI_DEVICE", help="cpu, cuda or the number of a GPU; by itself a GPU if there is one."),
]
SectionsOption = Annotated[
    str | None, typer.Option(metavar="A:B", help="Only sections A up to, not with, B (along z, else t).")
]
ChannelOption = Annotated[int | None, typer.Option(metavar="N", help="Use this channel of several, from 0.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start anew in place of what unetcli left there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")]

# of train
RawArgument = Annotated[str, typer.Argument(metavar="RAW", help="Images: Zarr, OME-Zarr or TIFF stack.")]
LabelsArgument = Annotated[str, typer.Argument(metavar="LABELS", help="Annotation of the same voxels.")]
TrainingOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of model, checkpoint, log and curves.")]
StepsOption = Annotated[
    int | None, typer.Option(help="Training steps; by itself what takes 20 minutes on a CPU, 20000 on a GPU.")
]
DepthOption = Annotated[int | None, typer.Option(help="Pooling layers: 4 (the paper) on a GPU, 3 on a CPU.")]
BaseChannelsOption = Annotated[
    int | None, typer.Option(help="Channels at full resolution: 64 (the paper) on a GPU, 16 on a CPU.")
]
TrainingTileOption = Annotated[
    int | None, typer.Option(help="Input side of a training tile: 572 on a GPU, 316 on a CPU.")
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.", min=0, max=2**32 - 1)]
TruthOption = Annotated[
    str, typer.Option(help="What labels mean: binary, instances or classes; auto takes two values as binary.")
]
ValidationOption = Annotated[float, typer.Option(help="Share of the sections, the last ones, held out to judge by.")]
OptimizerOption = Annotated[str, typer.Option(help="sgd (momentum 0.99) or adam.")]
LearningRateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate: 3e-4 for sgd, 1e-3 for adam.")]

# of predict
VolumeArgument = Annotated[
    str, typer.Argument(metavar="VOLUME", help="Zarr, OME-Zarr, store.zarr/path/inside or TIFF stack.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", help="OME-Zarr to write; by itself NAME.pred.zarr here.")
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", envvar="UNETCLI_MODEL", help="Model file or folder; else ./model.")
]
TileOption = Annotated[
    str, typer.Option(envvar="UNETCLI_TILE", help="Input side of a forward pass; auto: 700 on a CPU, or what fits.")
]
DtypeOption = Annotated[str, typer.Option(help="Of the probabilities: uint8 (value / 255), float16 or float32.")]
PrecisionOption = Annotated[str, typer.Option(help="Of the network: float32 or bfloat16.")]
NormaliseOption = Annotated[
    str, typer.Option(help="Grey values by the statistics of the model, or of this volume: model or volume.")
]
NonfiniteOption = Annotated[
    float | None, typer.Option(metavar="V", help="Put V for NaN and infinity; else their blocks are set aside.")
]
RoiOption = Annotated[
    str | None,
    typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Only this region; what lies around it is used as context."),
]
MaskOption = Annotated[
    str | None, typer.Option(metavar="ZARR", help="Skip 64 x 64 cells where this volume is 0; they become background.")
]
SkipBelowOption = Annotated[
    float | None, typer.Option(metavar="V", help="Skip 64 x 64 cells without a grey value of at least V.")
]
LevelsOption = Annotated[
    str, typer.Option(help="Resolution levels of the output, each half the one before; auto: until 512 wide.")
]
MaxFilesOption = Annotated[
    int | None, typer.Option(help="Pack chunks into shards where there would be more files; by itself 250000.")
]
ZarrFormatOption = Annotated[int, typer.Option(help="3 writes OME-Zarr 0.5, 2 writes OME-Zarr 0.4.")]
RunFolderOption = Annotated[
    Path | None,
    typer.Option(help="Folder for plan and receipts; by itself OUTPUT.run/predict. Needed for s3:// outputs."),
]
RetriesOption = Annotated[int, typer.Option(help="How often a failed block is tried again.", min=0)]
ShareOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="Only share I, from 0, of N; auto: as this SLURM array element says. The last closes."
    ),
]
CloseOption = Annotated[bool, typer.Option("--close", help="Compute nothing; mark complete what all shares finished.")]
ClusterOption = Annotated[
    str, typer.Option(envvar="UNETCLI_CLUSTER", help="local, slurm (a job array) or dask (workers as SLURM jobs).")
]
WorkersOption = Annotated[
    int | None, typer.Option(metavar="N", help="Processes here (by itself one per GPU), or Dask worker jobs.")
]
OtherSchedulerOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="With dask: a scheduler that runs already, tls:// or tcp://.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="With slurm: submit, print the array's id and return.")]
ProfileOption = Annotated[
    Path | None,
    typer.Option(envvar="UNETCLI_PROFILE", metavar="TOML", help="What to ask SLURM for, as slurm/gpu.toml shows."),
]
PartitionOption = Annotated[str | None, typer.Option("--partition", "-p", help="As sbatch; over the profile.")]
AccountOption = Annotated[str | None, typer.Option(help="As sbatch.")]
QosOption = Annotated[str | None, typer.Option(help="As sbatch.")]
TimeOption = Annotated[str | None, typer.Option(help="As sbatch: 30 (minutes), 04:00:00, 1-00:00:00.")]
GpusOption = Annotated[str | None, typer.Option(help="As sbatch: 1, a100:1.")]
GresOption = Annotated[str | None, typer.Option(help="As sbatch: gpu:1, where the site wants it so.")]
MemOption = Annotated[str | None, typer.Option(help="As sbatch: 16G; by itself what plan expects.")]
CpusOption = Annotated[int | None, typer.Option("--cpus-per-task", help="As sbatch; also the network's CPU threads.")]
ConstraintOption = Annotated[str | None, typer.Option(help="As sbatch.")]
ExcludeOption = Annotated[str | None, typer.Option(help="As sbatch: hosts that get no jobs.")]
SetupOption = Annotated[
    list[str] | None, typer.Option(help="A line of shell before each job's work, as in 'module load cuda'. Repeatable.")
]
SlurmOption = Annotated[
    list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="Any other option of sbatch. Repeatable.")
]
MaxRunningOption = Annotated[int | None, typer.Option(help="Jobs of the array at a time.")]
BlocksPerJobOption = Annotated[
    int | None, typer.Option(help="Blocks of one job; by itself so that starting costs < 2 %.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, as plan does, and stop.")]
TakeOverOption = Annotated[bool, typer.Option("--take-over", help="Ignore the lock of a launcher that is dead.")]

# of status and verify
PredictedArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="What predict writes, or wrote.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Look again and again until all is done.")]
BlocksOption = Annotated[bool, typer.Option("--blocks/--no-blocks", help="Read every block back.")]
RepairOption = Annotated[bool, typer.Option("--repair", help="Compute damaged and missing blocks anew.")]
SeamsOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="Compute N windows across borders anew in other tiles; compare.")
]
InputOption = Annotated[bool, typer.Option("--input", help="Say whether volume or model changed since.")]

# of evaluate
PredictionArgument = Annotated[
    str, typer.Argument(metavar="PREDICTION", help="Probabilities of foreground, as predict writes them.")
]
TrueArgument = Annotated[
    str, typer.Argument(metavar="TRUTH", help="0 is background (EM: membrane), all else foreground.")
]
MetricsOption = Annotated[
    str | None, typer.Option(help="pixels, em, or both with a comma; by itself both, pixels beyond two classes.")
]
AllowIncompleteOption = Annotated[bool, typer.Option("--allow-incomplete", help="Score what is there.")]

# of worker
SchedulerOption = Annotated[
    str, typer.Option(envvar="UNETCLI_SCHEDULER", metavar="ADDRESS", help="Of the Dask scheduler: tls://.. or tcp://..")
]
CertificateOption = Annotated[
    Path | None,
    typer.Option("--tls", envvar="UNETCLI_TLS", metavar="FOLDER", help="With certificate.pem and key.pem, for tls://."),
]
WorkerMemoryOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="As 16GB: a worker beyond 95 % of it is restarted; else no limit.")
]
WorkerNameOption = Annotated[str | None, typer.Option(help="Of this worker in the scheduler's words.")]
DeathTimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="Give up where no scheduler answers for so long.")
]


def print_json(values: Any) -> None:
    """Data for scripts, on stdout."""
    typer.echo(json.dumps(values, indent=2))


def stop_on_sigterm() -> Callable[[], bool]:
    """From now on SIGTERM asks for an orderly end; the function returned says whether it came."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    return lambda: bool(asked)
