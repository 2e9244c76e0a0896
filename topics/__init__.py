"""What a subscriber meets: publishing to the cluster topics and reading them."""
