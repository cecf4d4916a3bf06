"""Where sequences keep their state: block pool, block tables, the KV bytes, storages and retentions."""
