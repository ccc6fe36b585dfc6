"""A file that another machine made has its name for good before its passing name is given up."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.power.disk import ACKNOWLEDGED, LOSSES, Disk, read_records
from tests.power.recorded import recorded
from tests.server.running import ROOT

PUBLISHES = """
import asyncio, sys
from pathlib import Path
from loraloom.atomic_file import write_file
from loraloom.jobs.publishing import Places, publish
from tests.power.disk import acknowledge

root, records = map(Path, sys.argv[1:])

async def commit(_change):
    acknowledge(records, "the names are given")

staged = root / "staged" / "1"
write_file(staged, b"cat" * 1000)
places = Places(root / "staged", root / "output")
asyncio.run(publish(commit, places, "a", [(str(staged), str(root / "output" / "x" / "cat.png"))]))
"""


def test_at_the_commit_the_file_is_there_whatever_is_lost(tmp_path: Path) -> None:
    recording = recorded(tmp_path)
    environment = {**recording.environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", PUBLISHES, str(recording.root), str(recording.file)]
    subprocess.run(command, env=environment, check=True)
    disk, promised = Disk(recording.root), False
    for number, record in enumerate(read_records(recording.file)):
        promised |= record.kind == ACKNOWLEDGED
        disk.see(record)
        for loss in LOSSES if promised else ():
            target = tmp_path / f"{number}{loss}"
            target.mkdir()
            disk.write(target, loss, random.Random(number))
            assert (target / "output/x/cat.png").read_bytes() == b"cat" * 1000
    assert promised
