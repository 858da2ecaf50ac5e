"""Fixtures of this folder's files."""

from tests.checkpoint import hostile

box, sparse = hostile.box, hostile.sparse
