"""`python -m tiedio`."""

from tiedio.cli.main import main

main(prog_name="tiedio")
