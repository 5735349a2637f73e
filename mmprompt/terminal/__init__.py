"""How a verb meets people: options in, tables and progress out."""
