"""`python -m tunesmith` is the command `tunesmith`, so that torchrun can start it."""

from tunesmith.cli import main

main()
