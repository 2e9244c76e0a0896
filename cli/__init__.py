"""The `murmur` command."""
