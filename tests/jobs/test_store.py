"""Jobs on disk."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loraloom.jobs.job import Job, Request, Status, WrongStatus
from loraloom.jobs.lock import FolderInUse, FolderLock
from loraloom.jobs.schema import MIGRATIONS
from loraloom.jobs.store import JobExists, LeaseOver, QueueFull, Store, UnknownJob
from loraloom.jobs.writer import StoreThread
from loraloom.workflow.graph import JSON

REQUEST = Request({"1": {"class_type": "X", "inputs": {}}}, {"a": [1, "ü"]}, ("1",), "client")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "queue.db", max_pending=1000, max_finished=5)


def finish(store: Store, job: Job) -> None:
    store.change(job.id, lambda j: j.succeed(time.time(), {"outputs": {}}))


def test_a_job_comes_back_as_it_went_in(store: Store, tmp_path: Path) -> None:
    job = store.submit(REQUEST)
    store.close()
    assert Store(tmp_path / "queue.db").get(job.id) == job


def test_jobs_run_by_priority_then_number(store: Store) -> None:
    a, b = store.submit(REQUEST), store.submit(REQUEST)
    front, urgent = store.submit(REQUEST, front=True), store.submit(REQUEST, priority=5)
    expected = [urgent.id, front.id, a.id, b.id]
    assert [j.id for j in store.waiting()] == expected
    store.change(b.id, lambda j: j.move(-100, 0))
    claimed = [job.id for _ in range(4) if (job := store.claim()) is not None]
    assert claimed == [urgent.id, b.id, front.id, a.id]
    assert store.claim() is None


def test_numbers_go_on_after_a_restart(store: Store, tmp_path: Path) -> None:
    numbers = [store.submit(REQUEST).number for _ in range(3)]
    assert numbers == sorted(set(numbers))
    store.close()
    assert Store(tmp_path / "queue.db").submit(REQUEST).number > numbers[-1]


def test_limits_and_ids(store: Store, tmp_path: Path) -> None:
    job = store.submit(REQUEST, job_id="mine")
    with pytest.raises(JobExists):
        store.submit(REQUEST, job_id="mine")
    with pytest.raises(UnknownJob):
        store.get("yours")
    store.close()
    small = Store(tmp_path / "queue.db", max_pending=1)
    with pytest.raises(QueueFull):
        small.submit(REQUEST)
    assert small.get("mine") == job


def test_recovery_runs_again_what_was_running(store: Store, tmp_path: Path) -> None:
    first, second = store.submit(REQUEST), store.submit(REQUEST)
    store.claim()
    store.close()
    store = Store(tmp_path / "queue.db")
    assert [j.id for j in store.recover()] == [first.id]
    again = store.claim()
    assert again is not None
    assert (again.id, again.claims, again.deaths) == (first.id, 2, 0)
    assert [j.id for j in store.waiting()] == [second.id]


def test_history_is_limited_and_can_be_cleared(store: Store) -> None:
    jobs = [store.submit(REQUEST) for _ in range(8)]
    for _ in jobs[:7]:
        claimed = store.claim()
        assert claimed is not None
        finish(store, claimed)
    store.prune()
    assert [j.id for j in store.history()] == [j.id for j in jobs[2:7]]
    assert [j.id for j in store.history(2, 1)] == [jobs[3].id, jobs[4].id]
    assert [j.id for j in store.history(2, -1)] == [jobs[5].id, jobs[6].id]
    assert [j.id for j in store.delete([jobs[6].id, jobs[7].id, "nobody"])] == [jobs[6].id]
    store.clear_finished()
    assert (store.history(), [j.id for j in store.waiting()]) == ([], [jobs[7].id])


def test_a_transition_that_is_not_allowed_changes_nothing(store: Store) -> None:
    job = store.submit(REQUEST)
    with pytest.raises(WrongStatus):
        store.change(job.id, lambda j: j.succeed(1.0, {}), [("completed", {})])
    assert store.get(job.id) == job
    assert store.events(job.id) == []


def test_sequence_numbers_grow_over_attempts(store: Store) -> None:
    job = store.submit(REQUEST)
    numbers: list[int] = []
    for reason in ("one", "two"):
        store.claim()
        store.change(
            job.id,
            lambda j, why=reason: j.worker_died(1.0, why),
            [("started", {}), ("lost", {"why": reason})],
        )
        numbers = [e.sequence for e in store.events(job.id)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 4
    assert [e.payload for e in store.events(job.id, after=numbers[2])] == [{"why": "two"}]


def test_webhooks_wait_in_the_store(store: Store) -> None:
    job = store.submit(Request({}, webhook="http://127.0.0.1/x"))
    store.claim()
    assert store.due_deliveries(time.time()) == []
    finish(store, job)
    assert store.due_deliveries(time.time()) == [(job.id, "http://127.0.0.1/x", 0)]
    store.postpone_delivery(job.id, time.time() + 60)
    assert store.due_deliveries(time.time()) == []
    assert store.due_deliveries(time.time() + 61)[0][2] == 1
    store.delivered(job.id)
    assert store.due_deliveries(time.time() + 61) == []


def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "old.db")
    database.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    for job, finished in (("late", 9.0), ("early", 5.0)):
        row = (job, 1, 0, "completed", 0, 1, finished, 1, 0, "{}", "{}", None)
        database.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", row)
    database.commit()
    database.close()
    store = Store(tmp_path / "old.db")
    assert [j.id for j in store.history()] == ["early", "late"]
    store.submit(Request({}, webhook="http://127.0.0.1/"))
    store.claim()
    finish(store, store.jobs((Status.RUNNING,))[0])
    assert len(store.due_deliveries(time.time())) == 1


def test_every_job_is_claimed_once_by_many_claimers(tmp_path: Path) -> None:
    threads = StoreThread(tmp_path / "queue.db", max_pending=1000, max_finished=1000)
    submitted = {threads.call(lambda s: s.submit(REQUEST)) for _ in range(50)}
    ids = {future.result().id for future in submitted}
    claimed: list[str] = []

    def claim() -> None:
        while (job := threads.call(lambda s: s.claim()).result()) is not None:
            claimed.append(job.id)

    claimers = [threading.Thread(target=claim) for _ in range(8)]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    threads.close()
    assert sorted(claimed) == sorted(ids)


def test_a_failing_call_does_not_undo_those_that_share_its_commit(tmp_path: Path) -> None:
    threads = StoreThread(tmp_path / "queue.db", max_pending=3, max_finished=1000)
    gate = threading.Event()
    threads.call(lambda _: gate.wait())
    futures = [threads.call(lambda s: s.submit(REQUEST)) for _ in range(5)]
    gate.set()
    outcomes = [future.exception() for future in futures]
    assert [type(o) for o in outcomes] == [type(None)] * 3 + [QueueFull] * 2
    assert len(threads.call(lambda s: s.waiting()).result()) == 3
    threads.close()


def test_the_log_is_brought_into_the_file_while_commits_go_on(tmp_path: Path) -> None:
    threads = StoreThread(tmp_path / "queue.db", max_pending=1000, max_finished=1000)

    def in_file() -> int:
        shutil.copy(tmp_path / "queue.db", tmp_path / "without_log.db")
        with closing(sqlite3.connect(tmp_path / "without_log.db")) as database:
            try:
                return database.execute("SELECT count(*) FROM jobs").fetchone()[0]
            except sqlite3.OperationalError:
                return 0

    for _ in range(60):
        threads.call(lambda s: s.submit(REQUEST)).result(5)
    deadline = time.monotonic() + 10
    while in_file() < 40 and time.monotonic() < deadline:
        threads.call(lambda s: s.submit(REQUEST)).result(5)
    assert in_file() >= 40
    threads.close()
    assert not (tmp_path / "queue.db-wal").exists()


def test_a_second_server_on_the_folder_is_told_who_has_it(tmp_path: Path) -> None:
    code = (
        "import sys,time; from pathlib import Path; from loraloom.jobs.lock import FolderLock; "
        f"lock = FolderLock(Path({str(tmp_path)!r})); lock.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderInUse, match=f'"pid": {other.pid}'):
            FolderLock(tmp_path).acquire()
    finally:
        other.kill()
        other.communicate()
    lock = FolderLock(tmp_path)
    lock.acquire(2.0)
    lock.release()


def test_a_row_that_cannot_be_read_is_put_aside_and_the_others_run(store: Store, tmp_path: Path) -> None:
    bad, odd, good = (store.submit(REQUEST) for _ in range(3))
    running = store.submit(REQUEST, priority=1)
    store.claim()
    database = sqlite3.connect(tmp_path / "queue.db")
    for job, column, value in ((bad, "request", "{"), (odd, "number", "x"), (running, "request", "[]")):
        database.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, job.id))
    database.execute("UPDATE jobs SET number = -1 WHERE id = ?", (odd.id,))
    database.commit()
    database.close()
    assert {j.id for j in store.waiting()} == {bad.id, odd.id, good.id}
    assert [j.status for j in store.recover()] == [Status.QUARANTINED]
    claimed = [job.id for _ in range(3) if (job := store.claim()) is not None]
    assert claimed == [odd.id, good.id]
    aside = store.get(bad.id)
    assert (aside.status, (aside.error or {})["type"]) == (Status.QUARANTINED, "unreadable")


def test_a_clock_that_is_set_back_forgets_nothing_new(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    ids: list[str] = []
    for count in range(8):
        monkeypatch.setattr(time, "time", lambda n=count: now - 1000 * n)
        job = store.submit(REQUEST)
        ids.append(job.id)
        store.claim()
        finish(store, job)
        store.prune()
    assert [j.id for j in store.history()] == ids[-5:]
    assert [j.id for j in store.jobs((Status.COMPLETED,), 2)] == ids[:-3:-1]


def test_a_webhook_is_called_though_the_clock_was_set_back(store: Store) -> None:
    job = store.submit(Request({}, webhook="http://127.0.0.1/x"))
    store.claim()
    finish(store, job)
    assert len(store.due_deliveries(time.time() - 1_000_000)) == 1


def test_a_file_that_somebody_else_locks_fails_calls_and_not_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.jobs.database.BUSY_MILLISECONDS", 200)
    threads = StoreThread(tmp_path / "queue.db", max_pending=10, max_finished=10)
    job = threads.call(lambda s: s.submit(REQUEST)).result(5)
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    futures = [threads.call(lambda s: s.submit(REQUEST)) for _ in range(3)]
    for future in futures:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            future.result(5)
    assert threads.read(lambda s: s.get(job.id)).result(5) == job
    other.execute("ROLLBACK")
    other.close()
    threads.call(lambda s: s.submit(REQUEST)).result(5)
    assert threads.read(lambda s: len(s.waiting())).result(5) == 2
    threads.close()


def test_a_commit_that_fails_takes_no_call_along(tmp_path: Path) -> None:
    threads = StoreThread(tmp_path / "queue.db", max_pending=10, max_finished=10)

    def undo(store: Store) -> None:
        store._db.execute("ROLLBACK")  # pyright: ignore[reportPrivateUsage] - as SQLite does when the disk is full
        raise sqlite3.OperationalError("database or disk is full")

    gate = threading.Event()
    threads.call(lambda _: gate.wait())
    first = threads.call(lambda s: s.submit(REQUEST))
    second = threads.call(undo)
    third = threads.call(lambda s: s.submit(REQUEST))
    gate.set()
    for future in (first, second, third):
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            future.result(5)
    assert threads.call(lambda s: s.submit(REQUEST)).result(5).number >= 0
    assert threads.read(lambda s: s.count(Status.PENDING)).result(5) == 1
    threads.close()


def test_thousands_are_cancelled_with_few_commits(store: Store) -> None:
    jobs = [store.submit(REQUEST) for _ in range(12)]
    hooked = store.submit(Request({}, webhook="http://127.0.0.1/x"))
    assert len(store.cancel_waiting(None, 5)) == 5
    assert [j.id for j in store.cancel_waiting([jobs[0].id, jobs[11].id, "nobody"], 10)] == [jobs[11].id]
    assert len(store.cancel_waiting(None, 100)) == 7
    assert store.cancel_waiting(None, 100) == []
    assert store.get(hooked.id).status is Status.CANCELLED
    assert len(store.due_deliveries(time.time())) == 1


def test_cancelling_thousands_reads_no_prompt_and_loses_none(store: Store, tmp_path: Path) -> None:
    kept = store.submit(Request({"1": {"class_type": "X"}}, {"a": 1}, ("1",), "me", "http://127.0.0.1/x"))
    bad = store.submit(REQUEST)
    database = sqlite3.connect(tmp_path / "queue.db")
    database.execute("UPDATE jobs SET request = '{' WHERE id = ?", (bad.id,))
    database.commit()
    database.close()
    found = {job.id: job for job in store.cancel_waiting(None, 10)}
    assert (found[kept.id].request.prompt, found[kept.id].request.client_id) == ({}, "me")
    assert found[bad.id].status is Status.QUARANTINED
    assert store.get(kept.id).request == kept.request
    assert len(store.due_deliveries(time.time())) == 1


def test_a_file_that_is_too_large_forgets_what_ended_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.jobs.store.MAX_BYTES", 3_000_000)
    store = Store(tmp_path / "queue.db", max_finished=1000)
    waiting = store.submit(Request({}, {"a": "x" * 1_000_000}), priority=-1)
    ids: list[str] = []
    for _ in range(12):
        job = store.submit(Request({}, {"a": "x" * 500_000}))
        ids.append(job.id)
        store.claim()
        finish(store, job)
        store.prune()
    kept = [j.id for j in store.history()]
    assert kept == ids[-len(kept) :]
    assert 2 <= len(kept) <= 4
    assert store.get(waiting.id).status is Status.PENDING
    with pytest.raises(QueueFull, match="of this size"):
        for _ in range(9):
            store.submit(Request({}, {"a": "x" * 500_000}))
    assert store.submit(REQUEST).status is Status.PENDING


def test_what_no_json_can_hold_does_not_keep_a_result_from_being_kept(store: Store) -> None:
    job = store.submit(REQUEST)
    store.claim()
    given: dict[str, JSON] = {"outputs": {"9": {"loss": [float("nan"), 1e999], "text": ["\ud800x"]}}}
    store.change(job.id, lambda j: j.succeed(1.0, given))
    assert store.get(job.id).result == {"outputs": {"9": {"loss": [None, None], "text": ["\ufffdx"]}}}


def test_the_end_of_a_job_costs_no_more_when_many_have_ended(tmp_path: Path) -> None:
    """Not a look at every job that is remembered."""

    def cost(finished: int) -> int:
        store = Store(tmp_path / f"{finished}.db")
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        with store.transaction():
            for number in range(finished + 1):
                store.submit(Request({}), job_id=str(number))
                assert store.claim() is not None
                if number == finished:
                    store._db.set_progress_handler(count, 10)  # pyright: ignore[reportPrivateUsage]
                store.change(str(number), lambda j: j.succeed(1.0, {}))
        store.close()
        return steps

    assert cost(600) < 2 * cost(20)


def test_only_the_lease_that_counts_settles_a_job_and_all_that_comes_of_it_is_kept(store: Store) -> None:
    waiting, other = store.submit(REQUEST), store.submit(REQUEST)
    with pytest.raises(LeaseOver):
        store.settle(waiting, lambda j: j.succeed(1.0, {}))
    with pytest.raises(LeaseOver, match="here-0"):
        store.settle(replace(waiting, id="gone", place="here-0"), lambda j: j.succeed(1.0, {}))
    first = store.claim("here-0")
    assert first is not None and first.id == waiting.id
    assert [job.id for job in store.recover()] == [waiting.id]
    second = store.claim("here-1")
    assert second is not None and second.claims == first.claims + 1
    with pytest.raises(LeaseOver):
        store.settle(first, lambda j: j.fail(1.0, {"type": "late"}))
    events: list[tuple[str, dict[str, JSON]]] = [("note", {"a": 1}), ("completed", {"b": 2})]
    store.settle(second, lambda j: j.succeed(2.0, {"outputs": {}}), events, [("/tmp/x.part", "/tmp/x.png")])
    assert store.get(waiting.id).status is Status.COMPLETED
    kept = store.events(waiting.id)
    assert [(e.job, e.kind, e.payload) for e in kept] == [
        (waiting.id, "requeued", {"reason": "the server was restarted"}),
        (waiting.id, "note", {"a": 1}),
        (waiting.id, "completed", {"b": 2}),
    ]
    assert [e.sequence for e in store.events(waiting.id, kept[0].sequence)] == [k.sequence for k in kept[1:]]
    assert store.publications() == [(waiting.id, "/tmp/x.part", "/tmp/x.png")]
    store.published(["/tmp/x.part"])
    assert store.publications() == [] and store.get(other.id).status is Status.PENDING


def test_a_fault_of_the_server_costs_what_it_hit_an_attempt_and_is_told(store: Store) -> None:
    hit, spared = store.submit(REQUEST), store.submit(REQUEST)
    for _ in range(2):
        assert store.claim() is not None
    (after,) = store.recover("the disk is gone", lambda job: job.id == hit.id)
    assert (after.id, after.deaths, store.get(spared.id).status) == (hit.id, 1, Status.RUNNING)
    assert [e.payload for e in store.events(hit.id)] == [{"reason": "the disk is gone"}]


def test_warnings_are_added_to_what_has_finished_and_to_nothing_else(store: Store) -> None:
    job = store.submit(REQUEST)
    store.warn(job.id, "too early")
    store.warn("gone", "too late")
    store.change(job.id, lambda j: j.claim(1.0, None).succeed(2.0, {"warnings": ["first"], "x": 1}))
    store.warn(job.id, "second")
    assert store.get(job.id).result == {"warnings": ["first", "second"], "x": 1}
    assert [e.payload for e in store.events(job.id)] == [{"node": None, "message": "second"}]
    failed = store.submit(REQUEST)
    store.change(failed.id, lambda j: j.stop(1.0))
    store.warn(failed.id, "no result")
    assert store.get(failed.id).result == {"warnings": ["no result"]}


def test_what_is_kept_of_a_finished_job_can_be_rewritten(store: Store) -> None:
    job = store.submit(REQUEST)

    def renamed(value: JSON) -> JSON:
        return {key: f"new {one}" for key, one in value.items()} if isinstance(value, dict) else value

    store.rewrite(job.id, renamed)
    store.rewrite("gone", renamed)
    assert store.get(job.id).result is None
    store.change(job.id, lambda j: j.claim(1.0, None).succeed(2.0, {"a": "b"}), [("completed", {"c": "d"})])
    store.rewrite(job.id, renamed)
    assert store.get(job.id).result == {"a": "new b"}
    assert [e.payload for e in store.events(job.id)] == [{"c": "new d"}]


def test_pages_of_the_history(store: Store) -> None:
    ids: list[str] = []
    for number in range(4):
        job = store.submit(REQUEST)
        assert store.claim() is not None
        store.change(job.id, lambda j, n=number: j.succeed(float(n), {}))
        ids.append(job.id)
    assert store.history_ids() == ids
    assert store.history_ids(2) == ids[:2]
    assert store.history_ids(2, 1) == ids[1:3]
    assert store.history_ids(2, -1) == ids[2:]
