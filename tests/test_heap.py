"""In a process of its own: what the C library is told holds until its end."""

import json
import mmap
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")

PROGRAM = """
import json, resource, threading
from loraloom import heap
kept = heap.reuse()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def own():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("RssAnon"))

found = {}

def compute():
    x = torch.ones(12 << 20)  # 48 MB
    for _ in range(20):  # glibc before 2.38 needs some until a hole is large enough for an aligned block
        x + x
    before = faults()
    for _ in range(20):
        x + x
    found["faults"] = faults() - before

thread = threading.Thread(target=compute)
thread.start()
thread.join()
found["free"] = own()
heap.give_back()
print(json.dumps({**found, "kept": kept, "after": own()}))
"""


def _measured(**environment: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_next_operation_takes_the_memory_of_the_one_before_also_in_a_thread() -> None:
    found = _measured()
    pages = 20 * (48 << 20) // mmap.PAGESIZE
    assert found["kept"] and found["faults"] < pages // 20
    assert found["after"] < found["free"] - 80


def test_what_the_user_has_set_stays() -> None:
    assert not _measured(MALLOC_ARENA_MAX="8")["kept"]
