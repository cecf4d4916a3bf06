"""Pool, block tables, KV bytes, storages."""
