"""Operator kinds (meaning, cost, cases) and the Program that lists them."""
