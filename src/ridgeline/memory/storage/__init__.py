"""How a kept token is stored: one file a storage."""
