"""``unetcli predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.config import PredictRequest
    from unetcli.prediction import PredictSummary


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
    share: o.ShareOption = None,
    close: o.CloseOption = False,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Segment VOLUME, block by block.

    The same command again goes on where it stopped; the result is the same to the byte.
    """
    from unetcli.config import PredictRequest, parse_levels, parse_roi, parse_sections, parse_tile

    request = PredictRequest(
        volume=volume,
        output=output,
        model=model,
        tile=parse_tile(tile),
        sections=parse_sections(sections),
        roi=parse_roi(roi),
        mask=mask,
        skip_below=skip_below,
        dtype=dtype,
        device=device,
        precision=precision,
        channel=channel,
        normalise=normalise,
        nonfinite=nonfinite,
        levels=parse_levels(levels),
        max_files=max_files,
        zarr_format=zarr_format,
        run_folder=run_folder,
        retries=retries,
        overwrite=overwrite,
        take_over=take_over,
    )
    _tell(_run(request, share, close), json)


def _run(request: PredictRequest, share: str | None, close: bool) -> PredictSummary:
    from unetcli.process import prepare

    prepare()  # before torch is imported
    from unetcli.config import parse_share
    from unetcli.prediction import predict_volume
    from unetcli.shares import close_run, predict_share

    if close:
        return close_run(request)
    stopping = o.stop_on_sigterm()
    with talk.progress("voxels") as report:
        if share is not None:
            return predict_share(request, parse_share(share), report, stopping)
        return predict_volume(request, report, stopping)


def _tell(summary: PredictSummary, json: bool) -> None:
    from dataclasses import asdict

    talk.say(summary.sentence)
    o.print_json(asdict(summary)) if json else typer.echo(summary.output)
    if not summary.finished:
        raise typer.Exit(o.INCOMPLETE)
