"""One self-contained HTML page over runs: what is on it, its words, and how it is put together."""
