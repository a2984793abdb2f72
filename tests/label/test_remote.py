"""label with a prediction at ``s3://``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import write_prediction
from label.maps import blobs
from s3 import serving

from unetcli.core.errors import UnetcliError
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.volumes.opening import open_volume


@pytest.mark.slow
def test_labels_of_a_remote_prediction_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = blobs((2, 40, 50), 2)
    write_prediction(Path("here.zarr"), values, (1, 16, 16), levels=2)
    label_volume(LabelRequest(prediction="here.zarr"))
    with serving(monkeypatch) as bucket:
        url = f"{bucket}/there.zarr"
        write_prediction(url, values, (1, 16, 16), levels=2)
        with pytest.raises(UnetcliError, match="needs --run-folder FOLDER"):
            label_volume(LabelRequest(prediction=url))
        summary = label_volume(LabelRequest(prediction=url, run_folder=Path("run"), block_voxels=500))
        assert (summary.output, summary.complete) == (f"{url}/labels/instances", True)
        here, there = (open_volume(f"{store}/labels/instances") for store in ("here.zarr", url))
        assert np.array_equal(here.read(here.whole()), there.read(there.whole()))
        assert Path(summary.table).parent == Path("run")
        assert Path(summary.table).read_text() == Path("here.zarr.instances.csv").read_text()
        again = label_volume(LabelRequest(prediction=url, run_folder=Path("run"), overwrite=True))
        assert (again.complete, again.found_done) == (True, 0)
