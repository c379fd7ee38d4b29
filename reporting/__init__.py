"""Reports on finished runs: reading, tables, figures and rendering."""
