"""What each version of Keras called otherwise, or stored in another order."""
