"""What Windows needs, as far as it can be seen elsewhere: paths, locks, open files, children, output."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import loraloom
from loraloom import atomic_file, confined, file_lock, windows
from loraloom.confined import BadName, parts_of
from loraloom.jobs import lock
from loraloom.weights.tensor_file import _seek_and_read  # pyright: ignore[reportPrivateUsage]
from loraloom.windows import crash, extended, extended_form, out_of_reach_of_ctrl_c

DEEP = "\\".join(["folder"] * 40)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("C:\\a\\b", "C:\\a\\b"),
        (f"C:\\{DEEP}", f"\\\\?\\C:\\{DEEP}"),
        (f"C:/{DEEP}/a", f"\\\\?\\C:\\{DEEP}\\a"),
        (f"\\\\server\\share\\{DEEP}", f"\\\\?\\UNC\\server\\share\\{DEEP}"),
        (f"\\\\?\\C:\\{DEEP}", f"\\\\?\\C:\\{DEEP}"),
    ],
)
def test_long_paths_have_another_form(path: str, form: str) -> None:
    assert extended_form(path) == form


def test_elsewhere_paths_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/a" * 200)
    assert extended(path) is path
    monkeypatch.setattr(windows.sys, "platform", "win32")
    assert str(extended(path)).startswith("\\\\?\\")


@pytest.mark.parametrize(
    "name", ["CON", "nul.txt", "a/aux", "com1.png", "COM¹", "lpt².x", "conin$", "nul .txt"]
)
def test_names_of_devices_are_refused_everywhere(name: str) -> None:
    with pytest.raises(BadName):
        parts_of(name)


def test_signs_that_windows_forbids_are_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts_of("what?/from a: b.json") == ["what?", "from a: b.json"]
    monkeypatch.setattr(confined, "_WINDOWS", True)
    for name in ("what?", "from a: b.json", "x<y", 'say "a"', "a|b", "a*"):
        with pytest.raises(BadName, match="on Windows"):
            parts_of(name)
    assert parts_of("console/a.png") == ["console", "a.png"]


def windows_lock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`file_lock` as it is on Windows, on a `msvcrt` that locks as that does: the byte at the position."""

    fcntl: Any = importlib.import_module("fcntl")

    def locking(descriptor: int, mode: int, count: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, os.lseek(descriptor, 0, os.SEEK_CUR))

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("windows_lock", file_lock.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file.fileno(), fcntl.LOCK_EX, 1, 1 << 20)
file.write('{"pid": 1}')
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "try_lock", windows_lock(monkeypatch).try_lock)
    taken = lock.FolderLock(tmp_path)
    taken.acquire()
    assert '"pid"' in (tmp_path / "server.lock").read_text()
    taken.release()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "server.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(lock.FolderInUse, match="pid"):
            lock.FolderLock(tmp_path).acquire()
        other.communicate()
    taken.acquire()
    taken.release()


def test_several_threads_read_one_file_without_preadv(tmp_path: Path) -> None:
    content = b"".join(bytes([value]) * 4096 for value in range(64))
    path = tmp_path / "file"
    path.write_bytes(content)
    wrong: list[int] = []
    with path.open("rb") as file:

        def read(value: int) -> None:
            for _ in range(50):
                view = memoryview(bytearray(4096))
                count = _seek_and_read(file.fileno(), view, value * 4096)
                if count != 4096 or bytes(view) != bytes([value]) * 4096:
                    wrong.append(value)

        threads = [threading.Thread(target=read, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert _seek_and_read(file.fileno(), memoryview(bytearray(8)), len(content)) == 0
    assert wrong == []


def output_of(arguments: list[str], encoding: str | None) -> bytes:
    """What a command writes to a pipe; encoding: None for the code page of Western Europe as the locale."""
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(Path(loraloom.__file__).parent.parent)
    environment.pop("PYTHONIOENCODING", None)
    if encoding is not None:
        environment["PYTHONIOENCODING"] = encoding
    done = subprocess.run(
        [sys.executable, "-m", "loraloom", *arguments], env=environment, capture_output=True, check=True
    )
    return done.stdout


def test_output_is_utf8_in_pipes_and_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "workflow.json"
    path.write_text('{"1": {"class_type": "SaveLatent", "inputs": {"filename_prefix": "画→ü"}}}', "utf-8")
    assert "画→ü" in output_of(["convert", str(path)], None).decode()
    assert "\\u753b\\u2192ü" in output_of(["convert", str(path)], "cp1252").decode("cp1252")


@pytest.mark.parametrize("call", ["rename", "remove"])
def test_a_file_that_a_program_has_open_for_a_moment_is_moved_or_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """As Windows refuses both with ERROR_SHARING_VIOLATION, which Python calls PermissionError."""
    refused = iter([True, True, False, False])
    real = {"rename": os.rename, "remove": os.unlink}[call]

    def refusing(*paths: Path) -> None:
        if next(refused):
            raise PermissionError(13, "the file is in use")
        real(*paths)

    monkeypatch.setattr(os, "rename" if call == "rename" else "unlink", refusing)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    act = (lambda: atomic_file.rename(old, new)) if call == "rename" else (lambda: atomic_file.remove(old))
    with pytest.raises(PermissionError):
        act()
    monkeypatch.setattr(atomic_file, "_ATTEMPTS", 40)
    act()
    assert not old.exists() and new.exists() == (call == "rename")


def test_how_a_crash_on_windows_is_told() -> None:
    assert "memory that is not its own" in str(crash(0xC0000005))
    assert crash(0xC0DEDEAD) == "Windows status 0xC0DEDEAD"
    assert [crash(code) for code in (0, 1, 130, -9, -11, 0x40010004)] == [None] * 6


def test_ctrl_c_in_the_terminal_does_not_reach_a_child_that_its_parent_ends() -> None:
    """As the terminal does: SIGINT to the whole group of the parent."""
    told = out_of_reach_of_ctrl_c()
    child = "import sys; print('up', flush=True); sys.exit(len(sys.stdin.read()))"
    parent = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1, **{told!r})\n"
        "child.stdout.readline()\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "os.killpg(0, signal.SIGINT)\n"
        "child.communicate(b'abc')\n"
        "sys.exit(child.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], start_new_session=True, check=False, timeout=60)
    assert done.returncode == 3
