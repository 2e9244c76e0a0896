"""What a subscriber meets: the cluster topics, published, and read in a line: `subscribe` and `view`."""

from topics.news import News, subscribe
from topics.views import View, view

__all__ = ["News", "View", "subscribe", "view"]
