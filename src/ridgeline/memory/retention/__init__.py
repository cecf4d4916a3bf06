"""Which tokens are kept: one file a retention."""
