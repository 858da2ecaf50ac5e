"""`python -m examples.pruning`: prune trained models, with and without retraining, and report what
came out.

Dense models (`dense`) are converted to other masks by calibration (`conversion`), or given a
pattern for each layer under a budget (`allocation`); tables, sentences and figures (`tables`,
`findings`, `plots`) are made from JSON alone (`report`).
"""
