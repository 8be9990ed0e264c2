"""The `tinkergate` command."""
