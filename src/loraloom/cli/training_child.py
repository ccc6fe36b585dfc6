"""`loraloom train` as a child of the server, which ends with it.

It stops behind its present step when its input ends: the server closes it, or is gone. That works on every
system, which signals to one process do not.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time

from loraloom.cli.main import main
from loraloom.errors import Cancelled
from loraloom.jobs.worker import die_with_parent


def stop_with_the_input() -> None:
    """Interrupt the main thread, as Ctrl-C does, when standard input has ended.

    An interrupt may be lost while modules are imported, where callbacks swallow it: it is repeated until the
    command itself listens.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        listens = False
        while not listens:
            listens = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            _thread.interrupt_main()
            time.sleep(3)

    threading.Thread(target=wait, name="loraloom-input", daemon=True).start()


if __name__ == "__main__":
    die_with_parent()
    try:
        stop_with_the_input()
        main()
    except KeyboardInterrupt:  # before the command line listens for it
        sys.exit(Cancelled.exit_code)
