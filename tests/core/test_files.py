from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

import unetcli
from unetcli.core.errors import UnetcliError
from unetcli.core.files import (
    PARTIAL,
    draft_of,
    explain_write_errors,
    overlaps,
    publish,
    remove_abandoned_drafts,
    remove_aside,
    remove_drafts_of,
    replacing,
    replacing_folder,
    sweep,
    sync_all,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
        assert draft.parent == path.parent  # a rename within one file system
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(draft: Path) -> None:
    draft.write_text("half of the n")
    raise ZeroDivisionError


def test_a_failed_replacement_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        write_half(draft)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_first_publishes(tmp_path: Path) -> None:
    assert publish(tmp_path / "plan.json", "first") is True
    assert publish(tmp_path / "plan.json", "second") is False
    assert (tmp_path / "plan.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_exactly_one_of_many_simultaneous_publishers_wins(tmp_path: Path) -> None:
    won: list[str] = []
    start = threading.Barrier(8)

    def compete(name: str) -> None:
        start.wait()
        if publish(tmp_path / "plan.json", name * 1000):
            won.append(name)

    threads = [threading.Thread(target=compete, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "plan.json").read_text() == won[0] * 1000


def test_a_lost_reply_of_the_file_server_is_not_taken_for_another_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def unanswered(draft: Path, path: Path) -> None:
        link(draft, path)
        raise FileExistsError(errno.EEXIST, "File exists", str(draft), None, str(path))

    monkeypatch.setattr(os, "link", unanswered)
    assert publish(tmp_path / "lock", "mine") is True
    monkeypatch.setattr(os, "link", link)
    assert publish(tmp_path / "lock", "another's") is False
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def without_links(draft: Path, path: Path) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted", str(draft), None, str(path))


def test_without_hard_links_exactly_one_publisher_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", without_links)
    assert publish(tmp_path / "lock", "first") is True
    assert publish(tmp_path / "lock", "second") is False
    assert [path.read_text() for path in tmp_path.iterdir()] == ["first"]


def test_a_file_system_that_cannot_publish_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", without_links)
    monkeypatch.setattr("unetcli.core.files._errno_of", lambda _: errno.EINVAL)
    (tmp_path / "full").mkdir()
    with pytest.raises(UnetcliError, match=r"full: its file system has neither hard links nor exclusive renaming"):
        publish(tmp_path / "full" / "lock", "first")


@pytest.mark.parametrize("named", [None, "draft"])
def test_an_error_of_writing_names_the_file(tmp_path: Path, named: str | None) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(OSError, match="No space left") as raised, replacing(path) as draft:
        raise OSError(errno.ENOSPC, "No space left on device", str(draft) if named else None)
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_drafts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path, folder: bool) -> None:
    path, kind = tmp_path / "a", "replacing_folder" if folder else "replacing"
    writes = "(draft / 'x').write_text('x')" if folder else "draft.write_text('x')"
    program = (
        f"import os, signal, sys\nfrom pathlib import Path\nfrom unetcli.core.files import {kind}\n"
        f"with {kind}(Path('a')) as draft:\n  {writes}\n  os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    dead = list(tmp_path.iterdir())
    assert len(dead) == 1
    (tmp_path / f"b.{'0' * 16}.partial").touch()  # of another file
    with (replacing_folder if folder else replacing)(path) as living:
        remove_abandoned_drafts(path)
        assert not dead[0].exists()
        assert living.exists()
        if folder:
            (living / "y").touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", f"b.{'0' * 16}.partial"]


@pytest.mark.parametrize("moment", ["before it is locked", "while it is locked by the other"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_draft_that_another_process_takes_for_abandoned_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, moment: str
) -> None:
    """The other process sweeps, or is about to, in the moment between creation and lock of the first draft."""
    path, real, held = tmp_path / "a", fcntl.flock, list[IO[bytes]]()

    def raced(file: IO[bytes], operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        if moment.startswith("before"):
            remove_abandoned_drafts(path)
            assert not Path(file.name).exists()
        else:
            held.append(Path(file.name).open("ab"))  # noqa: SIM115 - closed below
            real(held[0], operation)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", raced)
    with (replacing_folder if folder else replacing)(path) as draft:
        remove_abandoned_drafts(path)  # the second draft is safe
        (draft / "x" if folder else draft).write_text("new")
    assert (path / "x" if folder else path).read_text() == "new"
    for file in held:
        file.close()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_writers_survive_a_process_that_sweeps_all_the_time(tmp_path: Path, folder: bool) -> None:
    program = (
        "from pathlib import Path\nfrom unetcli.core.files import remove_abandoned_drafts\nprint('on', flush=True)\n"
        "while True:\n  remove_abandoned_drafts(Path('a'))"
    )
    path = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE) as sweeper:
        try:
            assert sweeper.stdout is not None
            sweeper.stdout.readline()
            for number in range(100):
                with (replacing_folder if folder else replacing)(path) as draft:
                    (draft / "x" if folder else draft).write_text(str(number))
                assert (path / "x" if folder else path).read_text() == str(number)
        finally:
            sweeper.kill()


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ZeroDivisionError), replacing_folder(path) as draft:
        write_half(draft / "half")
    assert [file.name for file in path.iterdir()] == ["old"]
    with replacing_folder(path) as draft:
        (draft / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_data_are_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a", os.fsync
    seen: list[tuple[str, bool]] = []

    def watched(handle: int) -> None:
        real(handle)
        seen.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))  # noqa: PTH115

    monkeypatch.setattr(os, "fsync", watched)
    with replacing(path) as draft:
        draft.write_text("new")
    assert seen == [(str(draft), False), (str(tmp_path), True)]
    path.unlink()
    seen.clear()
    publish(path, "new")
    assert [exists for _, exists in seen] == [False, True]


def test_syncing_skips_files_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    sync_all([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "c", tmp_path / "no" / "d"], tmp_path)


def test_sweeping_deletes_drafts_and_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "a[1].zarr"
    kept = [store / "c" / "0", store / "zarr.json", store / "partial", store / "film.mkv.partial"]
    kept += [draft_of(tmp_path / "a1.zarr"), draft_of(tmp_path / "b.zarr"), store / f".{'0' * 16}.partial"]
    drafts = [draft_of(store / "c" / "0"), draft_of(store / "zarr.json"), draft_of(store)]
    drafts.append(store / "c" / f"0.{uuid.uuid4().hex}.partial")  # the form that zarr-python uses
    (store / "c").mkdir(parents=True)
    for path in kept + drafts:
        path.write_text("x")
    assert sweep(store) == 4
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in drafts)


def test_drafts_of_chosen_files_are_removed_and_no_others(tmp_path: Path) -> None:
    chosen, other = tmp_path / "plan.json", tmp_path / "planxjson"
    (draft_of(chosen) / "folder").mkdir(parents=True)
    draft_of(chosen).write_text("x")
    kept = [draft_of(other), chosen, tmp_path / "plan.json.partial"]
    for path in kept:
        path.write_text("x")
    remove_drafts_of(chosen, tmp_path / "missing" / "plan.json")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_drafts_lie_beside_their_file_under_unique_names(tmp_path: Path) -> None:
    drafts = {draft_of(tmp_path / "a.zarr") for _ in range(100)}
    assert len(drafts) == 100
    assert all(draft.parent == tmp_path and draft.name.endswith(PARTIAL) for draft in drafts)


def test_removing_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file", "missing"):
        remove_aside(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    remove_aside(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "a").exists()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a", True),
        ("a", "a/b/c", True),
        ("a/b", "a", True),
        ("a", "ab", False),
        ("a", "b", False),
        ("link", "a", True),
        ("link/c", "a", True),
        ("a/../b", "b", True),
    ],
)
def test_paths_overlap_if_one_contains_the_other(tmp_path: Path, one: str, other: str, expected: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert overlaps(tmp_path / one, tmp_path / other) is expected
    assert overlaps(tmp_path / other, tmp_path / one) is expected


def as_nobody(program: str, place: Path) -> str:
    """Output of a program that runs without superuser rights in a folder where it may write."""
    if os.getuid() == 0:
        place.chmod(0o777)
        for folder in place.parents:  # pytest makes them readable for its own user only
            if folder.stat().st_uid == 0 and "pytest" in folder.name:
                folder.chmod(0o755)
        # After the imports, so that Python itself may lie where only the superuser reads.
        assert "\ntry:" in program
        program = program.replace("try:", "os.setgroups([]); os.setgid(65534); os.setuid(65534)\ntry:", 1)
    command = [sys.executable, "-c", program]
    environment = {"PYTHONPATH": str(Path(unetcli.__file__).parents[1])}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        ("Path('closed.txt').read_text()", "closed.txt: cannot be read: Permission denied"),
        ("Path('shut/raw.zarr').exists()", "shut/raw.zarr: cannot be read: Permission denied"),
        ("Path('locked.txt').write_text('')", "out: cannot write locked.txt: Permission denied; "),
        ("Path('locked/new').mkdir()", "out: cannot write locked/new: Permission denied; "),
        ("os.rename('mine', 'locked/mine')", "out: cannot write locked/mine: Permission denied; "),
    ],
    ids=["a file", "the way there", "a file to write", "a folder to write to", "a rename"],
)
def test_unreadable_and_unwritable_files_get_different_messages(tmp_path: Path, attempt: str, said: str) -> None:
    for name, mode in (("closed.txt", 0o000), ("locked.txt", 0o444), ("mine", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    for name, mode in (("shut", 0o600), ("locked", 0o555)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    program = (
        "import os\nfrom pathlib import Path\nfrom unetcli.core.errors import UnetcliError\n"
        "from unetcli.core.files import explain_write_errors\n"
        f"try:\n  with explain_write_errors('out'):\n    {attempt}\nexcept UnetcliError as error:\n  print(error)"
    )
    assert as_nobody(program, tmp_path).startswith(said)


def test_other_errors_of_the_system_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_write_errors("out"):
        (tmp_path / "nothing").read_text()
    with pytest.raises(UnetcliError, match=r"^out: cannot write: No space left on device; once fixed"), _full():
        pass


@contextmanager
def _full() -> Iterator[None]:
    with explain_write_errors("out"):
        yield
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
