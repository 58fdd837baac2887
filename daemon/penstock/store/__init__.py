"""What Penstock remembers, in PostgreSQL; every statement is named."""
