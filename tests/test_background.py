import threading
from concurrent.futures import CancelledError

import pytest

from loraloom.background import Background


def _ended(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def test_work_is_done_in_order_and_no_thread_stays_for_more() -> None:
    background, done = Background("something"), list[int]()
    for number in range(20):
        background.submit(done.append, number)
    thread = background.submit(threading.current_thread).result(10)
    assert done == list(range(20))
    assert _ended(thread)
    again = background.submit(threading.current_thread).result(10)
    assert again is not thread and _ended(again)


def test_what_goes_wrong_is_raised_where_it_is_asked_for_and_ends_nothing_else() -> None:
    background = Background("something")
    wrong = background.submit(int, "three")
    assert background.submit(int, "3").result(10) == 3
    with pytest.raises(ValueError, match="three"):
        wrong.result(10)


def test_a_closed_one_finishes_what_it_does_and_begins_nothing_more() -> None:
    background, begun, go = Background("something"), threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        go.wait(10)
        return "whole"

    running, waiting = background.submit(first), background.submit(str)
    assert begun.wait(10)
    background.close()
    go.set()
    assert running.result(10) == "whole"
    with pytest.raises(CancelledError):
        waiting.result(10)
    with pytest.raises(RuntimeError, match="nothing more"):
        background.submit(str)


def test_many_threads_may_give_work_at_once() -> None:
    background, done = Background("something"), list[int]()

    def give(begin: int) -> None:
        for number in range(begin, begin + 50):
            background.submit(done.append, number).result(10)

    givers = [threading.Thread(target=give, args=(50 * n,)) for n in range(8)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join(30)
    assert sorted(done) == list(range(400))


def test_without_a_thread_it_says_so_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    background = Background("something")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
        patch.setattr(threading.Thread, "start", none_left)
        background.submit(int)
    assert background.submit(int, "3").result(5) == 3
