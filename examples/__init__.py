"""What nmsolve's training layer does, in runs small enough for a processor: three examples and a
study.
"""
