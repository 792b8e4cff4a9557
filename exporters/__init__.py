"""Destinations: one file each. They import the contracts and the ground floor; only the registry imports them."""
