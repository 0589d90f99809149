"""Which variables of an old file are tied, and the file that says so."""
