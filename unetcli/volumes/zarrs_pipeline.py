"""The pipeline of zarrs, which must be installed, with the check of chunks that it does not make itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zarr.registry import register_pipeline
from zarrs import ZarrsCodecPipeline  # type: ignore[import-not-found]


class CheckedZarrs(ZarrsCodecPipeline):  # type: ignore[misc]
    """zarrs, which would read a link to a file that does not exist as fill values: such links raise ValueError.

    Data managers leave such links for content that was not fetched.
    """

    async def read(self, batch_info: Iterable[Any], out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        batch = list(batch_info)
        for getter, *_ in batch:
            path = Path(getter.store.root, getter.path)
            if path.is_symlink() and not path.exists():
                raise ValueError(f"{path} is a link to a file that does not exist")
        return await super().read(batch, out, drop_axes)


register_pipeline(CheckedZarrs)
