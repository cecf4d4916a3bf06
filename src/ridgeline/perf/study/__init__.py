"""The characterisation study: cells measured, fitted, and held against the propositions F1 to F16 (A2, A19)."""
