"""Usage becomes a table, JSON and messages."""
