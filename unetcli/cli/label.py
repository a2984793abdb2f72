"""``unetcli label``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk
from unetcli.cli.asking import asked_where

if TYPE_CHECKING:
    from unetcli.config import Where
    from unetcli.label.request import LabelRequest
    from unetcli.label.run import LabelSummary


def label(
    prediction: o.LabelledArgument,
    method: o.MethodOption = "components",
    threshold: o.ThresholdOption = None,
    auto_threshold_from: o.AutoThresholdOption = None,
    connectivity: o.ConnectivityOption = None,
    min_size: o.MinSizeOption = 0,
    three_d: o.ThreeDOption = False,
    landscape: o.LandscapeOption = "distance",
    depth: o.DepthOfObjectsOption = None,
    reach: o.ReachOption = None,
    smoothing: o.SmoothingOption = 2.0,
    channel: o.ChannelOption = None,
    name: o.LabelNameOption = "instances",
    intensity: o.IntensityOption = None,
    ctc: o.CtcOption = None,
    allow_incomplete: o.AllowMissingOption = False,
    block_voxels: o.BlockVoxelsOption = None,
    run_folder: o.LabelRunFolderOption = None,
    retries: o.RetriesOption = 1,
    cluster: o.ClusterOption = "local",
    workers: o.WorkersOption = None,
    profile: o.ProfileOption = None,
    detach: o.DetachOption = False,
    partition: o.PartitionOption = None,
    account: o.AccountOption = None,
    qos: o.QosOption = None,
    time: o.TimeOption = None,
    gpus: o.GpusOption = None,
    gres: o.GresOption = None,
    mem: o.MemOption = None,
    cpus_per_task: o.CpusOption = None,
    constraint: o.ConstraintOption = None,
    exclude: o.ExcludeOption = None,
    setup: o.SetupOption = None,
    slurm: o.SlurmOption = None,
    max_running: o.MaxRunningOption = None,
    blocks_per_job: o.BlocksPerJobOption = None,
    scheduler: o.OtherSchedulerOption = None,
    tls: o.CertificateOption = None,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Make instances of PREDICTION: a number for each object.

    They go into its labels/NAME, with a table beside the store. The same command again goes on where it stopped;
    the result is the same to the byte, and for any size of block.
    """
    options = dict(locals())
    from dataclasses import fields

    from unetcli.label.request import LabelRequest

    request = LabelRequest(**{field.name: options[field.name] for field in fields(LabelRequest)})
    _tell(_run(request, asked_where(options)), json)


def _run(request: LabelRequest, where: Where) -> LabelSummary:
    from unetcli.label.run import label_volume

    stopping = o.stop_on_sigterm()
    with talk.progress("voxels") as report:
        return label_volume(request, report, stopping, where)


def _tell(summary: LabelSummary, json: bool) -> None:
    from dataclasses import asdict

    from unetcli.engine.run import arrays_of

    talk.say(summary.sentence)
    words = arrays_of(summary.jobs) or [summary.output]
    o.print_json(asdict(summary)) if json else typer.echo(" ".join(words))
    if not summary.complete and not summary.jobs:
        raise typer.Exit(o.INCOMPLETE)
