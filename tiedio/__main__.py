"""`python -m tiedio`."""

from tiedio.cli import main

main(prog_name="tiedio")
