"""Where a file lies, and how it is replaced whole or not at all."""
