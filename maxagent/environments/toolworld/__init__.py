"""Small exact worlds behind tools whose names and schemas change with every episode."""
