"""One corpus a file; all become the same prepared folder (`manifest`). `catalogue` has them."""
