"""A pattern for every layer under a budget: exact allocation, and DominoSearch.

From below: `budget` limits and `candidates` are offered, `multiply_adds` counts the costs of
layers. Exact: `knapsack_core`, `knapsack`, `layer_losses`, `mask_losses`, `costs`, `allocated`,
`exact`. DominoSearch: `erk`, `search`, `searched_weight`, `domino_options`, `domino_run`, `domino`.
"""
