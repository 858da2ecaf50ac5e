"""Fixtures of this folder's files: the command line is given what checkpoints are given."""

from tests.checkpoint import hostile

box, sparse = hostile.box, hostile.sparse
