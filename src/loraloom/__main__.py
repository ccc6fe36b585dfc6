"""`python -m loraloom`."""

from loraloom.cli.main import main

main()
