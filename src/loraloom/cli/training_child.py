"""`loraloom train` as a child of the server, which ends with it.

It stops after its current step when its input ends: the server closes it, or is gone. That works on every
system, which signals to one process do not.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading

from loraloom.cli.main import main
from loraloom.errors import Cancelled
from loraloom.jobs.worker import die_with_parent


def stop_with_the_input() -> None:
    """When standard input has ended: interrupt the main thread, as Ctrl-C does, where the command listens.

    Before, nothing has begun, and the process ends at once: an interrupt while modules are imported may be
    lost in a callback, or leave the lock of a module taken.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            os._exit(Cancelled.exit_code)
        _thread.interrupt_main()

    threading.Thread(target=wait, name="loraloom-input", daemon=True).start()


if __name__ == "__main__":
    die_with_parent()
    # A shell that starts a server in the background has its children ignore it, and nothing could interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stop_with_the_input()
        main()
    except KeyboardInterrupt:  # before the command line listens for it
        sys.exit(Cancelled.exit_code)
