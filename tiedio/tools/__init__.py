"""Questions to a file: what is in it, is it as it was saved, what differs."""
