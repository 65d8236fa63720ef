"""Region features of many images: extraction across processes, file formats, and lookup."""
