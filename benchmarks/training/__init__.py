"""What training with masks costs: refreshing them, the hooks in an optimizer's steps, and LBC's
memory.
"""
