"""Transforms of a loaded pipeline, one a file: each resolves a recipe's words to Applied or Refused, then applies."""
