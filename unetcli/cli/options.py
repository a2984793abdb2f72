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
RawArgument = Annotated[str | None, typer.Argument(metavar="RAW", help="Images: Zarr, OME-Zarr or TIFF stack.")]
LabelsArgument = Annotated[str | None, typer.Argument(metavar="LABELS", help="Annotation of the same voxels.")]
PairOption = Annotated[
    list[Any] | None,
    typer.Option(parser=lambda words: words, metavar="RAW LABELS", help="One more pair of both; repeatable."),
]
TrainingOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of model, checkpoint, log and pictures.")]
RecipeOption = Annotated[
    str | None, typer.Option(help="paper: SGD with momentum 0.99, as published; fast: sooner at a good result.")
]
StepsOption = Annotated[
    int | None, typer.Option(help="Training steps; by itself what takes 20 minutes on a CPU, 20000 on a GPU.")
]
MinutesOption = Annotated[float | None, typer.Option(help="As many steps as a probe expects to take so long.")]
DepthOption = Annotated[int | None, typer.Option(help="Pooling layers: 4 (the paper) on a GPU, 3 on a CPU.")]
BaseChannelsOption = Annotated[
    int | None, typer.Option(help="Channels at full resolution: 64 (the paper) on a GPU, 16 on a CPU.")
]
DropoutOption = Annotated[
    float | None, typer.Option(help="Probability at the end of the contracting path: 0.5 (paper) or 0.")
]
BatchNormOption = Annotated[
    bool | None, typer.Option("--batch-norm/--no-batch-norm", help="Normalise within the batch; folded into the model.")
]
TrainingTileOption = Annotated[
    int | None, typer.Option(help="Input side of a training tile: 572 or, fast, 380 on a GPU; 316 or 204 on a CPU.")
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.", min=0, max=2**32 - 1)]
TruthOption = Annotated[
    str, typer.Option(help="What labels mean: binary, instances or classes; auto takes two values as binary.")
]
IgnoreOption = Annotated[int | None, typer.Option(metavar="VALUE", help="Label value that says nothing: no weight.")]
PartialOption = Annotated[
    int | None, typer.Option(metavar="M", help="Not all is annotated: background counts within M px of what is drawn.")
]
KeepEmptyOption = Annotated[
    bool | None, typer.Option("--keep-empty/--leave-empty", help="Sections with nothing drawn count as background.")
]
W0Option = Annotated[float | None, typer.Option("--w0", help="Extra weight between close objects: 10; 0 is off.")]
SigmaOption = Annotated[float | None, typer.Option(help="Its reach in pixels: 5.")]
EverywhereOption = Annotated[
    bool | None, typer.Option("--weights-everywhere/--weights-background", help="On objects too, not only around.")
]
BalanceOption = Annotated[
    bool | None, typer.Option("--balance/--no-balance", help="Classes weigh the same in all; else pixels do.")
]
ValidationSectionsOption = Annotated[
    str | None, typer.Option("--validation", metavar="A:B", help="Sections held out to judge by, outside --sections.")
]
ValidationOption = Annotated[
    float | None, typer.Option(help="Instead: share of the sections, the last ones of each pair: 0.1.")
]
AugmentOption = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Deform, turn and change tiles; the options below say how much.")
]
ElasticOption = Annotated[float | None, typer.Option(help="Displacements on a 3 x 3 grid, in px: 10.")]
RotationOption = Annotated[float | None, typer.Option(help="Largest angle either way, in degrees: 180.")]
FlipOption = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the tiles.")]
ScaleOption = Annotated[float | None, typer.Option(help="Largest change of size: 0.1 is up to 10 % either way.")]
GammaOption = Annotated[float | None, typer.Option(help="Spread of the grey values' exponent.")]
ContrastOption = Annotated[float | None, typer.Option(help="Spread of the contrast.")]
BrightnessOption = Annotated[float | None, typer.Option(help="Spread of the brightness, in standard deviations.")]
NoiseOption = Annotated[float | None, typer.Option(help="Most noise added, in standard deviations.")]
BlurOption = Annotated[float | None, typer.Option(help="Most blur added, in px.")]
BatchSizeOption = Annotated[
    int | None, typer.Option(help="Tiles a step, over all processes together: 1 (paper) or 4 for each.")
]
OptimizerOption = Annotated[str | None, typer.Option(help="sgd, adam or adamw.")]
LearningRateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate: 3e-4 (paper) or 3e-3.")]
MomentumOption = Annotated[float | None, typer.Option(help="0.99 for sgd, else 0.9.")]
WeightDecayOption = Annotated[float | None, typer.Option(help="Pull of the weights towards 0.")]
ScheduleOption = Annotated[str | None, typer.Option(help="Of the learning rate: constant, cosine or poly.")]
WarmUpOption = Annotated[int | None, typer.Option(metavar="STEPS", help="Steps over which the learning rate rises.")]
ClipOption = Annotated[float | None, typer.Option(help="Largest norm of the gradient.")]
EmaOption = Annotated[float | None, typer.Option(help="Decay of the average of the weights that is kept; 0: none.")]
TrainingPrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="float32 or bfloat16; by itself bfloat16 where the device has it.")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the network first; needs a C++ compiler.")]
SelectOption = Annotated[
    str | None,
    typer.Option(help="Keep the model best by pixel_disagreement, pixel_error, rand_error, iou or seg."),
]
PatienceOption = Annotated[int | None, typer.Option(metavar="LOOKS", help="End after so many without a better one.")]
ValidateEveryOption = Annotated[int | None, typer.Option(metavar="STEPS", help="Between two looks: 200.")]
CheckpointOption = Annotated[float, typer.Option(metavar="MINUTES", help="Between checkpoints, at most.")]
TensorboardOption = Annotated[bool, typer.Option("--tensorboard", help="Also for TensorBoard, in OUTPUT/tensorboard.")]
TrainingClusterOption = Annotated[
    str, typer.Option("--cluster", envvar="UNETCLI_CLUSTER", help="local, or slurm: one job of all processes.")
]
NodesOption = Annotated[int, typer.Option(help="With slurm: nodes that train together.")]
GpusPerNodeOption = Annotated[int, typer.Option(help="With slurm: GPUs of each, a process for each GPU.", min=0)]
TasksPerNodeOption = Annotated[int, typer.Option(help="With slurm, without GPUs: processes on each node.")]
TrainingDryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be trained, with memory, speed and time; train nothing.")
]

# of weights
AnnotationArgument = Annotated[
    str, typer.Argument(metavar="LABELS", help="Annotation: Zarr, OME-Zarr or TIFF stack of integers.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--output", "-o", help="OME-Zarr to write; by itself NAME.weights.zarr here; a .png beside it."),
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
