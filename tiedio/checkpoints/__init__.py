"""Any file of any Keras, as named variables."""
