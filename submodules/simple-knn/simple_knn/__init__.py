"""Exact nearest-neighbour distances of point sets; see `simple_knn._C`."""
