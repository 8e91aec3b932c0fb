"""What tests share: tiny models, scenes, files, processes, and a client of the node."""
