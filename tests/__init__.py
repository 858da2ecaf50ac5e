"""Tests, a folder a part of the house; README.md says what is where."""
