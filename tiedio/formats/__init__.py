"""What lies in a file: containers, the layout of its tensors, reading and writing them."""
