"""Several engines as one: how kept state travels between them, who gets a request, and what happens when one dies."""
