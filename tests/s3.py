"""A server with the S3 protocol on the loopback interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a server and yield the URL of a bucket. Environment variables configure this process and its children."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(
        Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    ).close()  # buckets persist across servers of a process
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
    """Close the connections that fsspec caches by their options, ignoring the environment, and those left by Zarr."""
    import s3fs
    from fsspec.asyn import sync
    from zarr.core.sync import _get_loop

    for files in list(s3fs.S3FileSystem._cache.values()):
        if files.asynchronous and files._s3 is not None:
            sync(_get_loop(), files._s3creator.__aexit__, None, None, None)
    s3fs.S3FileSystem.clear_instance_cache()
