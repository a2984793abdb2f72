"""``unetcli predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk
from unetcli.cli.asking import asked
from unetcli.cli.plantable import show_plan

if TYPE_CHECKING:
    from unetcli.config import PredictRequest, Where
    from unetcli.predict.run import PredictSummary


def predict(
    volume: o.VolumeArgument,
    output: o.OutputOption = None,
    model: o.ModelOption = None,
    tile: o.TileOption = "auto",
    sections: o.SectionsOption = None,
    roi: o.RoiOption = None,
    mask: o.MaskOption = None,
    skip_below: o.SkipBelowOption = None,
    dtype: o.DtypeOption = "uint8",
    device: o.DeviceOption = None,
    precision: o.PrecisionOption = "float32",
    channel: o.ChannelOption = None,
    normalise: o.NormaliseOption = "model",
    nonfinite: o.NonfiniteOption = None,
    levels: o.LevelsOption = "1",
    max_files: o.MaxFilesOption = None,
    zarr_format: o.ZarrFormatOption = 3,
    run_folder: o.RunFolderOption = None,
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
    share: o.ShareOption = None,
    close: o.CloseOption = False,
    dry_run: o.DryRunOption = False,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Segment VOLUME, block by block.

    The same command again goes on where it stopped; the result is the same to the byte.
    """
    options = dict(locals())
    if dry_run:
        show_plan(options)
        return
    _tell(_run(*asked(options), share, close), json)


def _run(request: PredictRequest, where: Where, share: str | None, close: bool) -> PredictSummary:
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.config import parse_share
    from unetcli.predict.run import close_run, predict_share, predict_volume

    stopping = o.stop_on_sigterm()
    with talk.progress("voxels") as report:
        if close:
            return close_run(request, report, stopping)
        if share is not None:
            return predict_share(request, parse_share(share), report, stopping)
        return predict_volume(request, report, stopping, where)


def _tell(summary: PredictSummary, json: bool) -> None:
    from dataclasses import asdict

    from unetcli.engine.run import arrays_of

    talk.say(summary.sentence)
    words = arrays_of(summary.jobs) or [summary.output]
    o.print_json(asdict(summary)) if json else typer.echo(" ".join(words))
    if not summary.finished and not summary.jobs:
        raise typer.Exit(o.INCOMPLETE)
