"""A live model out into a file, and back in."""
