"""Which variables of an old file were tied, and the file that ties them again."""
