"""How many jobs a minute one, two and three nodes of a Ray cluster do, when a job only sleeps.

    python benchmarks/cluster_throughput.py --jobs 45 --seconds 1

A head and three nodes of one worker each run as processes on addresses of the loopback range; all but the
first one, two or three nodes are drained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster.harness import Machine, TestCluster
from tests.cluster.picture_runner import prompt


def measure(cluster: TestCluster, workers: int, jobs: int, seconds: float) -> float:
    """Jobs a second with so many workers."""
    names = [worker["name"] for worker in cluster.workers()]
    for number, name in enumerate(names):
        draining = str(number >= workers).lower()
        cluster.call(f"/v1/workers/drain?name={name.replace('/', '%2F')}&draining={draining}", {})
    begun = time.monotonic()
    ids = [str(cluster.submit(prompt(n, seconds, f"with{workers}"))) for n in range(jobs)]
    for job_id in reversed(ids):
        ended = cluster.done(job_id, 60 + 3 * jobs * seconds)
        assert ended["status"] == "completed", ended
    return jobs / (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=45)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    machines = [Machine(name, f"127.0.0.{3 + i}") for i, name in enumerate("abc")]
    with tempfile.TemporaryDirectory() as folder:
        cluster = TestCluster(Path(folder), machines)
        try:
            cluster.start_server()
            for machine in machines:
                cluster.start_node(machine)
            cluster.until(lambda: cluster.idle() == len(machines), 300)
            measure(cluster, 3, 6, 0.1)
            alone = 0.0
            for workers in (1, 2, 3):
                rate = measure(cluster, workers, options.jobs, options.seconds)
                alone = alone or rate
                sys.stdout.write(
                    f"{workers} workers: {60 * rate:.1f} jobs a minute, {rate / alone:.2f} times one worker\n"
                )
                sys.stdout.flush()
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
