"""The measuring scripts in bench/, with fake engines: what is timed is real elsewhere."""
