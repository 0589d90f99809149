"""What a file says of ties, and people are told: the vocabulary, its JSON form, and reports."""
