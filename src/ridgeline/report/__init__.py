"""What people and programs read: tables, three account lines, JSON documents, plots."""
