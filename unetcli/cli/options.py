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
RunArgument = Annotated[
    str,
    typer.Argument(metavar="OUTPUT", help="What predict writes or wrote, or labels in it: OUTPUT/labels/instances."),
]
StepOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Only predict, pyramid (coarser levels), instances (labels' name) or evaluate."),
]
AnyRunFolderOption = Annotated[
    Path | None, typer.Option("--run-folder", help="Where plan and receipts are; by itself below OUTPUT.run.")
]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Look again and again until all is done.")]
BlocksOption = Annotated[bool, typer.Option("--blocks/--no-blocks", help="Read every block back.")]
RepairOption = Annotated[bool, typer.Option("--repair", help="Compute damaged and missing blocks anew.")]
SeamsOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="Compute N windows across borders anew in other tiles; compare.")
]
InputOption = Annotated[bool, typer.Option("--input", help="Say whether volume or model changed since.")]

# of evaluate
PredictionArgument = Annotated[
    str, typer.Argument(metavar="PREDICTION", help="Probabilities, labels, or a folder 01_RES.")
]
TrueArgument = Annotated[
    str, typer.Argument(metavar="TRUTH", help="0 is background (EM: membrane); or a folder 01_GT.")
]
MetricsOption = Annotated[
    str | None,
    typer.Option(metavar="pixels,em,cells,voi", help="By itself pixels,em of probabilities, cells,voi of labels."),
]
KindOption = Annotated[
    str | None,
    typer.Option(
        metavar="probability|labels|classes", help="What PREDICTION holds; by itself by metadata, data type or values."
    ),
]
ObjectThresholdOption = Annotated[
    float, typer.Option("--threshold", metavar="T", help="Foreground of pixels, and of components, is above T.")
]
ObjectsThreeDOption = Annotated[
    bool | None,
    typer.Option("--three-d/--per-section", help="Objects go through sections of z, or not; by itself as TRUTH's do."),
]
EvaluatedRoiOption = Annotated[
    str | None, typer.Option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Judge only this region of TRUTH.")
]
JudgedMaskOption = Annotated[
    str | None, typer.Option("--mask", metavar="ZARR", help="Judge only where this volume is not 0.")
]
IgnoreValueOption = Annotated[
    int | None, typer.Option("--ignore", metavar="VALUE", help="Do not judge voxels where TRUTH has this value.")
]
LevelOption = Annotated[
    int, typer.Option("--level", metavar="N", min=0, help="Judge at this resolution level of both, 0 is the full one.")
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(metavar="JSON", help="Compare with an earlier --json output; say what is more than noise."),
]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the scores of each section.")]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="HTML", help="Write a page with scores, curves, tables and pictures of errors."),
]
BehindOption = Annotated[
    str | None,
    typer.Option("--image", metavar="VOLUME", help="With --report: the image; by itself what predict says it read."),
]
EvaluationRunFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--run-folder", help="Folder for the counts of a large evaluation; by itself PREDICTION.run/evaluate."
    ),
]
AllowIncompleteOption = Annotated[bool, typer.Option("--allow-incomplete", help="Score what is there.")]

# of label
LabelledArgument = Annotated[
    str, typer.Argument(metavar="PREDICTION", help="OME-Zarr with probabilities, as predict writes it.")
]
MethodOption = Annotated[
    str, typer.Option(help="components (what is connected), or watershed, which sets touching objects apart.")
]
ThresholdOption = Annotated[
    float | None, typer.Option(metavar="T", help="Foreground is above T, strictly; by itself 0.5.")
]
AutoThresholdOption = Annotated[
    str | None, typer.Option(metavar="TRUTH", help="Take the threshold whose objects agree best with these (SEG).")
]
ConnectivityOption = Annotated[
    int | None,
    typer.Option(metavar="4|8|6|18|26", help="Neighbours that touch: 4 or 8 in a section, 6, 18 or 26 with --three-d."),
]
MinSizeOption = Annotated[int, typer.Option(metavar="N", min=0, help="Remove objects of fewer than N voxels.")]
ThreeDOption = Annotated[bool, typer.Option("--three-d", help="Objects go through sections; else each is by itself.")]
LandscapeOption = Annotated[
    str, typer.Option(help="What a watershed floods: distance (to the background) or probability.")
]
DepthOfObjectsOption = Annotated[
    float | None,
    typer.Option(
        "--depth",
        metavar="H",
        min=0,
        help="Two touching objects stay apart if what joins them lies H below both peaks: voxels of distance (1.5), or "
        "probability (0.1).",
    ),
]
ReachOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Voxels: greater distances count as N (64, with --three-d 32).")
]
SmoothingOption = Annotated[
    float, typer.Option(metavar="S", min=0, help="Voxels: of the probability, before a watershed floods it.")
]
LabelNameOption = Annotated[str, typer.Option("--name", help="The labels' name, below labels/ in PREDICTION.")]
IntensityOption = Annotated[
    str | None, typer.Option(metavar="VOLUME", help="Measure these grey values, not the probability.")
]
CtcOption = Annotated[
    Path | None, typer.Option("--ctc", metavar="FOLDER", help="Write maskTTT.tif, too, as the cell tracking challenge.")
]
BlockVoxelsOption = Annotated[
    int | None, typer.Option(metavar="N", help="About the most voxels of a block: memory. The result is the same.")
]
LabelRunFolderOption = Annotated[
    Path | None,
    typer.Option("--run-folder", help="Folder for plan and receipts; by itself PREDICTION.run/NAME. Needed for s3://."),
]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-incomplete", help="Label a prediction that is not finished.")
]

# of show
SectionOption = Annotated[
    int | None, typer.Option(metavar="Z", help="Section along z, else t, from 0; by itself the middle one.")
]
OverlayOption = Annotated[
    str | None,
    typer.Option(metavar="OTHER", help="Labels, drawn as outlines, or a probability, as a transparent colour."),
]
PictureOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="PNG", help="By itself NAME.zNN.png here.")
]

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
