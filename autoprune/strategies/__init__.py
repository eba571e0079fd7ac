"""Strategies: they ask for scores and are told; ``_base.search`` is the one loop that runs them."""
