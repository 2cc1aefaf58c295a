"""A package to pytest, so that the cluster which its tests share ends with the last of them."""
