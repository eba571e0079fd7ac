"""The Python API: networks, and every command of the command line as a function of them."""
