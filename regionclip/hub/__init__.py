"""Published models: names, downloads, loading and packing."""
