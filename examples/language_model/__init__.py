"""`python -m examples.language_model`: prune a real language model in one shot, by every method and
pattern, and report what came out.

Model and texts come from packages (`packages`, `texts`) and are prepared once (`prepared`); each
row of the table (`rows`) is pruned (`methods`) and measured (`measuring`, `memory`, `calls`) in a
process of its own, into JSON that is added to run by run (`store`); tables, sentences and figures
(`tables`, `findings`, `plots`) are made from that JSON alone (`outcome`, `report`).
"""
