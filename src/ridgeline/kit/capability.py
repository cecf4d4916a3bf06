"""What techniques need and models or storages give, by name: sets of these are subtracted once, in engine/needs.py."""

PAGES = "keys and values in pages"
TRUNCATION = "rollback by forgetting the last tokens"
SNAPSHOT = "rollback by snapshot"
