"""Runs the command line as `python -m tunesmith`, for torchrun."""

from tunesmith.cli import main

main()
