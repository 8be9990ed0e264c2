"""`python -m tinkergate` is the `tinkergate` command."""

from tinkergate.cli.main import main

main()
