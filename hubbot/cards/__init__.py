"""What people read: cards, pictures, the report, tables, pull requests; all rendered from the record."""
