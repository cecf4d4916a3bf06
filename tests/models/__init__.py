"""Specs, weights by role, loading, the catalogue, pulling."""
