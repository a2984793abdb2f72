"""``unetcli evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import options as o
from unetcli.cli import talk
from unetcli.cli.asking import asked_where

if TYPE_CHECKING:
    from unetcli.config import Where
    from unetcli.evaluate.request import EvaluateRequest
    from unetcli.evaluate.result import Evaluation


def evaluate(
    prediction: o.PredictionArgument,
    truth: o.TrueArgument,
    metrics: o.MetricsOption = None,
    kind: o.KindOption = None,
    threshold: o.ObjectThresholdOption = 0.5,
    three_d: o.ObjectsThreeDOption = None,
    sections: o.SectionsOption = None,
    roi: o.EvaluatedRoiOption = None,
    mask: o.JudgedMaskOption = None,
    ignore: o.IgnoreValueOption = None,
    level: o.LevelOption = 0,
    baseline: o.BaselineOption = None,
    csv: o.CsvOption = None,
    report: o.ReportOption = None,
    image: o.BehindOption = None,
    allow_incomplete: o.AllowIncompleteOption = False,
    block_voxels: o.BlockVoxelsOption = None,
    run_folder: o.EvaluationRunFolderOption = None,
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
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Score PREDICTION against TRUTH.

    Small volumes are scored at once. Of large ones the counts of finished blocks are kept until all are there: the same
    command goes on.
    """
    options = dict(locals())
    _require_files(report, image, csv, level)
    found = _run(asked(options), asked_where(options))
    _tell(found, json)  # first of all: whatever becomes of the files, the scores are there
    if csv:
        _write_csv(csv, found)
    if report:
        _write_report(report, found, image)


def _tell(found: Evaluation, json: bool) -> None:
    if json:
        o.print_json(found.to_json())
    else:
        from unetcli.cli.scoretable import lines

        typer.echo("\n".join(lines(found)))


def asked(options: Mapping[str, Any]) -> EvaluateRequest:
    """What the options of evaluate mean."""
    from dataclasses import fields

    from unetcli.config import parse_roi, parse_sections
    from unetcli.evaluate.request import EvaluateRequest

    metrics = options["metrics"]
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip())
    read = {"metrics": names, "sections": parse_sections(options["sections"]), "roi": parse_roi(options["roi"])}
    return EvaluateRequest(**{field.name: {**options, **read}[field.name] for field in fields(EvaluateRequest)})


def _run(request: EvaluateRequest, where: Where) -> Evaluation:
    """The evaluation; ends the command where blocks are missing."""
    from unetcli.core.process import prepare

    prepare()
    from unetcli.engine.run import arrays_of
    from unetcli.evaluate.evaluate import evaluate_volume
    from unetcli.evaluate.run import Unfinished

    stopping = o.stop_on_sigterm()
    try:
        with talk.progress("voxels") as report:
            return evaluate_volume(request, report, stopping, where)
    except Unfinished as unfinished:
        talk.say(f"{request.prediction}: {unfinished}")
        if unfinished.jobs:
            typer.echo(" ".join(arrays_of(unfinished.jobs)))
        raise typer.Exit(0 if unfinished.jobs else o.INCOMPLETE) from None


def _require_files(report: Path | None, image: str | None, csv: Path | None, level: int) -> None:
    """Refuse before anything is scored what could not be written or drawn afterwards."""
    from unetcli.core.errors import UnetcliError
    from unetcli.core.files import require_replaceable
    from unetcli.volumes.opening import open_volume

    if image is not None and report is None:
        raise UnetcliError(f"--image {image}: only with --report FILE.html, which shows it")
    if report is not None:
        require_replaceable(report, "--report", "report.html", signature=b"unetcli evaluate")
    if csv is not None:
        require_replaceable(csv, "--csv", "scores.csv", signature=b"section,")
    if image is not None:
        open_volume(image, level)


def _write_report(path: Path, found: Evaluation, image: str | None) -> None:
    from unetcli.report.page import write_report
    from unetcli.report.viewer import source_image

    with talk.progress("sections") as progress:
        write_report(found, path, source_image(found, image), progress)


def _write_csv(path: Path, found: Evaluation) -> None:
    import csv

    from unetcli.core.files import replacing

    rows = found.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as draft, draft.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
