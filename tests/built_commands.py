"""Imported by the process that forks: the commands with their options are built once for all its children."""

from unetcli.cli import command_line

command_line()
