"""Reading and writing files: images, video, PLY, JSON, and atomic replacement."""
