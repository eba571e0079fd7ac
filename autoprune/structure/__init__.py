"""The structure of a network: which channels belong together, which widths it may have, and the narrower network."""
