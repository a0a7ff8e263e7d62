"""Measurements of the product, apart from its tests: nothing in ``server`` knows of them."""
