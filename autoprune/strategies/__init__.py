"""Search strategies: each proposes allocations and gets their scores; ``_base.search`` is the loop that runs them."""
