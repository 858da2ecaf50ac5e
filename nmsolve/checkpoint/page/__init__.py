"""The page of `nmsolve report`: one self-contained HTML document."""

from nmsolve.checkpoint.page.document import page

__all__ = ["page"]
