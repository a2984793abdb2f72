"""A real S3 protocol server on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's URL; the environment names the server, for this process and those it starts."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # buckets outlive their server
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget_connections()
    import s3fs

    s3fs.S3FileSystem().mkdir("bucket")
    try:
        yield "s3://bucket"
    finally:
        forget_connections()
        server.stop()


def forget_connections() -> None:
    """fsspec keeps one connection for the same options, whatever the environment says now; Zarr's are left open."""
    import s3fs
    from fsspec.asyn import sync
    from zarr.core.sync import _get_loop

    for files in list(s3fs.S3FileSystem._cache.values()):
        if files.asynchronous and files._s3 is not None:
            sync(_get_loop(), files._s3creator.__aexit__, None, None, None)
    s3fs.S3FileSystem.clear_instance_cache()
