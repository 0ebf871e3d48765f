"""Many runs as one tidy table: collect, group, tables as text, figures and an HTML page."""
