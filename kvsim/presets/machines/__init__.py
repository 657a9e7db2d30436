"""One machine a TOML file."""
