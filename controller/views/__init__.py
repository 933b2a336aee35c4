"""The state in words, JSON, tables, a report and charts."""
