"""The command ``mpcore``: one file per command, assembled in :mod:`mpcore.cli.app`."""

from mpcore.cli.app import main as main
