"""Option types of train, and of what else shows how labels become classes and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    bool | None,
    typer.Option("--batch-norm/--no-batch-norm", help="Normalise within the batch (fast); folded into the model."),
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
GammaOption = Annotated[float | None, typer.Option(help="Spread of the grey values' exponent: 0.3.")]
ContrastOption = Annotated[float | None, typer.Option(help="Spread of the contrast: 0.25.")]
BrightnessOption = Annotated[float | None, typer.Option(help="Spread of the brightness, in standard deviations: 0.25.")]
NoiseOption = Annotated[float | None, typer.Option(help="Most noise added, in standard deviations: 0.2.")]
BlurOption = Annotated[float | None, typer.Option(help="Most blur added, in px: 1.")]
BatchSizeOption = Annotated[
    int | None, typer.Option(help="Tiles a step, over all processes together: 1 (paper) or 4 for each.")
]
OptimizerOption = Annotated[str | None, typer.Option(help="sgd, adam or adamw.")]
LearningRateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate: 3e-4 (paper) or 3e-3.")]
MomentumOption = Annotated[float | None, typer.Option(help="0.99 for sgd, else 0.9.")]
WeightDecayOption = Annotated[float | None, typer.Option(help="Pull of the weights towards 0: 0 (paper) or 1e-4.")]
ScheduleOption = Annotated[str | None, typer.Option(help="Of the learning rate: constant (paper), cosine or poly.")]
WarmUpOption = Annotated[
    int | None, typer.Option(metavar="STEPS", help="Over which the learning rate rises: 0 (paper) or 50.")
]
ClipOption = Annotated[float | None, typer.Option(help="Largest norm of the gradient; by itself none.")]
EmaOption = Annotated[
    float | None, typer.Option(help="Decay of the average of the weights that is kept: 0, none (paper), or 0.99.")
]
TrainingPrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="float32 or bfloat16; by itself bfloat16 where the device has it.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the network first, a minute; needs a C++ compiler.")
]
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
GpusPerNodeOption = Annotated[int, typer.Option(help="With slurm: GPUs of each, a process for each GPU.")]
TasksPerNodeOption = Annotated[int | None, typer.Option(help="With slurm, without GPUs: processes on each node, 1.")]
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
