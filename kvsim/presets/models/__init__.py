"""One model a TOML file."""
