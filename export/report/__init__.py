"""The one room that formats results: what goes to stdout and what is written as JSON."""
