"""Models whose weights are elsewhere, on disk or on another device, and in memory only while
something is computed with them.
"""
