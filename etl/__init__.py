"""Audio folders and CSV → bus → store: catalogue, extract, load, dead letters."""
