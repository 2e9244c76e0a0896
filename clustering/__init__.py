"""Feature vectors → clusters: the space, KMeans, assigning, neighbours, identity."""
