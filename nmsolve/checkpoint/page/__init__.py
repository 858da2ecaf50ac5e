"""The page of `nmsolve report`: one self-contained HTML document."""

from nmsolve.checkpoint.page.document import is_page, page

__all__ = ["is_page", "page"]
