"""A pattern for every layer under a budget: exact allocation, and DominoSearch.

`budget` says what is limited; `multiply_adds` counts what layers cost.
"""
