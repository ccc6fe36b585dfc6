"""`loraloom train` as a child of the server, which ends with it."""

from __future__ import annotations

from loraloom.cli.main import main
from loraloom.jobs.worker import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    main()
