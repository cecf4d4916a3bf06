"""The shape of the house: imports, names, words, weight."""
