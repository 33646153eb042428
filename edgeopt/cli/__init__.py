"""The command ``edgeopt``; one file per group of commands."""

from edgeopt.cli.app import app as app
from edgeopt.cli.app import main as main
