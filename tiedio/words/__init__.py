"""What people are told of a result, whatever shows it."""
