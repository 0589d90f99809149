"""What a file says of ties: the vocabulary, and its JSON form."""
